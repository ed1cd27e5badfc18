"""One number per run for `hetlora compare`: the metric at the chosen round, rounds and true bytes to a target, cost.

Valid is for choosing, test for reporting: where the runs measured both (`evaluation.test = last` or `best`), or come in
pairs (`evaluation.part = valid, test`, which trains the same), rounds and tuned values are chosen on the one and the
numbers come from the other.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from hetlora.compare_fairness import tuned_text
from hetlora.compare_runs import PART, MethodRun, Question
from hetlora.errors import InputError, UsageError


@dataclass
class SeedValue:
    """What one seed of one method gives."""

    seed: str
    value: float
    round: int
    run: str
    rounds_to_target: float = math.nan
    """inf: the target was not reached."""
    bytes_up_to_target: float = math.nan
    bytes_down_to_target: float = math.nan
    device_seconds: float = math.nan
    """Wall seconds of the rounds up to the common one, times MPI ranks; NaN if unknown."""


@dataclass
class Measured:
    """The values of every method, and how they came about."""

    part: str
    common_round: int
    values: dict[str, list[SeedValue]] = field(default_factory=dict)
    chosen: dict[str, tuple] = field(default_factory=dict)
    """method -> tuned values chosen for it."""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Unit:
    """The runs of one method, tuned value and seed, by part of the data."""

    method: str
    tuned: tuple
    seed: str
    runs: dict[str, MethodRun]


def measure(runs: list[MethodRun], question: Question) -> Measured:
    """Chooses round and tuned values as the question says, and reads the numbers."""
    parts = {run.part for run in runs}
    chooses = bool(question.tune) or question.at == "best-valid"
    if chooses and "valid" not in parts:
        what = "a tuned value" if question.tune else "the best round"
        raise UsageError(
            f"{what} is chosen on valid, but every run has {PART} = test; add runs with {PART} = valid to the sweep"
        )
    measured = Measured("test" if "test" in parts else "valid", _common_round(runs, question.metric))
    if measured.common_round < 0:
        raise InputError(f"there is no round at which all {len(runs)} runs measured {question.metric}")
    units = _pair_parts(runs, measured, chooses)
    _say_how(runs, question, measured, chooses)
    for method in dict.fromkeys(run.method for run in runs):
        own = [unit for unit in units if unit.method == method]
        if not own:
            measured.notes.append(f"left out: {method}: none of its runs is on {measured.part}")
            continue
        if question.tune:
            own = _tuned(own, question, measured)
        values = [_value(unit, question, measured) for unit in own]
        measured.values[method] = sorted(values, key=lambda one: _number_first(one.seed))
    return measured


def _number_first(text: str) -> tuple:
    return (0, float(text), "") if text.lstrip("-").isdigit() else (1, 0.0, text)


def _common_round(runs: list[MethodRun], metric: str) -> int:
    """The last round at which every run measured the metric; -1 if there is none."""
    shared = set.intersection(*(set(np.flatnonzero(~np.isnan(run.curve(metric)))) for run in runs))
    return int(max(shared, default=-1))


def _pair_parts(runs: list[MethodRun], measured: Measured, chooses: bool) -> list[_Unit]:
    """The units that have a run on the reported part, and one on valid if something is chosen."""
    units: dict[tuple, _Unit] = {}
    for run in runs:
        key = (run.method, run.tuned, run.seed)
        units.setdefault(key, _Unit(*key, {})).runs[run.part] = run
    needed = {measured.part, *(["valid"] if chooses else [])}
    whole = []
    for unit in units.values():
        missing = needed - set(unit.runs)
        if missing:
            names = ", ".join(run.name for run in unit.runs.values())
            measured.notes.append(f"left out: {names}: there is no such run with {PART} = {missing.pop()}")
        else:
            whole.append(unit)
    return whole


def _say_how(runs: list[MethodRun], question: Question, measured: Measured, chooses: bool) -> None:
    lengths = [run.record.n_rounds for run in runs]
    if min(lengths) < max(lengths):
        measured.notes.append(
            f"the runs have {min(lengths)} to {max(lengths)} rounds: compared at round {measured.common_round}, "
            "the last at which all have the metric"
        )
    if chooses and measured.part == "valid":
        what = " and ".join(filter(None, ["tuned values" if question.tune else "",
                                          "rounds" if question.at == "best-valid" else ""]))  # fmt: skip
        measured.notes.append(
            f"{what} are chosen on valid and the numbers are those on valid too, so they are too good: no run has "
            f"{PART} = test; run with evaluation.test = last or best"
        )


def _best_round(unit: _Unit, question: Question, measured: Measured) -> int:
    """The round that --at names: the common one, or this run's best on valid up to it."""
    if question.at == "last":
        return measured.common_round
    curve = unit.runs["valid"].curve(question.metric)[: measured.common_round + 1]
    curve = np.where(np.isnan(unit.runs[measured.part].curve(question.metric)[: len(curve)]), np.nan, curve)
    return int(np.nanargmin(curve) if question.lower_is_better else np.nanargmax(curve))


