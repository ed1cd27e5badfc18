"""What every system trains on: the same windows in the same order, from the same initial adapter (schedule.npz).

Shapes: W windows, L their longest length, R rounds, K clients of a round, S steps, B windows of a step, M matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

IGNORED = -100  #: target of a row without loss


@dataclass(frozen=True)
class Schedule:
    """Numpy arrays only: nothing here needs torch or HDF5."""

    inputs: np.ndarray  #: int64 [W, L], padded with 0 on the right
    targets: np.ndarray  #: int64 [W, L], already shifted: row i predicts targets[i]; IGNORED = no loss
    lengths: np.ndarray  #: int64 [W]
    windows: np.ndarray  #: int64 [R, K, S, B], rows of inputs; -1 = none (a short batch)
    weights: np.ndarray  #: float64 [R, K], weights of the clients in the round's average; they sum to 1
    matrices: list[str]  #: [M], e.g. model.layers.0.self_attn.q_proj
    initial: list[np.ndarray]  #: float32 [2 M]: A [r, d_in] and B [d_out, r] of each matrix in turn
    scale: float
    learning_rate: float

    def save(self, path: Path) -> None:
        """Writes the .npz file."""
        arrays = {f"initial_{i:04d}": values for i, values in enumerate(self.initial)}
        np.savez(
            path, inputs=self.inputs, targets=self.targets, lengths=self.lengths, windows=self.windows,
            weights=self.weights, matrices=np.array(self.matrices), scale=self.scale,
            learning_rate=self.learning_rate, **arrays,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """Reads the .npz file."""
        with np.load(path) as file:
            plain = {name: file[name] for name in ("inputs", "targets", "lengths", "windows", "weights")}
            initial = [file[name] for name in sorted(file.files) if name.startswith("initial_")]
            return cls(
                **plain, matrices=file["matrices"].tolist(), initial=initial, scale=float(file["scale"]),
                learning_rate=float(file["learning_rate"]),
            )  # fmt: skip

    @property
    def lora_rank(self) -> int:
        """The rank of every client."""
        return self.initial[0].shape[0]

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of these windows, padded to the longest of them; -1 gives a row without loss.

        Padding is on the right and attention is causal, so that no attention mask is needed.
        """
        there = rows >= 0
        length = int(self.lengths[rows[there]].max())
        inputs = np.where(there[:, None], self.inputs[rows, :length], 0)
        targets = np.where(there[:, None], self.targets[rows, :length], IGNORED)
        return inputs, targets

    def tokens_per_round(self) -> list[int]:
        """Input tokens of each round, padding left out."""
        rounds = self.windows.reshape(len(self.windows), -1)
        return [int(self.lengths[rows[rows >= 0]].sum()) for rows in rounds]

    def loss_tokens_per_round(self) -> list[int]:
        """Tokens with loss of each round."""
        counts = (self.targets != IGNORED).sum(axis=1)
        rounds = self.windows.reshape(len(self.windows), -1)
        return [int(counts[rows[rows >= 0]].sum()) for rows in rounds]
