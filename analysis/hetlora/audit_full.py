"""The replay of a run that trained all weights of the base (`trainable = base`): stock `transformers`, torch.optim.

The trace of such a run holds the steps of every client (losses and windows) and the weights after every round, not
what each client sent: so a round is replayed as a whole, from the traced weights before it to those after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from hetlora.audit_client import ClientTrainer, mean_nll
from hetlora.audit_config import AuditError, Settings, read_settings
from hetlora.audit_data import Prepared, Window
from hetlora.audit_evaluate import ROWS, read_rows
from hetlora.audit_model import base_folder, float64_parts, load_base
from hetlora.audit_replay import Options
from hetlora.audit_report import Report
from hetlora.audit_schedule import COHORTS, RATE, WINDOWS, Schedule
from hetlora.audit_trace import Event, Trace

START, DROPPED, LOSS = "weights of round 0 are the base", "dropped clients equal", "step loss, relative"
WEIGHT, AFTER, CHANGE = "aggregation weight, absolute", "weights after the round, per tensor", "change, per tensor"
CHAIN, CHECKPOINT = "own chain: weights, per tensor", "weights of the last checkpoint equal"

Weights = dict[str, torch.Tensor]  #: by parameter name; a tied head with the embedding


@dataclass
class Trained:
    """What one client did in one round."""

    losses: list[float] = field(default_factory=list)
    n_loss_tokens: list[int] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)
    finite: bool = True


class FullTrainer(ClientTrainer):
    """Trains all parameters of the model itself."""

    def __init__(self, base: torch.nn.Module, settings: Settings, data: Prepared) -> None:
        super().__init__(base, [], settings, data)
        self.model = base
        self.parameters: Weights = dict(base.named_parameters())

    def load(self, weights: Weights) -> None:
        """Sets all parameters."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def train_all(self, start: Weights, plan: list[list[Window]], learning_rate: float) -> Trained:
        """One participation, with a fresh optimiser."""
        self.load(start)
        flat = list(self.parameters.values())
        for parameter in flat:
            parameter.requires_grad_(True)
        optimizer = self._optimizer(flat, learning_rate)
        clip = float(self.settings.get("local.clip_norm", 0.0))
        out = Trained()
        for batch in plan:
            optimizer.zero_grad()
            count, loss = sum(len(window.positions) for window in batch), 0.0
            with float64_parts(self.dtype):
                for window in batch:
                    nll = self._nll(window)
                    (nll / count).backward()
                    loss += float(nll.detach()) / count
            if clip > 0:
                torch.nn.utils.clip_grad_norm_(flat, clip)
            optimizer.step()
            out.losses.append(loss)
            out.n_loss_tokens.append(count)
        out.weights = {name: parameter.detach().double().clone() for name, parameter in self.parameters.items()}
        for parameter in flat:
            parameter.requires_grad_(False)
            parameter.grad = None
        changes = (out.weights[name] - start[name].double() for name in start)
        untouched = (torch.isnan(start[name]).sum() for name in start)  # a base may hold NaN where nobody looks
        bad = ((~torch.isfinite(change)).sum() for change in changes)
        out.finite = bool(np.isfinite(out.losses).all()) and all(
            int(n) <= int(known) for n, known in zip(bad, untouched, strict=True)
        )
        return out


