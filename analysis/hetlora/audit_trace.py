"""Reading of trace.h5 (schema "hetlora-trace" version 1) and adapters in canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hetlora.audit_config import AuditError

Layout = list[tuple[str, int, int]]  #: (name, d_out, d_in) of every adapted matrix, in canonical order


def n_parameters(layout: Layout, lora_rank: int) -> int:
    """P(r) = r * sum(d_in + d_out)."""
    return lora_rank * sum(d_out + d_in for _, d_out, d_in in layout)


def split(values: np.ndarray, layout: Layout, lora_rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Views (A [r, d_in], Bt [r, d_out]) of every matrix of an adapter in canonical form."""
    if len(values) != n_parameters(layout, lora_rank):
        raise AuditError(
            f"an adapter of {len(values)} values at lora_rank {lora_rank}, which has {n_parameters(layout, lora_rank)}"
            " - trace.h5 - the trace is damaged or its lora_rank columns are wrong"
        )
    out, at = [], 0
    for _, d_out, d_in in layout:
        a = values[at : at + lora_rank * d_in].reshape(lora_rank, d_in)
        at += lora_rank * d_in
        bt = values[at : at + lora_rank * d_out].reshape(lora_rank, d_out)
        at += lora_rank * d_out
        out.append((a, bt))
    return out


