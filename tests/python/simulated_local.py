"""The client's side of the simulated run: windows, batches, a hand-written optimiser, tail norm, clipping and prune."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import torch
from simulated_model import PlainLlama

STALE: dict = {}  # Adam moments by client, for the mutation "stale optimizer" only


def mix(x: int) -> int:
    """SplitMix64's finaliser."""
    with np.errstate(over="ignore"):
        z = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int(z ^ (z >> np.uint64(31)))


class Corpus:
    """The prepared file; a window is (sequence, w, inputs, target positions)."""

    def __init__(self, path: Path, options: dict) -> None:
        self.length, self.overlap = options["sequence_length"], options["overlap"]
        with h5py.File(path) as file:
            self.ids, self.mask = file["tokens/ids"][:], file["tokens/mask"][:]
            self.offset, self.client = file["sequences/offset"][:], file["sequences/client"][:]
            self.part, self.held_out = file["sequences/part"][:], file["clients/held_out"][:]
        self.n_clients = len(self.held_out)

    def windows(self, sequence: int) -> list[dict]:
        """Target by target: each belongs to the smallest w whose window reaches it."""
        low, high = self.offset[sequence], self.offset[sequence + 1]
        tokens, mask = self.ids[low:high], self.mask[low:high]
        stride, found = self.length - self.overlap, {}
        for p in range(1, len(tokens)):
            if mask[p]:
                w = 0
                while not w * stride + 1 <= p <= w * stride + self.length:
                    w += 1
                found.setdefault(w, []).append(p)
        return [{"key": (sequence, w), "inputs": tokens[w * stride : ps[-1]], "rows": [p - 1 - w * stride for p in ps],
                 "targets": tokens[ps]} for w, ps in sorted(found.items())]  # fmt: skip

    def _of(self, client: int, part: int) -> list[dict]:
        chosen = np.flatnonzero((self.client == client) & (self.part == part))
        return [window for s in chosen for window in self.windows(int(s))]

    def train_windows(self, client: int) -> list[dict]:
        """All training windows of a client."""
        return self._of(client, 0)

    def evaluate(self, llama: PlainLlama, factors: dict, config: dict) -> float:
        """Token-weighted mean NLL on the held-out clients."""
        part = 2 if config["evaluation"]["part"] == "test" else 1
        windows = [w for c in np.flatnonzero(self.held_out) for w in self._of(c, part)]
        adapter = {m: [torch.tensor(x, dtype=llama.dtype) for x in pair] for m, pair in factors.items()}
        with torch.no_grad():
            total = sum(float(nll(llama, [w], adapter, config["lora"]["scale"])) for w in windows)
        return total / sum(len(w["rows"]) for w in windows)


def nll(llama: PlainLlama, batch: list[dict], factors: dict, scale: float) -> torch.Tensor:
    """Summed NLL of a right-padded batch."""
    width = max(len(w["inputs"]) for w in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.int64)
    for i, w in enumerate(batch):
        tokens[i, : len(w["inputs"])] = torch.tensor(w["inputs"].astype(np.int64))
    log_p = torch.log_softmax(llama.logits(tokens, factors, scale), -1)
    return -sum(log_p[i, r, int(t)] for i, w in enumerate(batch) for r, t in zip(w["rows"], w["targets"], strict=True))


def order(seed: int, client: int, t: int, epoch: int, n: int) -> list[int]:
    """Indices sorted by their hash."""

    def key(i: int) -> int:
        state = mix(seed ^ 0x6865746C6F7261)
        for coordinate in (5, client, t, epoch, i):
            state = mix(state ^ coordinate)
        return state

    return sorted(range(n), key=lambda i: (key(i), i))


def learning_rate(local: dict, t: int, rounds: int) -> float:
    """Schedule over rounds."""
    base, warm, last = local["learning_rate"], local["lr_warmup_rounds"], local["lr_final_fraction"]
    if t <= warm:
        return base * t / warm
    x = (t - warm) / (rounds - warm)
    shape = {"constant": 1.0, "linear": 1 - (1 - last) * x,
             "cosine": last + (1 - last) * (1 + math.cos(math.pi * x)) / 2}  # fmt: skip
    return base * shape[local["lr_schedule"]]


def tail_start(config: dict, rank: int, mutate: str) -> int:
    """First slot of the tail."""
    x, strategy = config["strategy"]["prune_gamma"] * rank, config["strategy"]
    value = {"floor": math.floor(x + 1e-9), "ceil": math.ceil(x - 1e-9), "nearest": round(x)}[
        strategy["prune_rounding"]
    ]
    return max(config["lora"]["rank_min"], value) - (1 if mutate == "off by one tail" and value > 2 else 0)


def tail(factors: dict, g: int) -> float:
    """Sum over matrices of the product of the tails' norms."""
    norms = [[np.sqrt((np.asarray(x, dtype=np.float64)[g:] ** 2).sum()) for x in pair] for pair in factors.values()]
    return sum(a * b for a, b in norms)


