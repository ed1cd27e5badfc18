"""Replies that models wrote for held-out people, as `samples.jsonl` of a run keeps them, for the page."""

import json
from dataclasses import dataclass

from hetlora.report.rows import Method
from hetlora.run_record import RunRecord

MOST_CONVERSATIONS = 6
SHOWN_OF_PROMPT = 400


@dataclass(frozen=True)
class Conversation:
    """What was said so far (its end), the real reply, and (who, reply) of the base and of every method."""

    so_far: str
    real: str
    replies: list[tuple[str, str]]


def conversations(methods: list[Method]) -> list[Conversation]:
    """Of each method's first run that kept replies; conversations of different runs are joined where they are equal."""
    joined: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for method in methods:
        for sample in next(filter(None, map(read_samples, method.records)), []):
            replies = joined.setdefault((sample["prompt"], sample["real"]), [])
            if sample["base"] is not None and ("base", sample["base"]) not in replies:
                replies.append(("base", sample["base"]))
            replies.append((method.label, sample["tuned"]))
    return [
        Conversation(_end_of(prompt), real, replies)
        for (prompt, real), replies in list(joined.items())[:MOST_CONVERSATIONS]
    ]


def read_samples(record: RunRecord) -> list[dict]:
    """The lines of samples.jsonl with all four fields; [] where the run has none. A damaged line becomes a problem of
    the record, which the page tells."""
    try:
        lines = (record.path / "samples.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    samples = []
    for number, line in enumerate(lines, start=1):
        try:
            sample = json.loads(line)
            samples.append({name: sample[name] for name in ("prompt", "real", "base", "tuned")})
        except (ValueError, KeyError, TypeError):
            record.problems.append(f"line {number} of samples.jsonl is damaged: that reply is left out")
    return samples


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= SHOWN_OF_PROMPT else "... " + prompt[-SHOWN_OF_PROMPT:]
