"""The server's side of a round: whichever merge it is, from traced or from our own uploads, and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hetlora.audit_products import (
    Base,
    base_changes,
    best_of_rank,
    mean_products,
    own_factors,
    product_difference,
    split_difference,
)  # fmt: skip
from hetlora.audit_server import Cohort, ServerOptimizer, Upload, aggregate, client_weights
from hetlora.audit_trace import Event, relative_difference, split

if TYPE_CHECKING:
    from hetlora.audit_replay import Replay

FROM_UPLOADS, FORM = "global from traced uploads, per matrix", "factors of the global as specified"


@dataclass(frozen=True)
class ServerStep:
    """What the server makes of uploads."""

    glob: np.ndarray  #: the new global adapter, canonical form at rank_max
    weights: np.ndarray  #: [n_clients], averaged over matrices
    base_changes: list[np.ndarray] = field(default_factory=list)  #: dense, one per adapted matrix


class Merges:
    """The server of the replay (from traced uploads) and of the own chain."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.report, self.trace = replay, replay.report, replay.trace
        self.settings, self.layout, self.rank_max = replay.settings, replay.layout, replay.rank_max
        self.data, self.natural = replay.data, replay.natural
        self.optimizer = ServerOptimizer(replay.settings)

    def upload(self, event: Event, received: np.ndarray, before: int, sent: np.ndarray, after: int) -> Upload:
        """What the server gets of a participation; before and after are slots of the two adapters."""
        count = len(self.data.client_windows(event.client)) if self.natural else 0
        return Upload(np.asarray(received), before, np.asarray(sent), after, count, event.slots)

    def server(
        self, number: int, events: list[Event], previous: np.ndarray, uploads: list[Upload],
        optimizer: ServerOptimizer, traced: np.ndarray | None,
    ) -> ServerStep:  # fmt: skip
        """The server's side of a round in our own mathematics. Of the traced new global only what is free is taken:
        signs of slots, slots of singular value 0."""
        merge = self.settings.policy("merge")
        cohort = Cohort(number, max(event.lora_rank for event in events))
        previous = np.asarray(previous, dtype=np.float64)
        if not uploads:
            return ServerStep(previous, np.zeros(0), [np.zeros((o, i)) for _, o, i in self.layout if self.replay.base])
        if merge == "factors":
            merged, weights = aggregate(self.settings, self.layout, previous, self.rank_max, uploads, cohort)
            merged = optimizer.step(previous, merged)
        else:
            merged, weights = previous, client_weights(self.settings, self.layout, uploads).mean(axis=1)
        if merge == "product" and traced is not None:
            products = [best_of_rank(p, self.rank_max, self.settings.precision)
                        for p in mean_products(self.settings, self.layout, uploads)]  # fmt: skip
            merged = own_factors(products, self.settings, self.layout, np.asarray(traced))
        changes = base_changes(self.settings, self.layout, uploads, merged, self.rank_max) if self.replay.base else []
        return ServerStep(merged, weights, changes)

    def traced_round(self, number: int, events: list[Event]) -> list[torch.Tensor]:
        """Merges the traced uploads and compares weights and new global with the trace; returns the base after it."""
        previous, new = self.trace.global_adapter(number - 1), self.trace.global_adapter(number)
        if previous is None or new is None:
            self.report.notes.append(f"the trace holds no global adapter of round {number}: aggregation not checked")
            return self.replay.base_now
        kept = [event for event in events if not event.dropped]
        uploads = [self.upload(e, self.trace.received(e), e.lora_rank_before, self.trace.sent(e), e.lora_rank_after)
                   for e in kept]  # fmt: skip
        step = self.server(number, events, previous, uploads, self.optimizer, new)
        by_event = {event.index: float(weight) for event, weight in zip(kept, step.weights, strict=True)}
        for event in events:
            difference = abs(by_event.get(event.index, 0.0) - event.weight)
            self.report.difference("aggregation weight, absolute", difference, event.place())
        if self.settings.policy("merge") == "product" and uploads:
            self._compare_products(number, uploads, new)
        else:
            value, where = relative_difference(step.glob, new, self.layout, self.rank_max)
            self.report.difference(FROM_UPLOADS, value, f"round {number} {where}")
        return Base.changed(self.replay.base_now, step.base_changes) if self.replay.base else []

    def _compare_products(self, number: int, uploads: list[Upload], new: np.ndarray) -> None:
        """B A of the new global is the best approximation of its rank; its factors have the form of factor_split."""
        rule, scale = self.settings.policy("factor_split"), self.settings.scale(self.rank_max)
        products = mean_products(self.settings, self.layout, uploads)
        for (name, _, _), matrix, (a, bt) in zip(
            self.layout, products, split(np.asarray(new), self.layout, self.rank_max), strict=True
        ):
            best = best_of_rank(matrix, self.rank_max, self.settings.precision)
            value = product_difference(best, scale * bt.T @ a)
            self.report.difference(FROM_UPLOADS, value, f"round {number} product of {name}")
            self.report.difference(FORM, split_difference(rule, a, bt), f"round {number} {name}")
