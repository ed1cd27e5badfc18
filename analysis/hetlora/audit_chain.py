"""The fully own chain: the run again from round 0, with nothing of the trace but what is the program's own draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hetlora.audit_client import Participation
from hetlora.audit_data import batches
from hetlora.audit_methods import Private, expected_received, received_size
from hetlora.audit_participation import Start
from hetlora.audit_products import Base, change_difference
from hetlora.audit_server import ServerOptimizer
from hetlora.audit_trace import Event, join, relative_difference, resize, split

if TYPE_CHECKING:
    from hetlora.audit_replay import Replay

RECEIVED, GLOBAL = "own chain: received, per matrix", "own chain: global, per matrix"
RANKS, BASE = "own chain: lora_ranks equal", "own chain: change of the base, per matrix"


class Chain:
    """Our clients, our prunes, our server, round after round. Drawn numbers (slots, fresh adapters) are the trace's."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.settings, self.layout, self.rank_max = replay.settings, replay.layout, replay.rank_max
        self.ranks: dict[int, int] = {}  # client -> its lora_rank after its latest participation
        self.glob = replay.initial
        self.private = Private({})
        self.optimizer = ServerOptimizer(replay.settings)
        self.base = replay.base.start if replay.base else []
        self.heads: list[tuple[Event, np.ndarray]] = []

    def round(self, number: int, events: list[Event], results: dict[int, Participation | None]) -> None:
        """One round from our own global alone; reuses a replay that started from identical numbers."""
        replay, report = self.replay, self.replay.report
        if replay.base:
            replay.base.load(self.base)
        uploads, self.heads = [], []
        head = replay.heads.own if replay.heads else None
        for event in events:
            rank = min(self.ranks.get(event.client, event.lora_rank), self.settings.lora_rank_cap(number))
            report.equal(RANKS, rank == event.lora_rank, f"{event.place()} before")
            received, size = self._received(event, rank)
            result = results[event.index]
            identical = size == event.lora_rank_before and np.array_equal(received, replay.trace.received(event))
            identical = identical and (head is None or np.array_equal(head, replay.trace.global_head(number - 1)))
            if not identical or (replay.base and not self._same_base()):
                windows = replay.data.client_windows(event.client) if replay.natural else []
                plan = (
                    batches(windows, self.settings, event.client, number) if windows else replay.schedule.batches(event)
                )
                result = replay.clients.train(Start(event, received, size, rank, plan, head), compare=False)
            self.ranks[event.client] = rank
            if event.dropped or not result.finite:
                continue
            if replay.prunes:
                self.ranks[event.client] = result.lora_rank_after
            report.equal(RANKS, result.lora_rank_after == event.lora_rank_after, f"{event.place()} after")
            if replay.personal:
                self.private.keep(event.client, result.sent, self.layout, result.lora_rank_after)
            uploads.append(replay.merges.upload(event, received, size, result.sent, result.lora_rank_after))
            self.heads.append((event, result.head))
        self._server(number, events, uploads)

    def _same_base(self) -> bool:
        return all(torch.equal(x, y) for x, y in zip(self.base, self.replay.base_before, strict=True))

    def _received(self, event: Event, rank: int) -> tuple[np.ndarray, int]:
        size = received_size(self.settings, event, self.rank_max, rank)
        traced = np.asarray(self.replay.trace.received(event), dtype=np.float64)
        own = expected_received(self.settings, self.layout, event, rank, self.glob, self.private)
        if own is None:
            return traced, event.lora_rank_before
        dtype = self.replay.dtype
        own = join([tuple(torch.from_numpy(np.array(x)).to(dtype).double().numpy() for x in pair)
                    for pair in split(own, self.layout, size)])  # fmt: skip
        shared = min(size, event.lora_rank_before)
        value, where = relative_difference(
            resize(own, self.layout, size, shared), resize(traced, self.layout, event.lora_rank_before, shared),
            self.layout, shared,
        )  # fmt: skip
        self.replay.report.difference(RECEIVED, value, f"{event.place()} {where}")
        return own, size

    def _server(self, number: int, events: list[Event], uploads: list) -> None:
        replay, report = self.replay, self.replay.report
        if replay.heads:
            replay.heads.own_round(number, self.heads)
        traced = replay.trace.global_adapter(number)
        step = replay.merges.server(number, events, self.glob, uploads, self.optimizer, traced)
        self.glob = step.glob
        if traced is not None:
            value, where = relative_difference(self.glob, traced, self.layout, self.rank_max)
            report.difference(GLOBAL, value, f"round {number} {where}")
        if replay.base and uploads:
            self.base = Base.changed(self.base, step.base_changes)
            for (name, _, _), mine, theirs, start in zip(
                self.layout, self.base, replay.base_now, replay.base.start, strict=True
            ):
                report.difference(BASE, change_difference(mine, theirs, start), f"round {number} {name}")
