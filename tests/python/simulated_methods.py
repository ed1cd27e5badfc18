"""Methods beyond zero-padding for the simulated run: what a client receives and trains, what the server makes of it.

Plain loops over slots and dense matrices. `mutate` names one deliberate mistake (MUTATIONS, by method).
"""

from __future__ import annotations

import numpy as np
import torch
from simulated_local import Corpus, nll
from simulated_model import PlainLlama

_ZEROPAD = {
    "slot_select": "prefix", "receive": "selected", "slot_scale": "none", "trainable": "both", "local_extra": "none",
    "shared_factors": "both", "client_weight": "samples", "merge": "factors", "slot_norm": "all",
    "aggregate": "parameters", "factor_split": "left", "base_update": "none", "server_optimizer": "none",
    "rank_schedule": "none", "keep_uncovered": "no",
}  # fmt: skip
ROWS = {
    "flexlora": _ZEROPAD | {"merge": "product"},
    "flora": _ZEROPAD | {"merge": "stack", "base_update": "merge"},
    "fedex": _ZEROPAD | {"base_update": "residual"},
    "ffa": _ZEROPAD | {"trainable": "b"},
    "fedsa": _ZEROPAD | {"shared_factors": "a"},
    "fslora": _ZEROPAD | {"slot_select": "random", "slot_scale": "sketch", "client_weight": "uniform",
                          "aggregate": "deltas"},
}  # fmt: skip
MUTATIONS = {
    "product of the means": "flexlora",
    "smallest directions kept": "flexlora",
    "singular values twice": "flexlora",
    "stack unweighted": "flora",
    "scale forgotten in the base": "flora",
    "stack in the base only once": "flora",
    "fresh adapter kept": "flora",
    "residual forgotten": "fedex",
    "sketch scale forgotten": "fslora",
    "slots put in front": "fslora",
    "mean of parameters": "fslora",
    "A moves too": "ffa",
    "B averaged": "fedsa",
    "B starts at zero": "fedsa",
}

Factors = dict[str, list[np.ndarray]]  # matrix -> [A, Bt]


def slots_of(row: dict, client: int, t: int, rank: int, rank_max: int) -> list[int]:
    """Chosen places, or none where the leading ones count."""
    if row["slot_select"] != "random":
        return []
    return sorted(np.random.default_rng([client, t]).choice(rank_max, rank, replace=False).tolist())


def received(row: dict, glob: Factors, job: dict, own_b: dict | None, mutate: str) -> Factors:
    """The client's adapter; `job` has client, round, rank, slots."""
    rows = job["slots"] or list(range(job["rank"]))
    local = {m: [x[rows].copy() for x in pair] for m, pair in glob.items()}
    if row["merge"] == "stack":
        rng = np.random.default_rng([9, job["client"], 0 if mutate == "fresh adapter kept" else job["round"]])
        for a, bt in local.values():
            a[:] = rng.uniform(-1, 1, a.shape) * a.shape[1] ** -0.5
            bt[:] = 0
    if own_b is not None and mutate != "B starts at zero":
        for m, pair in local.items():
            pair[1] = own_b[m].copy()
    return local


def trained(row: dict, mutate: str) -> tuple[bool, bool]:
    """(A trains, B trains)."""
    return row["trainable"] == "both" or mutate == "A moves too", True


def scale_factor(row: dict, rank: int, rank_max: int, mutate: str) -> float:
    """What the LoRA scale is multiplied with."""
    return rank_max / rank if row["slot_scale"] == "sketch" and mutate != "sketch scale forgotten" else 1.0


def server(row: dict, scale: float, old: Factors, uploads: list[dict], mutate: str, t: int) -> tuple:
    """(new global factors, weight of each upload, change of the base of every matrix)."""
    share = [1.0 if row["client_weight"] == "uniform" else float(u["n_windows"]) for u in uploads]
    weights = [s / sum(share) for s in share]
    new, change = {}, {}
    for m, pair in old.items():
        new[m] = [_mean(row, x, m, f, uploads, weights, mutate) for f, x in enumerate(pair)]
        product = sum(w * scale * u["sent"][m][1].T.astype(float) @ u["sent"][m][0]
                      for w, u in zip(weights, uploads, strict=True))  # fmt: skip
        if row["merge"] == "product":
            if mutate == "product of the means":
                product = scale * new[m][1].T @ new[m][0]
            new[m] = _cut(product / scale, len(pair[0]), mutate)
        elif row["merge"] == "stack":
            new[m] = pair
            if mutate == "stack unweighted":
                product = sum(scale * u["sent"][m][1].T.astype(float) @ u["sent"][m][0] for u in uploads) / len(uploads)
            change[m] = product / (scale if mutate == "scale forgotten in the base" else 1.0)
            if mutate == "stack in the base only once" and t > 1:
                change[m] *= 0
        elif row["base_update"] == "residual" and mutate != "residual forgotten":
            change[m] = product - scale * new[m][1].T @ new[m][0]
    return new, weights, change


def _mean(row: dict, before: np.ndarray, m: str, f: int, uploads: list, weights: list, mutate: str) -> np.ndarray:
    """One factor, slot by slot."""
    if (f == 0 and not trained(row, mutate)[0]) or (f == 1 and row["shared_factors"] == "a" and mutate != "B averaged"):
        return before
    total = np.zeros_like(before)
    deltas = row["aggregate"] == "deltas"
    for w, u in zip(weights, uploads, strict=True):
        places = u["slots"] or range(len(u["sent"][m][f]))
        for i, place in enumerate(range(len(u["slots"])) if mutate == "slots put in front" else places):
            total[place] += w * (u["sent"][m][f][i].astype(float) - (u["received"][m][f][i] if deltas else 0.0))
    return before + total if deltas and mutate != "mean of parameters" else total


def _cut(product: np.ndarray, rank: int, mutate: str) -> list[np.ndarray]:
    """[A, Bt] of the leading singular directions, the singular values on B."""
    u, s, vt = np.linalg.svd(product, full_matrices=False)
    keep = slice(1, rank + 1) if mutate == "smallest directions kept" else slice(0, rank)
    a = vt[keep] * (np.sqrt(s[keep])[:, None] if mutate == "singular values twice" else 1.0)
    return [a, (u[:, keep] * s[keep]).T]


def change_base(llama: PlainLlama, change: dict) -> None:
    """Adds to the frozen matrices, in their own precision."""
    for m, delta in change.items():
        weight = llama.weights[m + ".weight"]
        llama.weights[m + ".weight"] = (weight.double() + torch.from_numpy(delta)).to(weight.dtype)


def evaluate_personal(corpus: Corpus, llama: PlainLlama, glob: Factors, private: dict, config: dict) -> float:
    """Every client's own B with the shared A on its own held-back data, token-weighted."""
    part = 2 if config["evaluation"]["part"] == "test" else 1
    total, count = 0.0, 0
    for c in range(corpus.n_clients):
        if corpus.held_out[c] or not corpus.train_windows(c):
            continue
        own = {m: [pair[0][: len(private[c][m])], private[c][m]] if c in private else [pair[0], 0 * pair[1]]
               for m, pair in glob.items()}  # fmt: skip
        adapter = {m: [torch.tensor(x, dtype=llama.dtype) for x in pair] for m, pair in own.items()}
        for window in corpus._of(c, part):
            with torch.no_grad():
                total += float(nll(llama, [window], adapter, config["lora"]["scale"]))
            count += len(window["rows"])
    return total / count
