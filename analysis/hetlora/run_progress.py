"""progress.jsonl, the second copy of a run's log: its complete lines, and the groups of run.h5 made of them."""

import json
import math
from pathlib import Path

import numpy as np


def read_progress(file: Path) -> list[dict]:
    """The lines of the rounds 0, 1, 2, ... up to the first one that is torn or missing."""
    lines: list[dict] = []
    for text in file.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
            if line["round"] != len(lines):
                break
        except (ValueError, KeyError, TypeError):
            break
        lines.append(line)
    return lines


def progress_groups(lines: list[dict], groups: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Those of rounds, slots, participation and layers that `groups` names, shaped as in run.h5."""
    made: dict[str, dict[str, np.ndarray]] = {}
    if not lines:
        return made
    if "rounds" in groups:
        names = [name for name, value in lines[0].items() if not isinstance(value, (list, dict))]
        made["rounds"] = {name: _column([line.get(name) for line in lines]) for name in names}
    if "slots" in groups:
        energy = np.array([[_number(v) for v in line["slots"]["energy"]] for line in lines], np.float64)
        made["slots"] = {
            "round": np.arange(len(lines)),
            "slot": np.arange(energy.shape[1], dtype=np.int32),
            "energy": energy,
            "n_contributors": np.array([line["slots"]["n_contributors"] for line in lines], np.int32),
        }
    events = [{"round": line["round"]} | event for line in lines for event in line["participation"]]
    if "participation" in groups and events:
        made["participation"] = {"event": np.arange(len(events))}
        made["participation"] |= {name: _column([event.get(name) for event in events]) for name in events[0]}
    looked_at = [line for line in lines if line.get("layers")]
    if "layers" in groups and looked_at:
        made["layers"] = _layers(looked_at)
    return made


def _layers(lines: list[dict]) -> dict[str, np.ndarray]:
    """/layers of the lines that have it: numbers [round, layer], lists of numbers [round, layer, index]."""
    matrices = lines[0]["layers"]
    columns = {
        "round": np.array([line["round"] for line in lines], np.int64),
        "layer": np.arange(len(matrices), dtype=np.int32),
        "name": np.array([matrix.get("name", "") for matrix in matrices], object),
    }
    for name in matrices[0]:
        if name == "name":
            continue
        rows = [[matrix.get(name) for matrix in line["layers"]] for line in lines]
        if isinstance(rows[0][0], list):
            columns[name] = np.array([[[_number(v) for v in value] for value in row] for row in rows], np.float64)
            columns["index"] = np.arange(columns[name].shape[2], dtype=np.int32)
        else:
            columns[name] = np.array([[_number(value) for value in row] for row in rows], np.float64)
    return columns


def _column(values: list) -> np.ndarray:
    """Numbers of JSON as int64, or as float64 where one of them is no whole number or null (NaN)."""
    whole = all(isinstance(value, int) for value in values)
    return np.array(values, np.int64) if whole else np.array([_number(value) for value in values], np.float64)


def _number(value: object) -> float:
    return math.nan if value is None else float(value)
