"""Prepared data as the audit reads it: windows of a sequence and of a client, and the order of training batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hetlora.audit_config import AuditError, Settings

TRAIN, VALID, TEST = 0, 1, 2
_MASK64 = (1 << 64) - 1
_PURPOSE_DATA_ORDER = 5


def mix64(x: int) -> int:
    """The finaliser of SplitMix64 on 64 bits."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def hash_seed(seed: int, purpose: int, *coordinates: int) -> int:
    """64 bits for (seed, purpose, coordinates...), as in include/hetlora/base/random.hpp."""
    state = mix64((seed & _MASK64) ^ 0x6865746C6F7261)
    state = mix64(state ^ purpose)
    for coordinate in coordinates:
        state = mix64(state ^ (coordinate & _MASK64))
    return state


@dataclass(frozen=True)
class Window:
    """One training or evaluation window: inputs tokens[start : stop] predict the tokens at `positions`."""

    sequence: int  #: sequence index in the prepared file
    number: int  #: window number w within the sequence (dropped windows count)
    start: int  #: first input token, within the sequence
    positions: tuple[int, ...]  #: target positions that count, within the sequence; row p - 1 - start predicts p

    @property
    def stop(self) -> int:
        """One past the last input: rows after the last counting target are trimmed."""
        return self.positions[-1]


def cut_windows(mask: np.ndarray, length: int, overlap: int, sequence: int = 0) -> list[Window]:
    """Windows of one sequence: w starts at w (length - overlap); each loss token is in the first that reaches it."""
    if not 0 <= overlap < length:
        raise AuditError(f"overlap {overlap} outside [0, {length}) - data.overlap - choose it below sequence_length", 2)
    targets = [int(p) for p in np.flatnonzero(mask) if p > 0]
    windows, assigned, number = [], 0, 0
    while assigned < len(targets):
        start = number * (length - overlap)
        reach = start + length  # the last target position that this window predicts
        counting = []
        while assigned < len(targets) and targets[assigned] <= reach:
            counting.append(targets[assigned])
            assigned += 1
        if counting:
            windows.append(Window(sequence, number, start, tuple(counting)))
        number += 1
    return windows


class Prepared:
    """A prepared data file, opened read-only."""

    def __init__(self, path: str | Path, settings: Settings) -> None:
        if not Path(path).is_file():
            raise AuditError(f"prepared data not found - {path} (data.path) - give its present place with --data FILE")
        self.length = int(settings.get("data.sequence_length", 128))
        self.overlap = int(settings.get("data.overlap", 32))
        self.max_windows = int(settings.get("data.max_windows_per_client", 0))
        with h5py.File(path) as file:
            schema = file.attrs.get("schema_name", b"")
            schema = schema.decode() if isinstance(schema, bytes) else str(schema)
            if schema != "hetlora-data":
                raise AuditError(f"schema {schema!r} instead of 'hetlora-data' - {path} - give a prepared data file")
            self.ids = file["tokens/ids"][:]
            self.mask = file["tokens/mask"][:]
            self.offset = file["sequences/offset"][:]
            self.part = file["sequences/part"][:]
            self.client_offset = file["clients/offset"][:]
            self.held_out = file["clients/held_out"][:].astype(bool)
            self.label = file["sequences/label"][:] if "sequences/label" in file else None
            self.n_labels = len(file["labels/name"]) if "labels/name" in file else 0
        self._cache: dict[int, list[Window]] = {}

    @property
    def n_clients(self) -> int:
        """Clients of the natural partition, held-out ones included."""
        return len(self.held_out)

    def sequence_windows(self, sequence: int) -> list[Window]:
        """All windows of one sequence."""
        low, high = self.offset[sequence], self.offset[sequence + 1]
        return cut_windows(self.mask[low:high], self.length, self.overlap, sequence)

    def window(self, sequence: int, number: int) -> Window | None:
        """The window (sequence, number), or None when the rule yields no such window."""
        return next((w for w in self.sequence_windows(sequence) if w.number == number), None)

    def tokens(self, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(inputs [n], rows [m], targets [m]): row rows[i] of the logits predicts token targets[i]."""
        base = self.offset[window.sequence]
        positions = np.asarray(window.positions)
        inputs = self.ids[base + window.start : base + window.stop]
        return inputs.astype(np.int64), positions - 1 - window.start, self.ids[base + positions].astype(np.int64)

    def client_windows(self, client: int) -> list[Window]:
        """Training windows of a client of the natural partition, in canonical order (by sequence, then window)."""
        if client not in self._cache:
            windows = []
            for sequence in range(self.client_offset[client], self.client_offset[client + 1]):
                if self.part[sequence] == TRAIN and not self.held_out[client]:
                    windows += self.sequence_windows(sequence)
            self._cache[client] = windows[: self.max_windows] if self.max_windows else windows
        return self._cache[client]

    def client_evaluation_windows(self, client: int, part: str = "valid") -> list[Window]:
        """Windows of a client's own held-back sequences of this part."""
        wanted = TEST if part == "test" else VALID
        sequences = range(self.client_offset[client], self.client_offset[client + 1])
        return [w for s in sequences if self.part[s] == wanted for w in self.sequence_windows(s)]

    def evaluation_windows(self, part: str = "valid") -> list[Window]:
        """The global evaluation set: windows of the held-out clients' sequences of this part."""
        return [w for c in np.flatnonzero(self.held_out) for w in self.client_evaluation_windows(int(c), part)]


def steps_per_epoch(settings: Settings, n_windows: int) -> int:
    """Steps in which a client sees each of its training windows once."""
    return -(-n_windows // int(settings.get("local.batch_size", 4)))


def steps_of(settings: Settings, n_windows: int) -> int:
    """Local steps of a client with this many training windows."""
    per_epoch = steps_per_epoch(settings, n_windows)
    epochs = int(settings.get("local.epochs", 0) or 0)
    return epochs * per_epoch if epochs > 0 else int(settings.get("local.steps", 5))


def batches(
    windows: list[Window], settings: Settings, client: int, round_number: int, n_steps: int | None = None
) -> list[list[Window]]:
    """The batch of every local step of one participation (or of its first `n_steps`), in our own order.

    Epoch e is a permutation of the client's windows by hash_seed(seed_data, data_order, client, round, e, i).
    """
    size, n, seed = int(settings.get("local.batch_size", 4)), len(windows), settings.seed("data")
    per_epoch = -(-n // size)
    out: list[list[Window]] = []
    order: list[int] = []
    for step in range(steps_of(settings, n) if n_steps is None else n_steps):
        epoch, j = divmod(step, per_epoch)
        if j == 0:
            keys = [(hash_seed(seed, _PURPOSE_DATA_ORDER, client, round_number, epoch, i), i) for i in range(n)]
            order = [i for _, i in sorted(keys)]
        out.append([windows[i] for i in order[j * size : (j + 1) * size]])
    return out
