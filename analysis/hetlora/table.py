"""`python -m hetlora table RUN_DIR...`: one line per run, read from run.h5 and config.json of each folder."""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from hetlora.errors import InputError, need

RUN_SCHEMA = "hetlora-run"
HEADINGS = ("run", "method", "ranks", "rounds", "ppl before", "ppl after", "up MB", "slots alive", "time s")


def parser() -> argparse.ArgumentParser:
    """The argument parser of `table`."""
    top = argparse.ArgumentParser(prog="hetlora table", description=__doc__)
    top.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders that `hetlora run` wrote")
    return top


def rank_law(lora: dict) -> str:
    """How the LoRA ranks of the clients were drawn, in a word: 'powerlaw 2-32', 'fixed 8', 'list'."""
    law = str(lora.get("rank_distribution", "?"))
    low, high = lora.get("rank_min"), lora.get("rank_max")
    if law == "fixed" or (low is not None and low == high):
        return f"fixed {high}"
    return law if low is None or law in ("list", "file") else f"{law} {low}-{high}"


def read_config(folder: Path) -> dict[str, dict]:
    """config.json as section -> key -> value; 'section.key' at top level is understood too."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        raw = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    config: dict[str, dict] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            config.setdefault(key, {}).update(value)
        elif "." in key:
            section, name = key.split(".", 1)
            config.setdefault(section, {})[name] = value
    return config


def column(rounds, name: str, file: Path, needed: bool = True) -> np.ndarray:
    """A variable of /rounds as float64 [n]; all NaN where it is absent and not needed."""
    if name in rounds:
        return np.asarray(rounds[name][:], dtype=np.float64)
    if needed:
        raise InputError(f"{file} has no /rounds/{name}; it is not a {RUN_SCHEMA} file of version 1")
    return np.full(len(rounds["eval_perplexity"]), math.nan)


def read_run(folder: Path) -> dict[str, str]:
    """One line of the table: heading -> text. Row 0 of /rounds is the state before training."""
    h5py = need("h5py", "data")
    file = folder / "run.h5"
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder} (a run folder); check the path")
    if not file.is_file():
        raise InputError(f"{folder} has no run.h5; give the folder that `hetlora run` printed")
    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5: {error}; `hetlora repair {folder}` may help") from error
    with handle:
        name = handle.attrs.get("schema_name", b"")
        name = name.decode() if isinstance(name, bytes) else str(name)
        if name != RUN_SCHEMA or "rounds" not in handle:
            raise InputError(f"{file} is not a run log (schema_name {name!r}, expected {RUN_SCHEMA!r})")
        rounds = handle["rounds"]
        perplexity = column(rounds, "eval_perplexity", file)
        up = column(rounds, "bytes_up_true", file)
        seconds = column(rounds, "t_round_s", file)
        alive = column(rounds, "slots_alive", file, needed=False)
        committed = int(handle.attrs.get("committed_rounds", len(perplexity)))
    # Rows past the committed ones belong to a round that was interrupted.
    perplexity, up, seconds, alive = (a[: max(committed, 0)] for a in (perplexity, up, seconds, alive))
    config = read_config(folder)
    measured = perplexity[~np.isnan(perplexity)]
    return {
        "run": folder.resolve().name,
        "method": str(config.get("strategy", {}).get("preset", "?")),
        "ranks": rank_law(config.get("lora", {})),
        "rounds": str(max(0, len(perplexity) - 1)),
        "ppl before": number(perplexity[0] if len(perplexity) else math.nan, 2),
        "ppl after": number(measured[-1] if len(perplexity) > 1 and len(measured) else math.nan, 2),
        "up MB": number(np.nansum(up) / 1e6, 2),
        "slots alive": number(_last(alive), 0),
        "time s": number(np.nansum(seconds), 1),
    }


def _last(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan


def number(value: float, digits: int) -> str:
    """A number with so many digits after the point, '-' if it was not measured."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def render(rows: list[dict[str, str]]) -> str:
    """The table as text: text columns to the left, numbers to the right."""
    left = {"run", "method", "ranks"}
    widths = {h: max(len(h), *(len(row[h]) for row in rows)) for h in HEADINGS}
    lines = [{h: h for h in HEADINGS}, {h: "-" * widths[h] for h in HEADINGS}, *rows]
    text = [
        "  ".join(line[h].ljust(widths[h]) if h in left else line[h].rjust(widths[h]) for h in HEADINGS)
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)


def main(argv: list[str]) -> int:
    """Print the table of the given run folders."""
    options = parser().parse_args(argv)
    print(render([read_run(Path(run).expanduser()) for run in options.runs]))
    return 0
