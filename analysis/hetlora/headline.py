"""The column that a run is judged by first: perplexity of next tokens, or accuracy of labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hetlora.run_record import RunRecord


@dataclass(frozen=True)
class Headline:
    """`column` of /rounds; `name` in a sentence, `short` in a table's heading."""

    column: str
    name: str
    short: str
    digits: int
    larger_is_better: bool


PERPLEXITY = Headline("eval_perplexity", "perplexity", "ppl", 2, False)
ACCURACY = Headline("eval_accuracy", "accuracy", "acc", 4, True)


def headline(records: Iterable[RunRecord]) -> Headline:
    """Accuracy where every run classifies (model.task), else perplexity."""
    return headline_of(str(record.setting("model.task", "causal")) for record in records)


def headline_of(tasks: Iterable[str]) -> Headline:
    """The same of the runs' model.task."""
    return ACCURACY if set(tasks) == {"classification"} else PERPLEXITY
