"""`compare(paths, question)`: the whole comparison as data, from which the tables are printed."""

import math
from dataclasses import dataclass, field

import numpy as np

from hetlora.compare_fairness import check_comparable, tuned_text
from hetlora.compare_runs import Question, choose_runs
from hetlora.compare_statistics import Estimate, holm, mean_interval, paired_difference, unpaired_difference
from hetlora.compare_values import Measured, SeedValue, measure
from hetlora.errors import UsageError
from hetlora.run_folders import Paths
from hetlora.runs_settings import read_runs


@dataclass
class MethodResult:
    """One method: its seeds, their mean, and the difference to the baseline (None for the baseline itself)."""

    name: str
    seeds: list[SeedValue]
    mean: Estimate
    chosen: str = ""
    """The tuned values, as text."""
    incomplete: int = 0
    """Runs that were left out because they did not end well."""
    difference: Estimate | None = None
    paired_seeds: int = 0
    p_holm: float = math.nan

    @property
    def reached(self) -> int:
        """Seeds that reached the target."""
        return sum(math.isfinite(seed.rounds_to_target) for seed in self.seeds)

    def median(self, name: str) -> float:
        """Median over seeds of a cost to the target; a seed that did not reach it counts as infinite."""
        values = sorted(getattr(seed, name) for seed in self.seeds)
        middle = len(values) // 2
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2

    @property
    def device_seconds(self) -> float:
        """Mean over seeds."""
        return float(np.mean([seed.device_seconds for seed in self.seeds]))


@dataclass
class Comparison:
    """The answer to a Question."""

    question: Question
    baseline: str
    part: str
    common_round: int
    methods: list[MethodResult]
    notes: list[str] = field(default_factory=list)


def compare(paths: Paths, question: Question) -> Comparison:
    """Reads the runs and answers the question.

    Raises UsageError where the runs are not comparable or the question does not fit them, InputError where nothing
    can be read or measured. What is left out, and what a reader must know, is in `notes`.
    """
    records = read_runs(paths, ("rounds", "provenance"))
    if not any(question.metric in record.rounds for record in records):
        _unknown_metric(records, question.metric)
    chosen = choose_runs(records, question)
    fairness_notes = check_comparable(chosen, question)
    measured = measure(chosen.runs, question)
    methods = [
        MethodResult(
            name=name,
            seeds=seeds,
            mean=mean_interval(np.array([seed.value for seed in seeds]), question.level),
            chosen=tuned_text(measured.chosen.get(name, ())),
            incomplete=chosen.incomplete.get(name, 0),
        )
        for name, seeds in measured.values.items()
    ]
    baseline = _baseline(methods, question.baseline)
    notes = [*chosen.notes, *fairness_notes, *measured.notes, *_seed_notes(measured, methods)]
    for method in methods:
        if method is not baseline:
            _set_difference(method, baseline, question.level)
    others = [method for method in methods if method is not baseline]
    adjusted = holm([method.difference.p for method in others])
    for method, p in zip(others, adjusted, strict=True):
        method.p_holm = p
    return Comparison(question, baseline.name, measured.part, measured.common_round, methods, notes)


def _set_difference(method: MethodResult, baseline: MethodResult, level: float) -> None:
    """Paired over common seeds where there are two or more, or as many as each has; else Welch's test."""
    own = {seed.seed: seed.value for seed in method.seeds}
    its = {seed.seed: seed.value for seed in baseline.seeds}
    common = [seed for seed in own if seed in its]
    if len(common) >= 2 or (len(common) == 1 and len(own) == len(its) == 1):
        method.difference = paired_difference(np.array([own[seed] - its[seed] for seed in common]), level)
        method.paired_seeds = len(common)
    else:
        method.difference = unpaired_difference(np.array(list(own.values())), np.array(list(its.values())), level)


def _baseline(methods: list[MethodResult], wanted: str | None) -> MethodResult:
    if wanted is None:
        return methods[0]
    for method in methods:
        if method.name == wanted:
            return method
    raise UsageError(f"--baseline {wanted}: the methods are {', '.join(method.name for method in methods)}")


def _seed_notes(measured: Measured, methods: list[MethodResult]) -> list[str]:
    """Which seeds a method lacks that another has; methods with one seed."""
    every = dict.fromkeys(seed.seed for method in methods for seed in method.seeds)
    notes = []
    for method in methods:
        lacking = [seed for seed in every if seed not in {one.seed for one in method.seeds}]
        if lacking:
            notes.append(f"{method.name} has no run for seed {', '.join(lacking)}")
    single = [method.name for method in methods if len(method.seeds) == 1]
    if single:
        notes.append(
            f"one seed only, so no interval and no test: {', '.join(single)}; run more seeds (experiment.seed)"
        )
    return notes


def _unknown_metric(records: list, metric: str) -> None:
    known = dict.fromkeys(name for record in records for name in record.rounds)
    if known:
        raise UsageError(f"no run has the metric {metric}; they have: {', '.join(known)}")
