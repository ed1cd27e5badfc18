"""What a round's participations are, whatever is trained: the cohort, the learning rate, the windows of every step."""

from __future__ import annotations

from dataclasses import dataclass

from hetlora.audit_config import AuditError, Settings
from hetlora.audit_data import Prepared, Window, batches, steps_of
from hetlora.audit_report import Report
from hetlora.audit_trace import Event, Trace

COHORTS, WINDOWS, RATE = "cohorts eligible", "windows equal", "learning rate, relative"


@dataclass(frozen=True)
class Schedule:
    """Compares the plan of a traced run with our own, and gives the windows to train on."""

    settings: Settings
    data: Prepared
    trace: Trace
    report: Report

    @property
    def natural(self) -> bool:
        """Clients are those of the data: then their windows are known."""
        return self.settings.get("data.partition", "natural") == "natural"

    def check_weights_are_known(self) -> None:
        """Refuses sample weights where the program draws who holds what."""
        if not self.natural and self.settings.policy("client_weight") == "samples":
            raise AuditError(
                f"data.partition = {self.settings.get('data.partition')} with client_weight = samples cannot be "
                "replayed (the program draws which sequences a client holds) - audit a run with partition natural", 2,
            )  # fmt: skip

    def cohort(self, number: int, events: list[Event]) -> None:
        """Nobody twice, no held-out client, nobody with too few windows, and as many as asked for."""
        clients = [event.client for event in events]
        good = len(set(clients)) == len(clients)
        if self.natural:
            minimum = max(1, int(self.settings.get("data.min_windows", 1)))
            eligible = {c for c in range(self.data.n_clients) if len(self.data.client_windows(c)) >= minimum}
            asked = int(self.settings.get("experiment.clients_per_round", 8)) or len(eligible)
            good = good and set(clients) <= eligible and len(clients) == min(asked, len(eligible))
        self.report.equal(COHORTS, good, f"round {number}")

    def learning_rate(self, event: Event) -> None:
        """The learning rate of the event's round by our own schedule."""
        rate = self.settings.learning_rate(event.round)
        self.report.relative(RATE, rate, event.learning_rate, f"round {event.round}")

    def batches(self, event: Event) -> list[list[Window]]:
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
            self.report.equal(WINDOWS, same, event.place())
            if same:
                return own
        out = []
        for step in steps:
            found = [self.data.window(*key) for key in step.windows]
            if any(window is None for window in found):
                self.report.equal(WINDOWS, False, f"{event.place()} step {step.number}: no such window")
            out.append([window for window in found if window is not None])
        return [batch for batch in out if batch]
