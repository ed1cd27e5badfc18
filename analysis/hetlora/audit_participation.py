"""One participation in the replay: what the client gets, trains and sends, by the method's policies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetlora.audit_client import ClientTrainer, Participation, Task
from hetlora.audit_config import Settings
from hetlora.audit_data import Prepared, Window, batches, steps_per_epoch
from hetlora.audit_methods import (
    Masks,
    Scores,
    changed_rows,
    factor_masks,
    first_frozen_change,
    score,
    scored_masks,
    to_sent,
)  # fmt: skip
from hetlora.audit_report import Report
from hetlora.audit_trace import Event, Trace, relative_difference, resize, select

#: Two numbers that agree to this are a tie in rounding: either decision is right.
TIE = {"fp32": 1e-5, "fp64": 1e-12}
FROZEN, CHOSEN = "frozen entries unchanged", "trained slots as chosen"


@dataclass(frozen=True)
class Start:
    """Where a participation starts."""

    event: Event
    received: np.ndarray  #: canonical form
    size: int  #: slots of `received`
    lora_rank: int  #: the client's
    plan: list[list[Window]]  #: the batch of every local step
    head: np.ndarray | None = None  #: the classification head received


class Participations:
    """Trains clients for the replay and for the own chain, and compares the former with the trace."""

    def __init__(self, trainer: ClientTrainer, data: Prepared, trace: Trace, report: Report) -> None:
        self.trainer, self.data, self.trace, self.report = trainer, data, trace, report
        self.settings: Settings = trainer.settings
        self.layout = trainer.layout
        self.initial: np.ndarray | None = None
        self.ties = 0

    def train(self, start: Start, compare: bool) -> Participation:
        """Trains the client; `sent` of the result is what it sends. `compare`: the masks are held against the trace."""
        number, settings = start.event.round, self.settings
        reference = None
        if settings.get("strategy.prune_reference", "received") == "initial":
            reference = resize(self.initial, self.layout, int(settings.get("lora.rank_max", 32)), start.size)
        masks = self._masks(start, compare)
        task = Task(start.received, start.size, start.plan, settings.learning_rate(number), reference, masks,
                    settings.prox_mu(number), start.head, settings.head_learning_rate(number))  # fmt: skip
        result = self.trainer.train(task)
        result.masks = masks
        if result.finite and len(start.event.slots) and settings.policy("receive") == "all":
            result.sent = to_sent(settings, self.layout, start.event, result.trained, start.size)
            result.lora_rank_after = len(start.event.slots)
        return result

    def _masks(self, start: Start, compare: bool) -> Masks:
        event, settings = start.event, self.settings
        if settings.policy("slot_select") != "scored":
            return factor_masks(settings, self.layout, event, start.size, event.round)
        trained = settings.trained_factors(event.round)
        windows = self.data.client_windows(event.client)
        epoch = batches(windows, settings, event.client, event.round, steps_per_epoch(settings, len(windows)))
        everything = [(np.full(start.size, trained[0]), np.full(start.size, trained[1])) for _ in self.layout]
        first = self.trainer.train(Task(start.received, start.size, epoch, settings.learning_rate(event.round), None,
                                        everything, settings.prox_mu(event.round), start.head,
                                        settings.head_learning_rate(event.round)))  # fmt: skip
        if first.trained is None:
            return everything
        values = score(self.layout, start.received, first.trained, start.size, trained)
        scores = Scores(values, start.lora_rank * len(self.layout))
        chosen = scores.mask()
        if compare and not event.dropped:
            changed = np.array([a | b for a, b in changed_rows(self.layout, self.trace.received(event),
                                                               self.trace.sent(event), start.size)])  # fmt: skip
            same = not (changed & ~chosen).any()
            if not same and changed.sum() == chosen.sum() and scores.is_tie(changed, TIE[settings.precision]):
                chosen, same, self.ties = changed, True, self.ties + 1
            self.report.equal(CHOSEN, same, f"{event.place()}: {int((changed & ~chosen).sum())} others")
        return scored_masks(self.layout, chosen, trained)

    def replay(self, event: Event, plan: list[list[Window]]) -> Participation:
        """From the traced received adapter, compared with the trace in every respect."""
        report, place = self.report, event.place()
        result = self.train(
            Start(event, self.trace.received(event), event.lora_rank_before, event.lora_rank, plan,
                  self.trace.global_head(event.round - 1)), compare=True,
        )  # fmt: skip
        report.equal("dropped clients equal", event.dropped == (not result.finite), place)
        if event.dropped or not result.finite:
            result.lora_rank_after = event.lora_rank_before
            return result
        steps = self.trace.steps(event)
        for step, ours in zip(steps, result.losses, strict=False):
            report.relative("step loss, relative", ours, step.loss, f"{place} step {step.number}")
        counts = [step.n_loss_tokens for step in steps]
        report.equal("windows equal", counts == result.n_loss_tokens, f"{place}: n_loss_tokens")
        if result.losses:
            report.relative("step loss, relative", result.losses[0], event.loss_first, f"{place} loss_first")
            report.relative("step loss, relative", result.losses[-1], event.loss_last, f"{place} loss_last")
        gap = abs(result.tail_after - result.tail_before)
        tie = 0 < gap <= TIE[self.settings.precision] * max(result.tail_before, result.tail_after)
        tie = tie and result.lora_rank_after != event.lora_rank_after
        if tie and event.lora_rank_after in (event.lora_rank_before, self.settings.tail_start(event.lora_rank_before)):
            result.lora_rank_after = event.lora_rank_after
            result.sent = resize(result.trained, self.layout, event.lora_rank_before, event.lora_rank_after)
            self.ties += 1
        same = result.lora_rank_after == event.lora_rank_after
        report.equal("lora_ranks equal", same, f"{place}: after {event.lora_rank_after} ({result.lora_rank_after})")
        self._compare_sent(event, result)
        return result

    def _compare_sent(self, event: Event, result: Participation) -> None:
        """Sent adapter per matrix, on the slots that both sent; the same for the change made by training; and that
        nothing changed, bit for bit, which must not train."""
        layout, r = self.layout, min(result.lora_rank_after, event.lora_rank_after)
        ours = resize(result.sent, layout, result.lora_rank_after, r)
        theirs = resize(self.trace.sent(event), layout, event.lora_rank_after, r)
        value, where = relative_difference(ours, theirs, layout, r)
        self.report.difference("sent adapter, per matrix", value, f"{event.place()} {where}")
        received = self.trace.received(event)
        if event.slots and event.lora_rank_before > event.lora_rank_after:
            received = select(received, layout, event.lora_rank_before, event.slots)
        else:
            received = resize(received, layout, event.lora_rank_before, r)
        if FROZEN in self.report.checks:
            train_a, train_b = self.settings.trained_factors(event.round)
            masks = [(np.full(r, train_a), np.full(r, train_b)) for _ in layout]
            if self.settings.policy("slot_select") == "scored":
                masks = result.masks
            where = first_frozen_change(layout, masks, received, theirs, r)
            self.report.equal(FROZEN, not where, f"{event.place()} {where}")
        value, where = relative_difference(ours - received, theirs - received, layout, r)
        self.report.difference("sent minus received, per matrix", value, f"{event.place()} {where}")
