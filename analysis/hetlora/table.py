"""`python -m hetlora table RUN_DIR...`: one line per run, read from run.h5 and config.json of each folder."""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

from hetlora.errors import InputError
from hetlora.headline import Headline, headline
from hetlora.run_record import RUN_SCHEMA, RunRecord, read_run


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


def column(rounds: dict[str, np.ndarray], name: str, run: RunRecord) -> np.ndarray:
    """A variable of /rounds as float64 [n]; InputError where it is absent."""
    if name not in rounds:
        raise InputError(f"{run.path / 'run.h5'} has no /rounds/{name}; it is not a {RUN_SCHEMA} file of version 1")
    return np.asarray(rounds[name], dtype=np.float64)


def row_of(run: RunRecord, judged: Headline) -> dict[str, str]:
    """One line of the table: heading -> text. Row 0 of /rounds is the state before training."""
    values = column(run.rounds, judged.column, run)
    up = column(run.rounds, "bytes_up_true", run)
    seconds = column(run.rounds, "t_round_s", run)
    alive = np.asarray(run.rounds.get("slots_alive", []), dtype=np.float64)
    measured = values[~np.isnan(values)]
    return {
        "run": run.path.resolve().name,
        "method": str(run.setting("strategy.preset", "?")),
        "ranks": rank_law(run.config.get("lora", {})),
        "rounds": str(run.n_rounds),
        f"{judged.short} before": number(values[0] if len(values) else math.nan, judged.digits),
        f"{judged.short} after": number(measured[-1] if len(values) > 1 and len(measured) else math.nan, judged.digits),
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
    names = list(rows[0])
    widths = {h: max(len(h), *(len(row[h]) for row in rows)) for h in names}
    lines = [{h: h for h in names}, {h: "-" * widths[h] for h in names}, *rows]
    text = [
        "  ".join(line[h].ljust(widths[h]) if h in left else line[h].rjust(widths[h]) for h in names) for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)


def main(argv: list[str]) -> int:
    """Print the table of the given run folders."""
    options = parser().parse_args(argv)
    runs = [read_run(Path(run), ("rounds",), describe=False) for run in options.runs]
    for run in runs:
        for problem in run.problems:
            print(f"hetlora table: {run.path.name}: {problem}", file=sys.stderr)
    judged = headline(runs)
    print(render([row_of(run, judged) for run in runs]))
    return 0