class FullReplay:
    """One audit of one run folder; `run()` gives the report."""

    def __init__(self, run_dir: Path, options: Options) -> None:
        self.run_dir, self.options = run_dir, options
        self.settings: Settings = read_settings(run_dir)
        self.trace = Trace(run_dir / "trace.h5")
        self.data = Prepared(options.data or self.settings.get("data.path", ""), self.settings)
        self.dtype = torch.float64 if self.settings.precision == "fp64" else torch.float32
        self.report = self._declare()
        self.schedule = Schedule(self.settings, self.data, self.trace, self.report)
        self.schedule.check_weights_are_known()
        model = load_base(base_folder(options.model or self.settings.get("model.path", "")), self.dtype)
        self.trainer = FullTrainer(model, self.settings, self.data)
        self.base: Weights = {name: p.detach().clone() for name, p in self.trainer.parameters.items()}
        self.rows, self.windows = self._evaluated() if options.evaluate else ({}, [])

    def _declare(self) -> Report:
        report, options = Report(), self.options
        for name in (START, COHORTS, WINDOWS, DROPPED):
            report.declare(name, 0.0, "equal")
        for name in (RATE, WEIGHT, LOSS, AFTER):
            report.declare(name, options.tolerance)
        # AdamW in fp32: where a gradient is nearly 0, rounding decides the sign of a whole step.
        exact = self.settings.precision == "fp64"
        sgd = self.settings.get("local.optimizer", "adamw") == "sgd"
        report.declare(CHANGE, options.tolerance if exact else max(options.tolerance, 1e-2) if sgd else None)
        report.declare(CHAIN, options.tolerance if options.chain else None)
        report.required |= {START, LOSS, AFTER}
        if options.evaluate:
            report.declare(ROWS, options.tolerance)
            report.declare(CHECKPOINT, 0.0, "equal")
            report.required.add(ROWS)
        return report

    def _evaluated(self) -> tuple[dict[int, float], list[Window]]:
        if int(self.settings.get("evaluation.sequences", 0) or 0) > 0:
            raise AuditError(
                f"evaluation.sequences = {self.settings.get('evaluation.sequences')} cannot be replayed (the program "
                f"draws the subset) - {self.run_dir} - audit without --evaluate or with all sequences", 2,
            )  # fmt: skip
        part = str(self.settings.get("evaluation.part", "valid"))
        return read_rows(self.run_dir), self.data.evaluation_windows(part)

    def traced(self, number: int) -> Weights:
        """The weights after a round, as the program traced them."""
        file = self.run_dir / "trace_weights" / f"round_{number:06}" / "model.safetensors"
        if not file.is_file():
            raise AuditError(f"the weights after round {number} are not in the trace - {file} - run it again with "
                             "output.trace=true")  # fmt: skip
        weights = load_file(file)
        if weights.keys() != self.base.keys():
            raise AuditError(f"the traced weights are not those of the base model - {file} - give it with --model DIR")
        return weights

    def run(self) -> Report:
        """Replays the rounds asked for."""
        report = self.report
        rounds = sorted({event.round for event in self.trace.events})
        rounds = rounds[: self.options.rounds] if self.options.rounds else rounds
        before = own = self.traced(0)
        for name, tensor in before.items():
            same = torch.equal(tensor.nan_to_num(), self.base[name].nan_to_num())
            report.equal(START, same, name)
        self._evaluate(0, before)
        whole = self.options.clients == 0
        n_replayed = 0
        for number in rounds:
            events = [event for event in self.trace.events if event.round == number]
            self.schedule.cohort(number, events)
            plans = {}
            trained = {}
            for event in events if whole else events[: self.options.clients]:
                self.schedule.learning_rate(event)
                plans[event.client] = self.schedule.batches(event)
                trained[event.client] = self._client(event, before, plans[event.client])
            n_replayed += len(trained)
            after = self.traced(number)
            if whole:
                self._compare(number, self._server(events, before, trained), before, after)
                own = self._chain(number, events, own, before, trained, plans)
                self._difference(CHAIN, own, after, f"round {number}")
            self._evaluate(number, after)
            before = after
        if not whole:
            report.required.discard(AFTER)
            report.notes.append("the weights after a round need every client of it: not checked with --clients")
        if self.options.evaluate:
            self._checkpoint()
        report.facts |= {"rounds replayed": len(rounds), "participations replayed": n_replayed,
                         "precision": self.settings.precision}  # fmt: skip
        report.notes.append("every round starts from the traced weights; the line 'own chain' from round 0 alone")
        return report

    def _client(self, event: Event, before: Weights, plan: list[list[Window]]) -> Trained:
        report, place = self.report, event.place()
        result = self.trainer.train_all(before, plan, self.settings.learning_rate(event.round))
        report.equal(DROPPED, event.dropped == (not result.finite), place)
        if event.dropped or not result.finite:
            return result
        steps = self.trace.steps(event)
        for step, ours in zip(steps, result.losses, strict=False):
            report.relative(LOSS, ours, step.loss, f"{place} step {step.number}")
        report.equal(WINDOWS, [step.n_loss_tokens for step in steps] == result.n_loss_tokens, f"{place}: n_loss_tokens")
        return result

    def _weights_of(self, events: list[Event]) -> dict[int, float]:
        """Normalised weight of every client that was not dropped."""
        uniform = self.settings.policy("client_weight") == "uniform"
        own = {e.client: 1.0 if uniform else float(len(self.data.client_windows(e.client)))
               for e in events if not e.dropped}  # fmt: skip
        return {client: weight / sum(own.values()) for client, weight in own.items()}

    def _server(self, events: list[Event], before: Weights, trained: dict[int, Trained]) -> Weights:
        """before + the weighted mean of the changes, rounded to the precision of the run."""
        weights = self._weights_of(events)
        for event in events:
            self.report.difference(WEIGHT, abs(weights.get(event.client, 0.0) - event.weight), event.place())
        out = {}
        for name, tensor in before.items():
            start = tensor.double()
            change = sum(weight * (trained[client].weights[name] - start) for client, weight in weights.items())
            out[name] = (start + change).to(self.dtype)
        return out

    def _compare(self, number: int, ours: Weights, before: Weights, after: Weights) -> None:
        self._difference(AFTER, ours, after, f"round {number}")
        for name in after:
            start = before[name].double()
            self._one(CHANGE, ours[name].double() - start, after[name].double() - start, f"round {number} {name}")

    def _difference(self, check: str, ours: Weights, theirs: Weights, where: str) -> None:
        for name in theirs:
            self._one(check, ours[name].double(), theirs[name].double(), f"{where} {name}")

    def _one(self, check: str, ours: torch.Tensor, theirs: torch.Tensor, where: str) -> None:
        """||ours - theirs|| / ||theirs|| over what is a number in the program's; the rest must not be one in ours."""
        known = ~torch.isnan(theirs)
        if not torch.equal(known, ~torch.isnan(ours)):
            self.report.difference(check, float("inf"), where)
            return
        distance, norm = float((ours - theirs)[known].norm()), float(theirs[known].norm())
        self.report.difference(check, 0.0 if distance == 0 else distance / norm if norm else float("inf"), where)

    def _chain(
        self, number: int, events: list[Event], own: Weights, before: Weights, trained: dict[int, Trained], plans: dict
    ) -> Weights:
        """The round from our own weights; where these are the traced ones, what was trained already."""
        if any(not torch.equal(own[name].nan_to_num(), before[name].nan_to_num()) for name in own):
            rate = self.settings.learning_rate(number)
            trained = {e.client: self.trainer.train_all(own, plans[e.client], rate) for e in events}
        return self._server(events, own, trained)

    def _evaluate(self, number: int, weights: Weights) -> None:
        if number in self.rows:
            self.trainer.load(weights)
            self.report.relative(ROWS, mean_nll(self.trainer, self.windows), self.rows[number], f"round {number}")

    def _checkpoint(self) -> None:
        """What the program itself keeps of the last round is what it traced."""
        last = max(self.trace.global_rounds)
        file = self.run_dir / "checkpoint" / f"round_{last:06}" / "state.safetensors"
        if not file.is_file():
            self.report.notes.append("no checkpoint of the last round: the program's own weights were not compared")
            return
        stored, traced = load_file(file), self.traced(last)
        for name, tensor in traced.items():
            same = torch.equal(stored[f"base/{name}"].reshape(tensor.shape).nan_to_num(), tensor.nan_to_num())
            self.report.equal(CHECKPOINT, same, name)
