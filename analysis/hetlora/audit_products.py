"""Merges of products and changes of the base, with dense matrices: slow, and nothing clever to get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hetlora.audit_config import Settings
from hetlora.audit_model import out_in
from hetlora.audit_server import Upload, client_weights
from hetlora.audit_trace import Layout, join, split

#: Neighbouring singular values closer than this share of the largest leave the best approximation undetermined.
GAP = {"fp32": 1e-3, "fp64": 1e-7}


def mean_products(settings: Settings, layout: Layout, uploads: list[Upload]) -> list[np.ndarray]:
    """sum_k s_k B_k diag(w_k) A_k [d_out, d_in] of every matrix; s_k the client's LoRA scale.

    slot_norm all: w_k is the client's weight; contributors, levels: over the weights of the clients that have the slot.
    """
    weights = client_weights(settings, layout, uploads)
    shared = settings.policy("slot_norm") != "all"
    pairs = [split(u.sent, layout, u.lora_rank_after) for u in uploads]
    out = []
    for m, (_, d_out, d_in) in enumerate(layout):
        total = np.zeros((d_out, d_in))
        for k, upload in enumerate(uploads):
            per_slot = np.full(upload.lora_rank_after, weights[k, m])
            for j in range(upload.lora_rank_after if shared else 0):
                having = [i for i, other in enumerate(uploads) if other.lora_rank_after > j]
                mass = weights[having, m].sum()
                per_slot[j] = weights[k, m] / mass if mass > 0 else 1 / len(having)
            a, bt = pairs[k][m]
            total += settings.scale(upload.lora_rank_after) * (bt.T * per_slot) @ a
        out.append(total)
    return out


@dataclass(frozen=True)
class Product:
    """A matrix M and its best approximation of a rank."""

    matrix: np.ndarray
    best: np.ndarray
    singular_values: np.ndarray
    left: np.ndarray
    right: np.ndarray  #: rows
    is_unique: bool  #: the singular values at the cut differ enough

    @property
    def least_error(self) -> float:
        """||M - best||_F (Eckart-Young)."""
        return float(np.linalg.norm(self.matrix - self.best))


def best_of_rank(matrix: np.ndarray, lora_rank: int, precision: str) -> Product:
    """By the full SVD of the dense matrix."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    n = min(lora_rank, len(s))
    gap = s[n - 1] - s[n] if n < len(s) else s[0]
    return Product(matrix, (u[:, :n] * s[:n]) @ vt[:n], s[:n], u[:, :n], vt[:n],
                   bool(s[n - 1] <= 1e-9 * s[0] or gap > GAP[precision] * s[0]))  # fmt: skip


def product_difference(product: Product, theirs: np.ndarray) -> float:
    """Of another approximation: relative to the best one, or, where that is not unique, by what it misses more of M."""
    if product.is_unique:
        norm = float(np.linalg.norm(product.best))
        difference = float(np.linalg.norm(theirs - product.best))
    else:
        norm = float(np.linalg.norm(product.matrix))
        difference = abs(float(np.linalg.norm(product.matrix - theirs)) - product.least_error)
    return difference / norm if norm > 0 else (0.0 if difference == 0 else float("inf"))


def split_difference(split_rule: str, a: np.ndarray, bt: np.ndarray) -> float:
    """How far factors are from their form: left B = U S, right A = S V^T, sqrt both; the other one is orthonormal.

    Orthogonality is measured against the largest squared norm, and norms have to fall from slot to slot.
    """
    gram_a, gram_b = a @ a.T, bt @ bt.T
    norms = {"left": np.diag(gram_b), "right": np.diag(gram_a), "sqrt": np.sqrt(np.diag(gram_a) * np.diag(gram_b))}
    sizes = norms[split_rule]
    largest = sizes.max()
    if largest <= 0:
        return 0.0
    alive = sizes > 0
    worst = max(0.0, float(np.diff(sizes).max(initial=0.0)) / largest)
    for gram, unit in ((gram_a, split_rule == "left"), (gram_b, split_rule == "right")):
        gram = gram[np.ix_(alive, alive)]
        target = np.eye(len(gram)) if unit else np.diag(sizes[alive])
        worst = max(worst, float(np.abs(gram - target).max()) / (1.0 if unit else largest))
    return worst


def own_factors(products: list[Product], settings: Settings, layout: Layout, traced: np.ndarray) -> np.ndarray:
    """Our own merged adapter for the own chain. A sign per slot is free, and so are slots of singular value 0: both
    are taken from the trace."""
    rank_max = int(settings.get("lora.rank_max", 32))
    scale, rule = settings.scale(rank_max), settings.policy("factor_split")
    out = []
    for product, (a, bt) in zip(products, split(traced, layout, rank_max), strict=True):
        new_a, new_bt = a.astype(np.float64).copy(), bt.astype(np.float64).copy()
        for i, sigma in enumerate(product.singular_values):
            if sigma <= 1e-11 * product.singular_values[0]:
                break
            u, v, sigma = product.left[:, i], product.right[i], sigma / scale
            sign = 1.0 if u @ bt[i] + v @ a[i] >= 0 else -1.0
            on_b = {"left": sigma, "right": 1.0, "sqrt": sigma**0.5}[rule]
            new_bt[i], new_a[i] = sign * on_b * u, sign * (sigma / on_b) * v
        out.append((new_a, new_bt))
    return join(out)


def base_changes(
    settings: Settings, layout: Layout, uploads: list[Upload], merged: np.ndarray, rank_max: int
) -> list[np.ndarray]:
    """What goes into every adapted matrix: the stack, the stack cut by its energy, or what the mean factors miss."""
    products = mean_products(settings, layout, uploads)
    rule = settings.policy("base_update")
    if rule == "merge":
        return products
    if rule == "residual":
        scale = settings.scale(rank_max)
        return [p - scale * bt.T @ a for p, (a, bt) in zip(products, split(merged, layout, rank_max), strict=True)]
    energy, out = float(settings.get("strategy.keep_energy", 0.95)), []
    for product in products:
        u, s, vt = np.linalg.svd(product, full_matrices=False)
        share = np.cumsum(s**2)
        n = int(np.searchsorted(share, energy * share[-1])) + 1 if share[-1] > 0 else 0
        out.append((u[:, :n] * s[:n]) @ vt[:n])
    return out


def change_difference(ours: torch.Tensor, theirs: torch.Tensor, start: torch.Tensor) -> float:
    """||ours - theirs|| relative to the change since the start; one rounding of every entry is free."""
    epsilon = torch.finfo(start.dtype).eps
    ours, theirs, start = ours.double(), theirs.double(), start.double()
    change = float((theirs - start).norm())
    difference = max(0.0, float((ours - theirs).norm()) - epsilon * float(start.norm()))
    return 0.0 if difference == 0 else difference / change if change else float("inf")


class Base:
    """The adapted matrices of a model, which some methods change after every round."""

    def __init__(self, model: torch.nn.Module, layout: Layout) -> None:
        self.parameters = [out_in(model.get_submodule(name)) for name, _, _ in layout]
        self.start = [p.detach().clone() for p in self.parameters]

    def load(self, weights: list[torch.Tensor]) -> None:
        """Puts these matrices into the model."""
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)

    @staticmethod
    def changed(weights: list[torch.Tensor], changes: list[np.ndarray]) -> list[torch.Tensor]:
        """weights + changes, added in fp64 and rounded to the weights' own precision."""
        return [(w.double() + torch.from_numpy(c)).to(w.dtype) for w, c in zip(weights, changes, strict=True)]