def step_gradient(params: list, loss: torch.Tensor, penalty: float, g: int, epsilon: float) -> list[torch.Tensor]:
    """Gradient of the loss plus the regulariser's by hand: lambda ||other tail|| x / ||x tail||, 0 at 0."""
    grads = list(torch.autograd.grad(loss, params))
    for i, x in enumerate(params if penalty > 0 else []):
        norm = torch.sqrt((x.detach()[g:] ** 2).sum() + epsilon)
        other = torch.sqrt((params[i ^ 1].detach()[g:] ** 2).sum() + epsilon)
        if norm > 0:
            grads[i] = grads[i].clone()
            grads[i][g:] += penalty * other * x.detach()[g:] / norm
    return grads


def train_client(llama: PlainLlama, corpus: Corpus, config: dict, prunes: bool, job: dict, mutate: str) -> dict:
    """One participation; returns the event as the trace wants it."""
    local, strategy, rank, c, t = config["local"], config["strategy"], job["rank"], job["client"], job["round"]
    windows, size = corpus.train_windows(c), local["batch_size"]
    per_epoch = math.ceil(len(windows) / size)
    n_steps = local["epochs"] * per_epoch if local["epochs"] else local["steps"]
    scale = config["lora"]["scale"] * job.get("scale_factor", 1.0) * (rank / 4 if mutate == "wrong scale" else 1.0)
    source = job["padded"] or job["received"]
    params = [torch.tensor(x, dtype=llama.dtype, requires_grad=True) for pair in source.values() for x in pair]
    names = list(job["received"])
    g = tail_start(config, rank, mutate)
    penalty = strategy["prune_lambda"] if prunes and g < rank else 0.0
    rate = learning_rate(local, t, config["experiment"]["rounds"])
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    if mutate == "stale optimizer" and c in STALE and STALE[c][0][0].shape == moments[0][0].shape:
        moments = STALE[c]
    steps = []
    for s in range(n_steps):
        e, j = divmod(s, per_epoch)
        perm = order(config["experiment"]["seed"], c, t, 0 if mutate == "wrong order" else e, len(windows))
        if mutate == "wrong order":
            perm = perm[::-1]
        batch = [windows[i] for i in perm[j * size : (j + 1) * size]]
        count = sum(len(w["rows"]) for w in batch)
        factors = {m: (params[2 * i], params[2 * i + 1]) for i, m in enumerate(names)}
        total = nll(llama, batch, factors, scale)
        divisor = count * (1.5 if mutate == "loss over several clients" else 1)
        unclipped = penalty if mutate != "clip before regulariser" else 0.0
        grads = step_gradient(params, total / divisor, unclipped, g, strategy["tail_norm_epsilon"])
        norm = math.sqrt(sum(float((x.double() ** 2).sum()) for x in grads))
        if 0 < local["clip_norm"] < norm + 1e-6:
            grads = [x * (local["clip_norm"] / (norm + 1e-6)) for x in grads]
        if mutate == "clip before regulariser":
            zero = sum((p * 0).sum() for p in params)
            extra = step_gradient(params, zero, penalty, g, strategy["tail_norm_epsilon"])
            grads = [x + y for x, y in zip(grads, extra, strict=True)]
        with torch.no_grad():
            for i, (p, x, m) in enumerate(zip(params, grads, moments, strict=True)):
                if job.get("factors", (True, True))[i % 2]:
                    update(p, x, m, s + 1, rate, local)
        steps.append(
            {"loss": float(total.detach()) / count, "n_loss_tokens": count, "windows": [w["key"] for w in batch]}
        )
    STALE[c] = moments
    trained = {m: [params[2 * i + f].detach().numpy()[:rank] for f in (0, 1)] for i, m in enumerate(names)}
    finite = not job["drop"] and all(np.isfinite(x).all() for pair in trained.values() for x in pair)
    reference = {"received": job["received"], "initial": job["initial"]}[strategy["prune_reference"]]
    if mutate == "before after training":
        reference = trained
    prune = finite and prunes and g < rank and tail(trained, g) < tail(reference, g)
    after = g if prune else rank
    late = mutate == "pruned after upload" and prune
    sent = {m: [x[:after].copy() for x in pair] for m, pair in trained.items()}
    if late:  # the server still averages the whole factors
        sent = {m: [x.copy() for x in pair] for m, pair in trained.items()}
        after = rank
    return {"client": c, "round": t, "rank": rank, "after": after, "dropped": not finite, "received": job["received"],
            "sent": sent, "steps": steps, "learning_rate": rate, "n_windows": len(windows)}  # fmt: skip


def update(p: torch.Tensor, grad: torch.Tensor, moments: tuple, step: int, rate: float, local: dict) -> None:
    """SGD with coupled or Adam with decoupled weight decay, in place."""
    if local["optimizer"] == "sgd":
        p -= rate * (grad + local["weight_decay"] * p)
        return
    first, second = moments
    b1, b2 = local["adam_beta1"], local["adam_beta2"]
    first.copy_(b1 * first + (1 - b1) * grad)
    second.copy_(b2 * second + (1 - b2) * grad * grad)
    p *= 1 - rate * local["weight_decay"]
    p -= rate * (first / (1 - b1**step)) / (torch.sqrt(second / (1 - b2**step)) + local["adam_epsilon"])
