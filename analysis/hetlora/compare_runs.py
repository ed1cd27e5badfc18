"""Which runs `hetlora compare` compares: usable ones, by method, seed, tuned value and part of the data."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from hetlora.errors import InputError
from hetlora.run_record import RunRecord
from hetlora.runs_settings import SEEDS, unique_names
from hetlora.runs_where import check_keys, where_filter

SEED_KEYS = ("experiment.seed", *(f"experiment.{name}" for name in SEEDS))
PART = "evaluation.part"


def column_on_test(metric: str) -> str:
    """The column that evaluation.test adds for a metric of the evaluation; "" for what has none."""
    evaluated = metric.startswith("eval_") and not metric.startswith("eval_test_")
    return metric.replace("eval_", "eval_test_", 1) if evaluated else ""


@dataclass(frozen=True)
class Question:
    """What `hetlora compare` is asked."""

    metric: str = "eval_perplexity"
    by: tuple[str, ...] = ("strategy.preset",)
    where: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    at: str = "last"
    level: float = 0.95
    target: float | None = None
    baseline: str | None = None
    lower_is_better: bool = True


@dataclass
class MethodRun:
    """One run: its method, its tuned values, its seed and the part of the data that it was evaluated on."""

    record: RunRecord
    name: str
    method: str
    tuned: tuple
    seed: str
    part: str
    beside: bool = False
    """The test columns that evaluation.test adds to a run on valid, as if they were a run of their own."""

    def curve(self, metric: str) -> np.ndarray:
        """A column of /rounds as float64 [round]; all NaN where the run has none."""
        values = self.record.rounds.get(column_on_test(metric) if self.beside else metric)
        if values is None:
            return np.full(self.record.committed_rounds, np.nan)
        return np.asarray(values, np.float64)


@dataclass
class Chosen:
    """The runs that a question is about, with a line for each run that is left out (and why)."""

    runs: list[MethodRun]
    notes: list[str] = field(default_factory=list)
    incomplete: dict[str, int] = field(default_factory=dict)
    """method -> runs of it that were left out because they did not end well."""
    tried: dict[str, set[tuple]] = field(default_factory=dict)
    """method -> tuned values that were tried, with those whose runs all failed."""


def choose_runs(records: list[RunRecord], question: Question) -> Chosen:
    """Filters by --where, leaves out what cannot be used (with a note each), names method and seed of the rest."""
    names = unique_names([record.path for record in records])
    notes: list[str] = []
    conditions = [where_filter(records, condition) for condition in question.where]
    named = [
        (record, name)
        for record, name in zip(records, names, strict=True)
        if not record.config or all(fulfilled(record) for fulfilled in conditions)
    ]
    if not any(record.config for record, _ in named):
        raise InputError(
            f"none of the {len(records)} runs has {' and '.join(question.where)}; relax --where"
            if question.where
            else f"no config.json can be read in {len(records)} run folders; without it methods are not known"
        )
    check_keys([record for record, _ in named], (*question.by, *question.tune))
    seeds = _seed_labels([record for record, _ in named], question.by)
    chosen = Chosen([], notes)
    seen: dict[str, str] = {}
    for record, name in named:
        why = _why_unusable(record, question.metric)
        method = method_name(record, question.by) if record.config else ""
        tuned = tuple(record.settings.get(key) for key in question.tune)
        if method and (not why or record.state == "failed"):
            chosen.tried.setdefault(method, set()).add(tuned)
        if why:
            notes.append(f"left out: {name}: {why}")
            if method:
                chosen.incomplete[method] = chosen.incomplete.get(method, 0) + 1
            continue
        notes += [f"{name}: {problem}" for problem in record.problems]
        if record.run_id and record.run_id in seen:
            notes.append(f"left out: {name}: it is the same run as {seen[record.run_id]} (identity {record.identity})")
            continue
        seen[record.run_id] = name
        part = str(record.setting(PART, "valid"))
        run = MethodRun(record, name, method, tuned, seeds(record), part)
        chosen.runs.append(run)
        if part == "valid" and column_on_test(question.metric):
            beside = replace(run, part="test", beside=True)
            if not np.isnan(beside.curve(question.metric)).all():
                chosen.runs.append(beside)
    if not chosen.runs:
        listed = "".join(f"\n  {note}" for note in notes)
        raise InputError(f"none of the {len(named)} runs can be compared by {question.metric}:{listed}")
    return chosen


def method_name(record: RunRecord, by: tuple[str, ...]) -> str:
    """The method's name: the values of the keys of --by."""
    return " ".join(str(record.settings.get(key, "?")) for key in by)


def _why_unusable(record: RunRecord, metric: str) -> str:
    """Why the run is left out; "" if it can be compared."""
    problem = f" ({'; '.join(record.problems)})" if record.problems else ""
    if not record.config:
        return f"{record.state}, its settings are not known{problem}"
    wanted = record.setting("experiment.rounds")
    enough = record.committed_rounds > 0 and isinstance(wanted, int) and record.n_rounds >= wanted
    if record.state == "failed" or (record.state != "done" and not enough):
        return f"{record.state} after {record.n_rounds} of {wanted} rounds{problem}"
    if metric not in record.rounds:
        return f"it has no {metric}{problem}"
    if np.isnan(np.asarray(record.rounds[metric], np.float64)).all():
        return f"its {metric} was never measured (all NaN){problem}"
    return ""


def _seed_labels(records: list[RunRecord], by: tuple[str, ...]) -> Callable[[RunRecord], str]:
    """What tells the repetitions of one method apart: experiment.seed, and the seeds that do not follow it."""
    keys = [key for key in SEED_KEYS if key not in by]

    def follows(key: str) -> bool:
        return all(record.settings.get(key) == record.settings.get("experiment.seed") for record in records)

    own = [key for key in keys if key == "experiment.seed" or not follows(key)]
    varying = [key for key in own if len({record.settings.get(key) for record in records if record.config}) > 1]
    shown = varying or own[:1]
    if shown == ["experiment.seed"]:
        return lambda record: str(record.settings.get("experiment.seed", "?"))
    return lambda record: " ".join(f"{key.removeprefix('experiment.')}={record.settings.get(key)}" for key in shown)
