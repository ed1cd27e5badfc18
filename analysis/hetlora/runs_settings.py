"""Many runs side by side: their names, the settings that differ between them, and those settings as columns."""

import math
from pathlib import Path

import numpy as np

from hetlora.run_folders import Paths, find_runs
from hetlora.run_record import RunRecord, read_run

# They name a run or say where it lies; they differ between any two runs.
NAMES_OF_A_RUN = ("experiment.name", "output.dir")
SEEDS = ("seed_init", "seed_ranks", "seed_sampling", "seed_partition", "seed_data")


def read_runs(paths: Paths, groups: tuple[str, ...]) -> list[RunRecord]:
    """All runs that `paths` name, damaged and unfinished ones too; units and long names of the first whole one only."""
    records: list[RunRecord] = []
    described = False
    for folder in find_runs(paths):
        record = read_run(folder, groups, keep_damaged=True, describe=not described)
        described = described or bool(record.units)
        records.append(record)
    return records


def unique_names(folders: list[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def swept_settings(records: list[RunRecord]) -> dict[str, list]:
    """{'section.key': value of each run} of every key that differs between the runs; None where a run's is not known.

    Left out: the runs' names and folders, and a seed that follows `experiment.seed` in every run.
    """
    settings = [record.settings for record in records]
    known = [one for one in settings if one]
    keys = dict.fromkeys(key for one in known for key in one)
    swept = {}
    for key in keys:
        if key in NAMES_OF_A_RUN or len({_comparable(one.get(key)) for one in known}) < 2:
            continue
        section, _, name = key.partition(".")
        if section == "experiment" and name in SEEDS:
            if all(one.get(key) == one.get("experiment.seed") for one in known):
                continue
        swept[key] = [one.get(key) for one in settings]
    return swept


def common_settings(records: list[RunRecord]) -> dict[str, object]:
    """{'section.key': value} of the settings that all runs with known settings share."""
    known = [record.settings for record in records if record.config]
    if not known:
        return {}
    return {key: value for key, value in known[0].items() if all(one.get(key) == value for one in known[1:])}


def setting_column(values: list) -> np.ndarray:
    """Values of one setting as an array [run]: whole numbers, numbers (NaN = not known), truth values, else texts."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        if len(present) == len(values):
            return np.array(values, bool)
    elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        if len(present) == len(values) and all(isinstance(value, int) for value in values):
            return np.array(values, np.int64)
        return np.array([math.nan if value is None else value for value in values], np.float64)
    return np.array(["" if value is None else str(value) for value in values], object)


def _comparable(value: object) -> object:
    """1 and 1.0 are one value, True and 1 are two."""
    return (isinstance(value, bool), value)