def join(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Canonical form (fp64) of the pairs (A, Bt)."""
    return np.concatenate([np.asarray(x, dtype=np.float64).ravel() for pair in pairs for x in pair])


def resize(values: np.ndarray, layout: Layout, from_rank: int, to_rank: int) -> np.ndarray:
    """Truncation to the leading slots, or zero-padding."""
    out = []
    for pair in split(values, layout, from_rank):
        resized = []
        for x in pair:
            y = np.zeros((to_rank, x.shape[1]))
            kept = min(from_rank, to_rank)
            y[:kept] = x[:kept]
            resized.append(y)
        out.append((resized[0], resized[1]))
    return join(out)


def select(values: np.ndarray, layout: Layout, from_rank: int, slots: Sequence[int]) -> np.ndarray:
    """The slots `slots` of an adapter, in this order."""
    rows = list(slots)
    return join([(a[rows], bt[rows]) for a, bt in split(values, layout, from_rank)])


def relative_difference(ours: np.ndarray, theirs: np.ndarray, layout: Layout, lora_rank: int) -> tuple[float, str]:
    """Largest ||ours - theirs||_F / ||theirs||_F over all A and all Bt, and where. Equal zeros count as 0."""
    worst, where = 0.0, ""
    pairs = zip(layout, split(ours, layout, lora_rank), split(theirs, layout, lora_rank), strict=True)
    for (name, _, _), mine, other in pairs:
        for factor, x, y in zip("AB", mine, other, strict=True):
            difference, norm = float(np.linalg.norm(x - y)), float(np.linalg.norm(y))
            value = 0.0 if difference == 0 else (difference / norm if norm > 0 else float("inf"))
            if not value <= worst:  # also true for NaN
                worst, where = (float("inf") if np.isnan(value) else value), f"{factor} of {name}"
    return worst, where


#: Columns of /events, in the order of Event's fields (dropped stands between the two).
WHOLE = ("round", "client", "lora_rank_before", "lora_rank_after", "n_steps")
REAL = ("weight", "loss_first", "loss_last", "learning_rate")


@dataclass(frozen=True)
class Event:
    """One participation: a client in a round."""

    index: int
    round: int
    client: int
    lora_rank_before: int
    lora_rank_after: int
    n_steps: int
    dropped: bool
    weight: float
    loss_first: float
    loss_last: float
    learning_rate: float
    lora_rank: int = 0  #: the client's, before pruning
    slots: tuple[int, ...] = ()  #: places of the client's slots in the global adapter; empty: the leading ones

    def place(self) -> str:
        """For reports."""
        return f"round {self.round} client {self.client}"


@dataclass(frozen=True)
class Step:
    """One local step as traced."""

    number: int
    loss: float
    n_loss_tokens: int
    windows: list[tuple[int, int]]  #: (sequence, window)


class Trace:
    """trace.h5, opened read-only; adapters are read slice by slice."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise AuditError(
                f"no trace.h5: this run wasn't traced - {path.parent} - run it again with output.trace=true"
            )
        try:
            self.file = h5py.File(path)
            self._read()
        except (OSError, KeyError) as error:
            raise AuditError(f"trace.h5 can't be read: {error} - {path} - run again with output.trace=true") from error

    def _read(self) -> None:
        file = self.file
        schema = file.attrs.get("schema_name", b"")
        schema = schema.decode() if isinstance(schema, bytes) else str(schema)
        version = int(np.asarray(file.attrs.get("schema_version", 0)).ravel()[0])
        if schema != "hetlora-trace" or version != 1:
            raise AuditError(f"schema {schema!r} version {version}, not 'hetlora-trace' version 1 - {file.filename}")
        names = [n.decode().rstrip("\0 ") if isinstance(n, bytes) else str(n) for n in file["matrices/name"][:]]
        self.layout: Layout = [
            (name, int(o), int(i))
            for name, o, i in zip(names, file["matrices/d_out"][:], file["matrices/d_in"][:], strict=True)
        ]
        columns = {name: file[f"events/{name}"][:] for name in (*WHOLE, "dropped", *REAL)}
        # Traces of before methods chose slots have neither: the leading ones, all that was received.
        own = file["events/lora_rank" if "slots" in file else "events/lora_rank_before"][:]
        slot = file["slots/slot"][:] if "slots" in file else np.zeros(0, dtype=np.int64)
        at = file["events/slots_offset"][:] if "slots" in file else np.zeros(len(own) + 1, dtype=np.int64)
        self.events = [
            Event(i, *(int(columns[c][i]) for c in WHOLE), bool(columns["dropped"][i]),
                  *(float(columns[c][i]) for c in REAL), int(own[i]), tuple(int(s) for s in slot[at[i] : at[i + 1]]))
            for i in range(len(columns["round"]))
        ]  # fmt: skip
        self._received_offset = file["events/received_offset"][:]
        self._sent_offset = file["events/sent_offset"][:]
        self._step_event = file["steps/event"][:]
        self._step_number = file["steps/step"][:]
        self._step_loss = file["steps/loss"][:]
        self._step_tokens = file["steps/n_loss_tokens"][:]
        self._window_offset = file["steps/window_offset"][:]
        self._sequence = file["windows/sequence"][:]
        self._window = file["windows/window"][:]
        self.global_rounds = [int(r) for r in file["globals/round"][:]]
        self._global_offset = file["globals/offset"][:]
        self.has_heads = "heads" in file
        if self.has_heads:
            self._head_size = int(np.asarray(file["heads"].attrs["n_values"]).ravel()[0])
            self._head_offset = file["heads/sent_offset"][:]
            self._head_samples = file["heads/n_samples"][:]

    def received(self, event: Event) -> np.ndarray:
        """The adapter that the client received, canonical form at lora_rank_before."""
        low, high = self._received_offset[event.index : event.index + 2]
        return self.file["adapters/received"][low:high]

    def sent(self, event: Event) -> np.ndarray:
        """The adapter that the client sent, canonical form at lora_rank_after (may be empty when dropped)."""
        low, high = self._sent_offset[event.index : event.index + 2]
        return self.file["adapters/sent"][low:high]

    def sent_head(self, event: Event) -> np.ndarray:
        """The classification head that the client sent."""
        low, high = self._head_offset[event.index : event.index + 2]
        return self.file["heads/sent"][low:high]

    def head_samples(self, event: Event) -> float:
        """What the client's head counts in the average: its number of texts."""
        return float(self._head_samples[event.index])

    def global_head(self, round_number: int) -> np.ndarray | None:
        """The global head after this round (0 = initial); None where nothing was traced."""
        if not self.has_heads or round_number not in self.global_rounds:
            return None
        low = self.global_rounds.index(round_number) * self._head_size
        return self.file["heads/global"][low : low + self._head_size]

    def steps(self, event: Event) -> list[Step]:
        """Local steps of the participation, in order."""
        out = []
        for row in np.flatnonzero(self._step_event == event.index):
            low, high = self._window_offset[row], self._window_offset[row + 1]
            windows = [(int(s), int(w)) for s, w in zip(self._sequence[low:high], self._window[low:high], strict=True)]
            loss, tokens = float(self._step_loss[row]), int(self._step_tokens[row])
            out.append(Step(int(self._step_number[row]), loss, tokens, windows))
        return sorted(out, key=lambda step: step.number)

    def global_adapter(self, round_number: int) -> np.ndarray | None:
        """The global adapter after this round (0 = initial) at rank_max, or None when it was not traced."""
        if round_number not in self.global_rounds:
            return None
        i = self.global_rounds.index(round_number)
        return self.file["globals/values"][self._global_offset[i] : self._global_offset[i + 1]]
