"""`hetlora.open_runs(paths)`: the curves of many runs as one xarray data set with a `run` axis."""

import json
import math

import numpy as np

from hetlora.errors import need
from hetlora.run_folders import Paths
from hetlora.run_record import RunRecord
from hetlora.runs_settings import common_settings, read_runs, setting_column, swept_settings, unique_names

_SLOT_AXES = ("round", "slot")


def open_runs(paths: Paths):
    """Every variable of /rounds [run, round] and /slots [run, round, slot] of the runs, as an xarray.Dataset.

    paths: run folders, sweep folders, sweep .ini files or patterns, one or a list. Coordinates along `run`: `run`
    (name), every setting that differs between the runs (`strategy.preset`, `experiment.seed`, ...), `state` (as in
    `hetlora sweep status`, or "damaged"), `n_rounds` (committed rounds), `problem` ('' if there is none) and `path`.
    Shorter runs, and what a damaged run lost, are NaN; whole numbers become float64 only where such a gap needs it.
    Settings that all runs share are in `attrs['settings']` as JSON. Raises InputError where no run is found.
    """
    xarray = need("xarray", "data")
    records = read_runs(paths, ("rounds", "slots"))
    n_rows = max((record.committed_rounds for record in records), default=0)
    n_slots = max((len(record.slots["slot"]) for record in records if record.slots), default=0)
    units, long_names = {}, {}
    for record in records:
        units |= record.units
        long_names |= record.long_names
    variables = {}
    for group, sizes in (("rounds", (n_rows,)), ("slots", (n_rows, n_slots))):
        for name in dict.fromkeys(key for record in records for key in getattr(record, group)):
            if name in _SLOT_AXES:
                continue
            values = _stack([getattr(record, group) for record in records], name, sizes)
            about = {"units": units.get(f"{group}/{name}", ""), "long_name": long_names.get(f"{group}/{name}", "")}
            variables[name] = (("run", *_SLOT_AXES[: len(sizes)]), values, {k: v for k, v in about.items() if v})
    coordinates = {
        "run": unique_names([record.path for record in records]),
        "round": ("round", np.arange(n_rows), {"long_name": "communication round; 0 is the state before training"}),
        **{key: ("run", setting_column(values)) for key, values in swept_settings(records).items()},
        **about_runs(records),
    }
    if n_slots:
        coordinates["slot"] = np.arange(n_slots)
    attributes = {"settings": json.dumps(common_settings(records))}
    return xarray.Dataset(variables, coordinates, attributes)


def about_runs(records: list[RunRecord]) -> dict[str, tuple[str, np.ndarray]]:
    """The coordinates along `run` that say how each run fared."""
    return {
        "state": ("run", np.array([record.state for record in records], object)),
        "n_rounds": ("run", np.array([record.n_rounds for record in records], np.int64)),
        "problem": ("run", np.array(["; ".join(record.problems) for record in records], object)),
        "path": ("run", np.array([str(record.path) for record in records], object)),
    }


def _stack(groups: list[dict[str, np.ndarray]], name: str, sizes: tuple[int, ...]) -> np.ndarray:
    """One variable of all runs, [run, *sizes]; NaN where a run has no value. Rows go where their `round` says."""
    columns = [group.get(name) for group in groups]
    present = [column for column in columns if column is not None]
    kind = np.result_type(*present)
    if len(present) < len(columns) or any(column.shape != sizes for column in present):
        kind = np.result_type(kind, np.float64)
        out = np.full((len(columns), *sizes), math.nan, kind)
    else:
        out = np.empty((len(columns), *sizes), kind)
    for i, (group, column) in enumerate(zip(groups, columns, strict=True)):
        if column is None:
            continue
        rows = group.get("round", np.arange(len(column)))
        out[(i, rows, *(slice(n) for n in column.shape[1:]))] = column
    return out
