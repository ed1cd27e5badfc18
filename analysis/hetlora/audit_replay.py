"""The replay itself: goes through a traced run event by event and fills the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hetlora.audit_chain import BASE, GLOBAL, RANKS, RECEIVED, Chain
from hetlora.audit_client import ClientTrainer, Participation
from hetlora.audit_config import AuditError, Settings, read_settings
from hetlora.audit_data import Prepared
from hetlora.audit_heads import Heads
from hetlora.audit_merge import FORM, FROM_UPLOADS, Merges
from hetlora.audit_methods import Private, expected_received, received_size, slots_are_valid
from hetlora.audit_model import adapter_layout, base_folder, load_base
from hetlora.audit_participation import CHOSEN, FROZEN, Participations
from hetlora.audit_products import Base
from hetlora.audit_report import Report
from hetlora.audit_schedule import COHORTS, RATE, WINDOWS, Schedule
from hetlora.audit_start import peft_slots
from hetlora.audit_trace import Event, Trace, n_parameters, relative_difference, split

SLOTS, FRESH = "slots as specified", "fresh adapters as specified"


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
        self.data = Prepared(options.data or self.settings.get("data.path", ""), self.settings)
        self.report = self._declare(options)
        self.schedule = Schedule(self.settings, self.data, self.trace, self.report)
        self.schedule.check_weights_are_known()
        self.natural = self.schedule.natural
        self.model_path = base_folder(options.model or self.settings.get("model.path", ""))
        self.dtype = torch.float64 if self.settings.precision == "fp64" else torch.float32
        base = self.load_base()
        self.layout = adapter_layout(base, str(self.settings.get("lora.targets", "q_proj,v_proj")))
        if self.layout != self.trace.layout:
            raise AuditError(
                f"the trace's adapted matrices are not those of lora.targets = {self.settings.get('lora.targets')} in "
                f"canonical order ({len(self.trace.layout)} traced, {len(self.layout)} expected) - {run_dir}/trace.h5"
            )
        policy = self.settings.policy
        if policy("slot_select") == "scored" and not self.natural:
            raise AuditError(
                "slot_select = scored with data.partition other than natural cannot be replayed (the first pass over a "
                "client's data is not in the trace) - audit a run with partition natural", 2,
            )  # fmt: skip
        # a base that changes, as the traced uploads make it: at the start of the round and after it
        self.base = Base(base, self.layout) if policy("base_update") != "none" else None
        self.base_before = self.base_now = self.base.start if self.base else []
        self.trainer = ClientTrainer(base, self.layout, self.settings, self.data)
        self.rank_max = int(self.settings.get("lora.rank_max", 32))
        self.prunes = policy("local_extra") == "tail_prune"
        self.personal = policy("shared_factors") == "a"
        self.heads = Heads(self) if self.settings.labels else None
        self.clients = Participations(self.trainer, self.data, self.trace, self.report)
        self.last_rank: dict[int, int] = {}  # client -> its lora_rank after its latest participation, as traced
        self.private = Private({})
        self.merges = Merges(self)
        self.initial: np.ndarray | None = None
        self.seen: set[bytes] = set()  # fresh adapters, by their A of the first matrix
        self.n_partial = 0
        self.choices: set[tuple[int, ...]] = set()  # slots chosen by clients that do not have all
        self.after_round: Callable[[int], None] | None = None  # for the evaluation: the base is that of the round

    def _declare(self, options: Options) -> Report:
        report, tolerance = Report(), options.tolerance
        policy = self.settings.policy
        for name in ("initial adapter as specified", COHORTS, "lora_ranks equal", WINDOWS, "dropped clients equal"):
            report.declare(name, 0.0, "equal")
        report.declare(RATE, tolerance)
        report.declare("aggregation weight, absolute", tolerance)
        for name in ("received vs traced global", "step loss, relative", "sent adapter, per matrix", FROM_UPLOADS):
            report.declare(name, tolerance)
            report.required.add(name)
        frozen = policy("trainable") != "both" or policy("slot_select") == "scored"
        extra = {SLOTS: policy("slot_select") != "prefix", FRESH: policy("merge") == "stack", FROZEN: frozen,
                 CHOSEN: policy("slot_select") == "scored"}  # fmt: skip
        for name in (name for name, is_used in extra.items() if is_used):
            report.declare(name, 0.0, "equal")
            report.required.add(name)
        if policy("merge") == "stack":
            report.required.discard("received vs traced global")
        if policy("merge") == "product":
            report.declare(FORM, tolerance)
            report.required.add(FORM)
        report.declare("sent minus received, per matrix", None)
        chain = tolerance if options.chain else None
        report.declare(RECEIVED, chain)
        report.declare(GLOBAL, chain)
        if policy("base_update") != "none":
            report.declare(BASE, chain)
        report.declare(RANKS, 0.0 if options.chain else None, "equal")
        return report

    def run(self) -> Report:
        """Replays the rounds asked for."""
        rounds = sorted({event.round for event in self.trace.events})
        rounds = rounds[: self.options.rounds] if self.options.rounds else rounds
        self._initial()
        chain = None
        if self.options.clients == 0 and rounds == list(range(1, len(rounds) + 1)):
            chain = Chain(self)
        else:
            self.report.notes.append("the fully own chain needs every participation from round 1 on: not run")
        prunes = ours = replayed = 0
        if self.after_round:
            self.after_round(0)
        for number in rounds:
            events = [event for event in self.trace.events if event.round == number]
            self.schedule.cohort(number, events)
            results: dict[int, Participation | None] = {}
            self._load_base()
            for i, event in enumerate(events):
                self._before(event)
                pruned = self.prunes and not event.dropped
                prunes += pruned and event.lora_rank_after < event.lora_rank
                results[event.index] = None
                if self.options.clients == 0 or i < self.options.clients:
                    result = self.clients.replay(event, self.schedule.batches(event))
                    results[event.index] = result
                    replayed += 1
                    ours += pruned and result.lora_rank_after < event.lora_rank
                    if self.heads and not event.dropped and result.finite:
                        self.heads.sent(event, result)
                self.last_rank[event.client] = event.lora_rank_after if pruned else event.lora_rank
                if self.personal and not event.dropped:
                    self.private.keep(event.client, self.trace.sent(event), self.layout, event.lora_rank_after)
            self.base_now = self.merges.traced_round(number, events)
            if self.heads:
                self.heads.traced_round(number, events)
            if chain:
                chain.round(number, events, results)
            if self.after_round:
                self._load_base()
                self.after_round(number)
        if self.settings.policy("slot_select") == "random" and self.n_partial > 5:
            self.report.equal(SLOTS, len(self.choices) > 1, f"the same slots in all {self.n_partial} participations")
        self.report.facts |= {
            "rounds replayed": len(rounds), "participations replayed": replayed, "prunes in the trace": prunes,
            "prunes in the replay": ours, "precision": self.settings.precision,
        }  # fmt: skip
        if self.clients.ties:
            self.report.notes.append(
                f"{self.clients.ties} decisions (prunes, chosen slots) were ties in rounding: the trace's were taken"
            )
        self.report.notes.append(
            "client training starts from the traced received adapter (rounding of earlier rounds doesn't add up); "
            "the lines 'own chain' use nothing of the trace but round 0 and what the program draws"
        )
        return self.report

    def load_base(self) -> torch.nn.Module:
        """The stock model anew."""
        return load_base(self.model_path, self.dtype, self.data.n_labels if self.settings.labels else 0)

    def _load_base(self) -> None:
        self.base_before = self.base_now
        if self.base:
            self.base.load(self.base_now)

    def _initial(self) -> None:
        """Round 0: B = 0 and |A| <= 1/sqrt(d_in), filled like a uniform distribution (kaiming_uniform).

        With model.adapter: that adapter's slots first, to the last bit, and such ones after them.
        """
        self.initial = self.trace.global_adapter(0)
        if self.initial is None:
            raise AuditError(f"the trace holds no global adapter of round 0 - {self.run_dir}/trace.h5 - run again")
        self.initial = np.asarray(self.initial, dtype=np.float64)
        self.clients.initial = self.initial
        given = str(self.settings.get("model.adapter", ""))
        slots = peft_slots(Path(given), self.layout, self.settings.scale(self.rank_max)) if given else None
        for m, (a, bt) in enumerate(split(self.initial, self.layout, self.rank_max)):
            name, known = self.layout[m][0], 0
            if slots:
                known = len(slots[m][0])
                for factor, start in zip((a, bt), slots[m], strict=True):
                    start = start if self.dtype == torch.float64 else start.astype(np.float32).astype(np.float64)
                    same = np.array_equal(factor[:known], start)
                    self.report.equal("initial adapter as specified", same, f"{name} is not that of model.adapter")
            self.report.equal("initial adapter as specified", not bt[known:].any(), f"B of {name} is not 0")
            drawn = known == self.rank_max or self._is_drawn(a[known:])
            self.report.equal("initial adapter as specified", drawn, f"A of {name}")

    def _before(self, event: Event) -> None:
        """What holds before training: lora_rank, sizes, slots, learning rate, received adapter."""
        low, high = int(self.settings.get("lora.rank_min", 2)), self.settings.lora_rank_cap(event.round)
        expected = self.last_rank.get(event.client)
        good = low <= event.lora_rank <= high if expected is None else event.lora_rank == min(expected, high)
        self.report.equal("lora_ranks equal", good, f"{event.place()}: before {event.lora_rank} ({expected})")
        size = received_size(self.settings, event, self.rank_max, event.lora_rank)
        sent = size if self.settings.policy("slot_select") == "scored" else event.lora_rank
        good = event.lora_rank_before == size and (self.prunes or event.dropped or event.lora_rank_after == sent)
        self.report.equal("lora_ranks equal", good, f"{event.place()}: adapters of other sizes than {size}, {sent}")
        self.schedule.learning_rate(event)
        before = self.trace.global_adapter(event.round - 1)
        if SLOTS in self.report.checks:
            good = slots_are_valid(event, self.settings, self.layout, before)
            self.report.equal(SLOTS, good, f"{event.place()}: {list(event.slots)}")
            if event.lora_rank < self.rank_max:
                self.n_partial += 1
                self.choices.add(tuple(event.slots))
        if before is None:
            return
        ours = expected_received(self.settings, self.layout, event, event.lora_rank, before, self.private)
        if ours is None:
            self._fresh(event)
        elif len(ours) == n_parameters(self.layout, event.lora_rank_before):
            value, where = relative_difference(ours, self.trace.received(event), self.layout, event.lora_rank_before)
            self.report.difference("received vs traced global", value, f"{event.place()} {where}")

    def _fresh(self, event: Event) -> None:
        """An adapter drawn for this client and round: B = 0, and an A like no other."""
        received = split(self.trace.received(event), self.layout, event.lora_rank_before)
        good = all(not bt.any() and self._is_drawn(a) for a, bt in received)
        mark = np.ascontiguousarray(received[0][0][:1]).tobytes()
        self.report.equal(FRESH, good and mark not in self.seen, event.place())
        self.seen.add(mark)

    def _is_drawn(self, a: np.ndarray) -> bool:
        """Like a uniform distribution within +-1/sqrt(d_in) (kaiming_uniform), or at least not constant."""
        good = bool(np.isfinite(a).all() and a.std() > 0)
        if self.settings.get("lora.init", "kaiming_uniform") != "kaiming_uniform":
            return good
        # 6 standard errors of the standard deviation of n uniform numbers: sqrt(1 / 5n)
        bound = a.shape[1] ** -0.5
        spread = a.std() / (bound / 3**0.5) - 1.0
        return bool(good and np.abs(a).max() <= bound * (1 + 1e-6) and abs(spread) < 6 * (0.2 / a.size) ** 0.5)
