"""Classification in the audit: the head of the family's stock ForSequenceClassification class, trained and averaged.

A head is dense and the same for every method: trained whole by every client, at `local.head_learning_rate` with a norm
of its own to clip, and averaged by the clients' numbers of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from hetlora.audit_client import Participation
    from hetlora.audit_replay import Replay
    from hetlora.audit_trace import Event

INITIAL, SAMPLES = "initial head as specified", "texts of the heads' average equal"
SENT, FROM_HEADS, OWN = "sent head, relative", "head from traced heads, relative", "own chain: head, relative"
DEVIATION = 0.02  #: of the weights' draw

#: model_type -> modules of the head, in the order of the trace's values; all others have "score"
MODULES = {
    "bert": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
}


class Head:
    """The head of a model, as one vector: weight, then bias (where there is one), module by module."""

    def __init__(self, model: torch.nn.Module) -> None:
        modules = [model.get_submodule(name) for name in MODULES.get(model.config.model_type, ("score",))]
        self.parameters = [p for module in modules for p in (module.weight, module.bias) if p is not None]

    def load(self, values: np.ndarray) -> None:
        """Takes over the values; they train from here on."""
        at = 0
        with torch.no_grad():
            for parameter in self.parameters:
                part = np.array(values[at : at + parameter.numel()])
                parameter.copy_(torch.from_numpy(part).reshape(parameter.shape).to(parameter.dtype))
                parameter.grad = None
                parameter.requires_grad_(True)
                at += parameter.numel()
        assert at == len(values), f"a head of {len(values)} values for one of {at}"

    def values(self) -> np.ndarray:
        """The present values in fp64."""
        return np.concatenate([p.detach().double().numpy().ravel() for p in self.parameters])


class HeadTraining:
    """One participation's training of a head."""

    def __init__(self, head: Head, values: np.ndarray, optimizer: Callable, learning_rate: float, clip: float) -> None:
        self.head, self.clip = head, clip
        head.load(values)
        self.optimizer = optimizer(head.parameters, learning_rate)

    def step(self) -> None:
        """After the batch's backward."""
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(self.head.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / ||theirs||."""
    gap = float(np.linalg.norm(ours - theirs))
    return 0.0 if gap == 0 else gap / max(float(np.linalg.norm(theirs)), 1e-12)


def average(heads: Sequence[np.ndarray], samples: Sequence[float], previous: np.ndarray) -> np.ndarray:
    """sum_k n_k head_k / sum_k n_k; the previous one where there is none."""
    if not heads:
        return previous
    return sum(n * head for n, head in zip(samples, heads, strict=True)) / sum(samples)


class Heads:
    """The checks of a replay that are about heads, and the own chain's head."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.report, self.trace = replay, replay.report, replay.trace
        tolerance = replay.options.tolerance
        for name in (INITIAL, SAMPLES):
            self.report.declare(name, 0.0, "equal")
        for name in (SENT, FROM_HEADS):
            self.report.declare(name, tolerance)
        self.report.declare(OWN, tolerance if replay.options.chain else None)
        self.report.required |= {INITIAL, SENT, FROM_HEADS}
        self.own = self.trace.global_head(0)
        self._initial()

    def _initial(self) -> None:
        """Weights like N(0, 0.02) within 6 standard errors, biases 0."""
        at = 0
        for parameter in self.replay.trainer.head.parameters:
            values = self.own[at : at + parameter.numel()]
            at += parameter.numel()
            if parameter.dim() == 1:
                self.report.equal(INITIAL, not values.any(), "a bias is not 0")
                continue
            spread = values.std() / DEVIATION - 1.0
            good = (
                abs(spread) < 6 * (0.5 / len(values)) ** 0.5 and abs(values.mean()) < 6 * DEVIATION / len(values) ** 0.5
            )
            self.report.equal(INITIAL, bool(good), f"a weight of {len(values)} values")
        self.report.equal(INITIAL, at == len(self.own), f"{len(self.own)} values traced, {at} expected")

    def sent(self, event: Event, result: Participation) -> None:
        """One participation's head against the trace."""
        self.report.difference(SENT, distance(result.head, self.trace.sent_head(event)), event.place())

    def traced_round(self, number: int, events: Sequence[Event]) -> None:
        """The server's average, from the traced heads."""
        kept = [event for event in events if not event.dropped]
        samples = [self.trace.head_samples(event) for event in kept]
        if self.replay.natural:
            for event, n in zip(kept, samples, strict=True):
                own = len(self.replay.data.client_windows(event.client))
                self.report.equal(SAMPLES, n == own, f"{event.place()}: {n:g}, not {own}")
        mean = average([self.trace.sent_head(e) for e in kept], samples, self.trace.global_head(number - 1))
        self.report.difference(FROM_HEADS, distance(mean, self.trace.global_head(number)), f"round {number}")

    def own_round(self, number: int, trained: Sequence[tuple[Event, np.ndarray]]) -> None:
        """The own chain's next head."""
        samples = [self.trace.head_samples(event) for event, _ in trained]
        self.own = average([head for _, head in trained], samples, self.own)
        self.report.difference(OWN, distance(self.own, self.trace.global_head(number)), f"round {number}")
