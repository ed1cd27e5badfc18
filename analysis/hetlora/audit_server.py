"""The server's side of a round: client weights, padding, averaging, uncovered slots, its optimiser. All in fp64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hetlora.audit_config import Settings
from hetlora.audit_trace import Layout, join, split


@dataclass(frozen=True)
class Upload:
    """What the server knows of one participation that was not dropped."""

    received: np.ndarray  #: canonical form at lora_rank_before
    lora_rank_before: int
    sent: np.ndarray  #: canonical form at lora_rank_after
    lora_rank_after: int
    n_windows: int  #: training windows of the client
    slots: tuple[int, ...] = ()  #: places of its slots in the global adapter; empty: the leading ones

    def rows(self) -> list[int]:
        """Places in the global adapter of the slots that were sent."""
        return list(self.slots) if len(self.slots) == self.lora_rank_after else list(range(self.lora_rank_after))


def client_weights(settings: Settings, layout: Layout, uploads: list[Upload]) -> np.ndarray:
    """Weights [n_clients, n_matrices]; each column sums to 1.

    sparsity: s_k = ||B_k A_k||_F over the matrices of the scope (root of the sum of squares, or sum of norms),
    w_k = s_k / sum_j s_j; uniform when the sum is 0.
    """
    k, m = len(uploads), len(layout)
    rule = settings.policy("client_weight")
    if rule == "uniform":
        raw = np.ones((k, m))
    elif rule == "samples":
        raw = np.repeat(np.array([[u.n_windows] for u in uploads], dtype=np.float64), m, axis=1)
    else:
        norms = np.zeros((k, m))
        for i, upload in enumerate(uploads):
            factor = settings.scale(upload.lora_rank_after) if settings.get("strategy.weight_includes_scale") else 1.0
            pairs = split(upload.sent, layout, upload.lora_rank_after)
            # the dense product on purpose: slow, and no Gram matrices to get wrong
            norms[i] = [factor * np.linalg.norm(bt.T @ a) for a, bt in pairs]
        if settings.get("strategy.weight_scope", "client") == "matrix":
            raw = norms
        elif settings.get("strategy.weight_norm", "root_sum_squares") == "sum":
            raw = np.repeat(norms.sum(axis=1, keepdims=True), m, axis=1)
        else:
            raw = np.repeat(np.sqrt((norms**2).sum(axis=1, keepdims=True)), m, axis=1)
    total = raw.sum(axis=0, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1.0), 1.0 / max(k, 1))


@dataclass(frozen=True)
class Cohort:
    """What the server knows of a round beside the uploads."""

    round: int = 1
    largest_lora_rank: int = 0  #: of all clients of the round, dropped ones too


def aggregate(
    settings: Settings, layout: Layout, previous: np.ndarray, rank_max: int, uploads: list[Upload],
    cohort: Cohort = Cohort(),
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(new global adapter at rank_max, weights [n_clients] averaged over matrices).

    parameters: sum_k w_k pad(theta_k); deltas: previous + sum_k w_k pad(theta_k - received_k). slot_norm contributors
    divides slot i by the weights of the clients that sent it; replicate gives clients without slot i the weighted mean
    of the clients of the round's largest lora_rank. A factor that was not sent stays. Without uploads all stays.
    """
    if not uploads:
        return previous.copy(), np.zeros(0)
    weights = client_weights(settings, layout, uploads)
    deltas = settings.policy("aggregate") == "deltas"
    norm = settings.policy("slot_norm")
    keep = settings.policy("keep_uncovered") == "last"
    is_sent = settings.sent_factors(cohort.round)
    covered = np.zeros(rank_max, dtype=bool)
    for upload in uploads:
        covered[upload.rows()] = True
    contributions = [_contribution(layout, upload, deltas) for upload in uploads]
    out = []
    for m, old in enumerate(split(previous, layout, rank_max)):
        new = []
        for factor in (0, 1):
            if not is_sent[factor]:
                new.append(old[factor])
                continue
            sums, plain = np.zeros_like(old[factor]), np.zeros_like(old[factor])
            mass, n = np.zeros(rank_max), np.zeros(rank_max)
            for k, upload in enumerate(uploads):
                rows, theta = upload.rows(), contributions[k][m][factor]
                sums[rows] += weights[k, m] * theta
                mass[rows] += weights[k, m]
                plain[rows] += theta
                n[rows] += 1
            if norm == "contributors":
                # contributors whose weights are all 0 count equally
                mean = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1.0)[:, None],
                                plain / np.maximum(n, 1)[:, None])  # fmt: skip
            elif norm == "replicate":
                mean = _replicated(sums, mass, weights[:, m], [c[m][factor] for c in contributions], uploads, cohort)
            else:
                mean = sums
            if deltas:
                new.append(old[factor] + mean)
            else:
                new.append(np.where(covered[:, None], mean, old[factor] if keep else 0.0))
        out.append((new[0], new[1]))
    return join(out), weights.mean(axis=1)


def _contribution(layout: Layout, upload: Upload, deltas: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(A, Bt) of every matrix as sent, or their change since they were received."""
    sent = split(upload.sent, layout, upload.lora_rank_after)
    if not deltas:
        return sent
    # where all slots were received and some sent, these are at their places; else a prune kept the leading ones
    before = upload.rows() if upload.lora_rank_before > upload.lora_rank_after else slice(upload.lora_rank_after)
    received = split(upload.received, layout, upload.lora_rank_before)
    return [(a - old_a[before], bt - old_bt[before])
            for (a, bt), (old_a, old_bt) in zip(sent, received, strict=True)]  # fmt: skip


def _replicated(
    sums: np.ndarray, mass: np.ndarray, weights: np.ndarray, sent: list[np.ndarray], uploads: list[Upload],
    cohort: Cohort,
) -> np.ndarray:  # fmt: skip
    """Clients without a slot count with the mean of the largest ones; without these: the mean of those that have it."""
    largest = [k for k, upload in enumerate(uploads) if upload.lora_rank_after == cohort.largest_lora_rank]
    if not largest or weights[largest].sum() == 0:
        return sums / np.where(mass > 0, mass, 1.0)[:, None]
    filled = np.zeros_like(sums)
    mean = sum(weights[k] * sent[k] for k in largest) / weights[largest].sum()
    filled[: len(mean)] = mean
    return sums + np.maximum(weights.sum() - mass, 0.0)[:, None] * filled


@dataclass
class ServerOptimizer:
    """strategy.server_optimizer: a step along the mean change instead of the change itself; keeps its state."""

    settings: Settings
    moments: list[np.ndarray] = field(default_factory=list)

    def step(self, previous: np.ndarray, merged: np.ndarray) -> np.ndarray:
        """The new global adapter; momentum m = b1 m + d, adam without bias correction."""
        rule, get = self.settings.policy("server_optimizer"), self.settings.get
        if rule == "none":
            return merged
        change = merged - previous
        if not self.moments:
            self.moments = [np.zeros_like(change), np.zeros_like(change)]
        first, second = self.moments
        b1, b2 = float(get("strategy.server_beta1", 0.9)), float(get("strategy.server_beta2", 0.99))
        rate = float(get("strategy.server_learning_rate", 1.0))
        if rule == "momentum":
            first = step = b1 * first + change
        else:
            first, second = b1 * first + (1 - b1) * change, b2 * second + (1 - b2) * change**2
            step = first / (np.sqrt(second) + float(get("strategy.server_epsilon", 1e-3)))
        self.moments = [first, second]
        return previous + rate * step
