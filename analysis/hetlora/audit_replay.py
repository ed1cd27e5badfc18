"""The replay itself: goes through a traced run event by event and fills the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hetlora.audit_client import ClientTrainer, Participation
from hetlora.audit_config import AuditError, Settings, read_settings
from hetlora.audit_data import Prepared, Window, batches, steps_of
from hetlora.audit_model import adapter_layout, load_base
from hetlora.audit_report import Report
from hetlora.audit_server import Upload, aggregate
from hetlora.audit_trace import Event, Trace, join, relative_difference, resize, split

#: A prune whose two norms agree to this is a tie in rounding: either decision is right.
TIE = {"fp32": 1e-5, "fp64": 1e-12}


@dataclass(frozen=True)
class Options:
    """Command-line options of the audit."""

    rounds: int = 0  #: 0 = all
    clients: int = 0  #: participations replayed per round, 0 = all
    tolerance: float = 1e-4
    chain: bool = False
    evaluate: bool = False
    model: str = ""
    data: str = ""


class Replay:
    """One audit of one run folder; `report` is complete after `run()`."""

    def __init__(self, run_dir: Path, options: Options) -> None:
        self.run_dir, self.options = run_dir, options
        self.settings: Settings = read_settings(run_dir)
        self.trace = Trace(run_dir / "trace.h5")
        self.natural = self.settings.get("data.partition", "natural") == "natural"
        if not self.natural and self.settings.policy("client_weight") == "samples":
            raise AuditError(
                f"data.partition = {self.settings.get('data.partition')} with client_weight = samples cannot be "
                "replayed (the program draws which sequences a client holds) - audit a run with partition natural", 2,
            )  # fmt: skip
        self.data = Prepared(options.data or self.settings.get("data.path", ""), self.settings)
        model_path = Path(options.model or self.settings.get("model.path", ""))
        if not (model_path / "config.json").is_file():
            raise AuditError(f"base model not found - {model_path} (model.path) - give its folder with --model DIR")
        self.model_path = model_path
        self.dtype = torch.float64 if self.settings.precision == "fp64" else torch.float32
        base = load_base(model_path, self.dtype)
        self.layout = adapter_layout(base, str(self.settings.get("lora.targets", "q_proj,v_proj")))
        if self.layout != self.trace.layout:
            raise AuditError(
                f"the trace's adapted matrices are not those of lora.targets = {self.settings.get('lora.targets')} in "
                f"canonical order ({len(self.trace.layout)} traced, {len(self.layout)} expected) - {run_dir}/trace.h5"
            )
        self.trainer = ClientTrainer(base, self.layout, self.settings, self.data)
        self.rank_max = int(self.settings.get("lora.rank_max", 32))
        self.report = self._declare(options)
        self.last_rank: dict[int, int] = {}  # client -> lora_rank_after of its latest participation, as traced
        self.chain_rank: dict[int, int] = {}  # the same in the fully own chain
        self.chain_global: np.ndarray | None = None
        self.initial: np.ndarray | None = None

    @staticmethod
    def _declare(options: Options) -> Report:
        report, tolerance = Report(), options.tolerance
        for name in ("initial adapter as specified", "cohorts eligible", "lora_ranks equal", "windows equal",
                     "dropped clients equal"):  # fmt: skip
            report.declare(name, 0.0, "equal")
        report.declare("learning rate, relative", tolerance)
        report.declare("aggregation weight, absolute", tolerance)
        for name in ("received vs traced global", "step loss, relative", "sent adapter, per matrix",
                     "global from traced uploads, per matrix"):  # fmt: skip
            report.declare(name, tolerance)
            report.required.add(name)
        report.declare("sent minus received, per matrix", None)
        chain = tolerance if options.chain else None
        report.declare("own chain: received, per matrix", chain)
        report.declare("own chain: global, per matrix", chain)
        report.declare("own chain: lora_ranks equal", 0.0 if options.chain else None, "equal")
        return report

    def run(self) -> Report:
        """Replays the rounds asked for."""
        rounds = sorted({event.round for event in self.trace.events})
        rounds = rounds[: self.options.rounds] if self.options.rounds else rounds
        self._initial()
        chain = self.options.clients == 0 and rounds == list(range(1, len(rounds) + 1))
        if not chain:
            self.report.notes.append("the fully own chain needs every participation from round 1 on: not run")
            self.chain_global = None
        prunes = ours = ties = replayed = 0
        for number in rounds:
            events = [event for event in self.trace.events if event.round == number]
            self._cohort(number, events)
            results: dict[int, Participation | None] = {}
            for i, event in enumerate(events):
                self._before(event)
                prunes += event.lora_rank_after < event.lora_rank_before
                results[event.index] = None
                if self.options.clients == 0 or i < self.options.clients:
                    result, tie = self._client(event)
                    results[event.index] = result
                    replayed, ties = replayed + 1, ties + tie
                    ours += result.lora_rank_after < event.lora_rank_before
                self.last_rank[event.client] = event.lora_rank_after
            self._server(number, events)
            if self.chain_global is not None:
                self._chain(number, events, results)
        self.report.facts |= {
            "rounds replayed": len(rounds), "participations replayed": replayed, "prunes in the trace": prunes,
            "prunes in the replay": ours, "precision": self.settings.precision,
        }  # fmt: skip
        if ties:
            self.report.notes.append(f"{ties} prune decisions were ties within rounding and taken from the trace")
        self.report.notes.append(
            "client training starts from the traced received adapter (rounding of earlier rounds doesn't add up); "
            "the lines 'own chain' use nothing of the trace but round 0"
        )
        return self.report

    def _initial(self) -> None:
        """Round 0: B = 0 and |A| <= 1/sqrt(d_in), filled like a uniform distribution (kaiming_uniform)."""
        self.initial = self.trace.global_adapter(0)
        if self.initial is None:
            raise AuditError(f"the trace holds no global adapter of round 0 - {self.run_dir}/trace.h5 - run again")
        self.initial = np.asarray(self.initial, dtype=np.float64)
        self.chain_global = self.initial
        uniform = self.settings.get("lora.init", "kaiming_uniform") == "kaiming_uniform"
        for (name, _, d_in), (a, bt) in zip(self.layout, split(self.initial, self.layout, self.rank_max), strict=True):
            bound = d_in**-0.5
            self.report.equal("initial adapter as specified", not bt.any(), f"B of {name} is not 0")
            good = bool(np.isfinite(a).all() and a.std() > 0)
            if uniform:  # 6 standard errors of the standard deviation of n uniform numbers: sqrt(1 / 5n)
                spread = a.std() / (bound / 3**0.5) - 1.0
                good = good and np.abs(a).max() <= bound * (1 + 1e-6) and abs(spread) < 6 * (0.2 / a.size) ** 0.5
            self.report.equal("initial adapter as specified", good, f"A of {name}")

    def _cohort(self, number: int, events: list[Event]) -> None:
        """Nobody twice, no held-out client, nobody with too few windows, and as many as asked for."""
        clients = [event.client for event in events]
        good = len(set(clients)) == len(clients)
        if self.natural:
            minimum = max(1, int(self.settings.get("data.min_windows", 1)))
            eligible = {c for c in range(self.data.n_clients) if len(self.data.client_windows(c)) >= minimum}
            asked = int(self.settings.get("experiment.clients_per_round", 8)) or len(eligible)
            good = good and set(clients) <= eligible and len(clients) == min(asked, len(eligible))
        self.report.equal("cohorts eligible", good, f"round {number}")

    def _before(self, event: Event) -> None:
        """What holds before training: persistent lora_rank, learning rate, received adapter."""
        low, high = int(self.settings.get("lora.rank_min", 2)), self.rank_max
        expected = self.last_rank.get(event.client)
        good = low <= event.lora_rank_before <= high if expected is None else event.lora_rank_before == expected
        self.report.equal("lora_ranks equal", good, f"{event.place()}: before {event.lora_rank_before} ({expected})")
        rate = self.settings.learning_rate(event.round)
        self.report.relative("learning rate, relative", rate, event.learning_rate, f"round {event.round}")
        before = self.trace.global_adapter(event.round - 1)
        if before is not None:
            ours = resize(before, self.layout, self.rank_max, event.lora_rank_before)
            value, where = relative_difference(ours, self.trace.received(event), self.layout, event.lora_rank_before)
            self.report.difference("received vs traced global", value, f"{event.place()} {where}")

    def _batches(self, event: Event) -> list[list[Window]]:
        """Our own batch order, compared with the traced one; the traced one when ours isn't known or differs."""
        steps = self.trace.steps(event)
        own: list[list[Window]] = []
        if self.natural:
            windows = self.data.client_windows(event.client)
            own = batches(windows, self.settings, event.client, event.round) if windows else []
            keys = [[(w.sequence, w.number) for w in batch] for batch in own]
            traced = [step.windows for step in steps]
            # a dropped client may have stopped early
            same = (keys[: len(traced)] if event.dropped else keys) == traced
            same = same and event.n_steps == (len(traced) if event.dropped else steps_of(self.settings, len(windows)))
            self.report.equal("windows equal", same, event.place())
            if same:
                return own
        out = []
        for step in steps:
            found = [self.data.window(*key) for key in step.windows]
            if any(window is None for window in found):
                self.report.equal("windows equal", False, f"{event.place()} step {step.number}: no such window")
            out.append([window for window in found if window is not None])
        return [batch for batch in out if batch]

    def _train(self, received: np.ndarray, lora_rank: int, plan: list[list[Window]], number: int) -> Participation:
        reference = None
        if self.settings.get("strategy.prune_reference", "received") == "initial":
            reference = resize(self.initial, self.layout, self.rank_max, lora_rank)
        return self.trainer.train(received, lora_rank, plan, self.settings.learning_rate(number), reference)

    def _client(self, event: Event) -> tuple[Participation, bool]:
        """Replays one participation from the traced received adapter; returns it and whether its prune was a tie."""
        report, place = self.report, event.place()
        plan = self._batches(event)
        result = self._train(self.trace.received(event), event.lora_rank_before, plan, event.round)
        report.equal("dropped clients equal", event.dropped == (not result.finite), place)
        if event.dropped or not result.finite:
            result.lora_rank_after = event.lora_rank_before
            return result, False
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
        same = result.lora_rank_after == event.lora_rank_after
        report.equal("lora_ranks equal", same, f"{place}: after {event.lora_rank_after} ({result.lora_rank_after})")
        self._compare_sent(event, result)
        return result, tie

    def _compare_sent(self, event: Event, result: Participation) -> None:
        """Sent adapter per matrix, on the slots that both sent; and the same for the change made by training."""
        r = min(result.lora_rank_after, event.lora_rank_after)
        ours = resize(result.sent, self.layout, result.lora_rank_after, r)
        theirs = resize(self.trace.sent(event), self.layout, event.lora_rank_after, r)
        value, where = relative_difference(ours, theirs, self.layout, r)
        self.report.difference("sent adapter, per matrix", value, f"{event.place()} {where}")
        received = resize(self.trace.received(event), self.layout, event.lora_rank_before, r)
        value, where = relative_difference(ours - received, theirs - received, self.layout, r)
        self.report.difference("sent minus received, per matrix", value, f"{event.place()} {where}")

    def _upload(self, event: Event, received: np.ndarray, before: int, sent: np.ndarray, after: int) -> Upload:
        count = len(self.data.client_windows(event.client)) if self.natural else 0
        return Upload(np.asarray(received), before, np.asarray(sent), after, count)

    def _server(self, number: int, events: list[Event]) -> None:
        """Aggregates the traced uploads and compares weights and new global with the trace."""
        previous, new = self.trace.global_adapter(number - 1), self.trace.global_adapter(number)
        if previous is None or new is None:
            self.report.notes.append(f"the trace holds no global adapter of round {number}: aggregation not checked")
            return
        kept = [event for event in events if not event.dropped]
        uploads = [self._upload(e, self.trace.received(e), e.lora_rank_before, self.trace.sent(e), e.lora_rank_after)
                   for e in kept]  # fmt: skip
        ours, weights = aggregate(self.settings, self.layout, np.asarray(previous), self.rank_max, uploads)
        by_event = {event.index: float(weight) for event, weight in zip(kept, weights, strict=True)}
        for event in events:
            difference = abs(by_event.get(event.index, 0.0) - event.weight)
            self.report.difference("aggregation weight, absolute", difference, event.place())
        value, where = relative_difference(ours, new, self.layout, self.rank_max)
        self.report.difference("global from traced uploads, per matrix", value, f"round {number} {where}")

    def _chain(self, number: int, events: list[Event], results: dict[int, Participation | None]) -> None:
        """The same round from our own global alone; reuses a replay that started from identical numbers."""
        uploads, report = [], self.report
        for event in events:
            rank = self.chain_rank.get(event.client, event.lora_rank_before)
            received = resize(self.chain_global, self.layout, self.rank_max, rank)
            received = join([tuple(torch.from_numpy(x).to(self.dtype).double().numpy() for x in pair)
                             for pair in split(received, self.layout, rank)])  # fmt: skip
            report.equal("own chain: lora_ranks equal", rank == event.lora_rank_before, f"{event.place()} before")
            traced = np.asarray(self.trace.received(event))
            shared = min(rank, event.lora_rank_before)
            value, where = relative_difference(
                resize(received, self.layout, rank, shared),
                resize(traced, self.layout, event.lora_rank_before, shared), self.layout, shared,
            )  # fmt: skip
            report.difference("own chain: received, per matrix", value, f"{event.place()} {where}")
            result = results[event.index]
            if rank != event.lora_rank_before or not np.array_equal(received, traced):
                windows = self.data.client_windows(event.client) if self.natural else []
                plan = batches(windows, self.settings, event.client, number) if windows else self._batches(event)
                result = self._train(received, rank, plan, number)
            if event.dropped or not result.finite:
                self.chain_rank[event.client] = rank
                continue
            self.chain_rank[event.client] = result.lora_rank_after
            same = result.lora_rank_after == event.lora_rank_after
            report.equal("own chain: lora_ranks equal", same, f"{event.place()} after")
            uploads.append(self._upload(event, received, rank, result.sent, result.lora_rank_after))
        self.chain_global, _ = aggregate(self.settings, self.layout, self.chain_global, self.rank_max, uploads)
        traced_global = self.trace.global_adapter(number)
        if traced_global is not None:
            value, where = relative_difference(self.chain_global, traced_global, self.layout, self.rank_max)
            report.difference("own chain: global, per matrix", value, f"round {number} {where}")