def _tuned(units: list[_Unit], question: Question, measured: Measured) -> list[_Unit]:
    """The units of the tuned value that is best on valid, by the mean over seeds."""
    grid: dict[tuple, list[_Unit]] = {}
    for unit in units:
        grid.setdefault(unit.tuned, []).append(unit)
    method = units[0].method
    most = max(len(own) for own in grid.values())
    means: dict[tuple, float] = {}
    for tuned, own in grid.items():
        if len(own) < most:
            measured.notes.append(
                f"{method}: {tuned_text(tuned)} is not eligible: only {len(own)} of {most} seeds ended well"
            )
            continue
        means[tuned] = float(
            np.mean([u.runs["valid"].curve(question.metric)[_best_round(u, question, measured)] for u in own])
        )
    best = (min if question.lower_is_better else max)(means, key=lambda tuned: means[tuned])
    measured.chosen[method] = best
    keys = " ".join(question.tune)
    listed = ", ".join(f"{tuned_text(tuned)}: {mean:.5g}" for tuned, mean in sorted(means.items(), key=str))
    edge = ""
    numbers = sorted(tuned[0] for tuned in grid) if len(question.tune) == 1 and len(grid) > 1 else []
    if numbers and all(isinstance(one, (int, float)) for one in numbers) and best[0] in (numbers[0], numbers[-1]):
        edge = (
            f"; it is the {'smallest' if best[0] == numbers[0] else 'largest'} of the grid: a wider one may be better"
        )
    measured.notes.append(f"{method}: {keys} = {tuned_text(best)} is best on valid ({listed}){edge}")
    return grid[best]


def _value(unit: _Unit, question: Question, measured: Measured) -> SeedValue:
    run = unit.runs[measured.part]
    at = _best_round(unit, question, measured)
    curve = run.curve(question.metric)
    out = SeedValue(unit.seed, float(curve[at]), at, run.name)
    rows = measured.common_round + 1
    ranks = run.record.provenance.get("mpi_size")
    if isinstance(ranks, int) and "t_round_s" in run.record.rounds:
        out.device_seconds = float(np.nansum(run.record.rounds["t_round_s"][:rows])) * ranks
    if question.target is not None:
        with np.errstate(invalid="ignore"):
            curve = curve[:rows]
            reached = curve <= question.target if question.lower_is_better else curve >= question.target
        first = int(np.argmax(reached)) if reached.any() else None
        out.rounds_to_target = math.inf if first is None else first
        for name in ("bytes_up", "bytes_down"):
            column = run.record.rounds.get(f"{name}_true")
            total = math.nan if column is None else math.inf if first is None else float(np.sum(column[: first + 1]))
            setattr(out, f"{name}_to_target", total)
    return out
