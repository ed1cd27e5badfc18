"""The server's side of a round: client weights, padding, averaging, uncovered slots. All in fp64."""

from __future__ import annotations

from dataclasses import dataclass

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


def aggregate(
    settings: Settings, layout: Layout, previous: np.ndarray, rank_max: int, uploads: list[Upload]
) -> tuple[np.ndarray, np.ndarray]:
    """(new global adapter at rank_max, weights [n_clients] averaged over matrices).

    parameters: sum_k w_k pad(theta_k); deltas: previous + sum_k w_k pad(theta_k - received_k). slot_norm contributors
    divides slot i by the weights of the clients that sent it. Without uploads the global stays as it was.
    """
    if not uploads:
        return previous.copy(), np.zeros(0)
    weights = client_weights(settings, layout, uploads)
    deltas = settings.policy("aggregate") == "deltas"
    contributors = settings.policy("slot_norm") == "contributors"
    keep = settings.get("strategy.keep_uncovered", "no") == "last"
    covered = np.zeros(rank_max, dtype=bool)
    covered[: max(u.lora_rank_after for u in uploads)] = True
    sent = [split(u.sent, layout, u.lora_rank_after) for u in uploads]
    received = [split(u.received, layout, u.lora_rank_before) for u in uploads]
    out = []
    for m, old in enumerate(split(previous, layout, rank_max)):
        new = []
        for factor in (0, 1):
            sums, plain = np.zeros_like(old[factor]), np.zeros_like(old[factor])
            mass, n = np.zeros(rank_max), np.zeros(rank_max)
            for k, upload in enumerate(uploads):
                r = upload.lora_rank_after
                theta = sent[k][m][factor] - (received[k][m][factor][:r] if deltas else 0.0)
                sums[:r] += weights[k, m] * theta
                mass[:r] += weights[k, m]
                plain[:r] += theta
                n[:r] += 1
            if contributors:
                # contributors whose weights are all 0 count equally
                mean = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1.0)[:, None],
                                plain / np.maximum(n, 1)[:, None])  # fmt: skip
            else:
                mean = sums
            if deltas:
                new.append(old[factor] + mean)
            else:
                new.append(np.where(covered[:, None], mean, old[factor] if keep else 0.0))
        out.append((new[0], new[1]))
    return join(out), weights.mean(axis=1)
