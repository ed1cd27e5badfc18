"""The server's side of every method in NumPy float64, written from the equations of `hetlora strategies NAME`.

Works on what a trace holds: the cohort's uploads, what each client had received, the global adapter before. Dense: no
stacks, no running sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h5py
import numpy as np

Pairs = list[tuple[np.ndarray, np.ndarray]]  #: (A [r, d_in], Bt [r, d_out]) of every adapted matrix


@dataclass
class Upload:
    """A client that was not dropped."""

    client: int
    lora_rank: int  #: of what it sent
    planned_lora_rank: int  #: of what it received
    weight: float  #: normalised, as logged
    received: Pairs
    sent: Pairs
    slots: list[int] = field(default_factory=list)  #: places in the global adapter


@dataclass
class Round:
    number: int
    uploads: list[Upload]
    largest_lora_rank: int  #: of the cohort, the dropped included
    previous: Pairs
    after: Pairs


def split(values: np.ndarray, shapes: list[tuple[int, int]]) -> Pairs:
    """Canonical form -> pairs; the lora_rank follows from the length."""
    lora_rank = len(values) // sum(d_out + d_in for d_out, d_in in shapes)
    pairs, at = [], 0
    for d_out, d_in in shapes:
        a = values[at : at + lora_rank * d_in].reshape(lora_rank, d_in)
        at += lora_rank * d_in
        pairs.append((a, values[at : at + lora_rank * d_out].reshape(lora_rank, d_out)))
        at += lora_rank * d_out
    assert at == len(values)
    return pairs


def read_rounds(trace_file, policies: dict) -> tuple[list[Round], list[str]]:
    """(rounds, names of the matrices) of a trace whose every global adapter is there."""
    with h5py.File(trace_file) as file:
        shapes = list(zip(file["matrices/d_out"][:].tolist(), file["matrices/d_in"][:].tolist(), strict=True))
        names = [name.decode() for name in file["matrices/name"][:]]
        events = {name: file["events"][name][:] for name in file["events"]}
        offset, values = file["globals/offset"][:], file["globals/values"][:]
        globals_ = [split(values[offset[i] : offset[i + 1]], shapes) for i in range(len(offset) - 1)]
        adapters = {name: file[f"adapters/{name}"][:] for name in ("received", "sent")}

    def adapter(which: str, e: int) -> Pairs:
        first, end = events[f"{which}_offset"][e : e + 2]
        return split(adapters[which][first:end], shapes)

    rounds = []
    for number in range(1, len(globals_)):
        previous = globals_[number - 1]
        of_round = np.flatnonzero(events["round"] == number)
        uploads = []
        for e in of_round[events["dropped"][of_round] == 0]:
            received, sent = adapter("received", e), adapter("sent", e)
            upload = Upload(
                client=int(events["client"][e]), lora_rank=len(sent[0][0]), planned_lora_rank=len(received[0][0]),
                weight=float(events["weight"][e]), received=received, sent=sent,
            )  # fmt: skip
            upload.slots = places(upload, previous, policies)
            if len(received[0][0]) > upload.lora_rank:  # of what it received, what belongs to the sent slots
                own = upload.slots if policies["receive"] == "all" else list(range(upload.lora_rank))
                upload.received = [(a[own], bt[own]) for a, bt in received]
            uploads.append(upload)
        largest = max(len(adapter("received", e)[0][0]) for e in of_round)
        rounds.append(Round(number, uploads, largest, previous, globals_[number]))
    return rounds, names


def places(upload: Upload, previous: Pairs, policies: dict) -> list[int]:
    """Where the sent slots lie in the global adapter: found from their values, since the choice is the program's."""
    if policies["slot_select"] == "prefix" or upload.lora_rank == len(previous[0][0]):
        return list(range(upload.lora_rank))
    mine = upload.received if policies["receive"] == "selected" else upload.sent
    found = []
    for slot in range(upload.lora_rank):
        distances = sum(np.linalg.norm(p[0] - m[0][slot], axis=1) for p, m in zip(previous, mine, strict=True))
        found.append(int(np.argmin(distances)))
    assert found == sorted(set(found)), f"client {upload.client}: slots {found}"
    return found


def check_weights(round_: Round, policies: dict) -> None:
    """The logged weights, where they follow from the uploads alone."""
    if policies["client_weight"] == "samples":
        return
    raw = [
        np.sqrt(sum(np.linalg.norm(bt.T @ a) ** 2 for a, bt in u.sent))
        if policies["client_weight"] == "sparsity"
        else 1.0
        for u in round_.uploads
    ]
    total = sum(raw)
    expected = [w / total if total > 0 else 1.0 / len(raw) for w in raw]
    np.testing.assert_allclose([u.weight for u in round_.uploads], expected, rtol=1e-10)


def travels(policies: dict, round_number: int) -> tuple[bool, bool]:
    """Whether (A, B) are sent in a round."""
    if policies["shared_factors"] == "a":
        return True, False
    return {
        "both": (True, True),
        "b": (False, True),
        "alternate": (round_number % 2 == 0, round_number % 2 == 1),
    }[policies["trainable"]]


def factor_row(round_: Round, policies: dict, matrix: int, factor: int, slot: int) -> np.ndarray:
    """The new row of a slot of A (factor 0) or B (factor 1)."""
    old = round_.previous[matrix][factor][slot]
    deltas = policies["aggregate"] == "deltas"

    def value(u: Upload) -> np.ndarray:
        at = u.slots.index(slot)
        return u.sent[matrix][factor][at] - (u.received[matrix][factor][at] if deltas else 0.0)

    have = [u for u in round_.uploads if slot in u.slots]
    if not have:
        keep = deltas or policies["keep_uncovered"] == "last"
        return old if keep else np.zeros_like(old)
    largest = [u for u in round_.uploads if u.planned_lora_rank == round_.largest_lora_rank]
    rule = policies["slot_norm"]
    if rule == "replicate" and largest:
        fill = sum(u.weight * value(u) for u in largest) / sum(u.weight for u in largest)
        mean = sum(u.weight * (value(u) if u in have else fill) for u in round_.uploads) / sum(
            u.weight for u in round_.uploads
        )
    else:
        counted = round_.uploads if rule == "all" else have
        mean = sum(u.weight * value(u) for u in have) / sum(u.weight for u in counted)
    return old + mean if deltas else mean


class Server:
    """Keeps the moments of the server's optimiser from round to round."""

    def __init__(self, policies: dict, lr: float = 1.0, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-3):
        self.policies, self.lr, self.beta1, self.beta2, self.epsilon = policies, lr, beta1, beta2, epsilon
        self.m: dict = {}
        self.v: dict = {}

    def step(self, key: tuple, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        kind, change = self.policies["server_optimizer"], new - old
        if kind == "none":
            return new
        if kind == "momentum":
            self.m[key] = self.beta1 * self.m.get(key, 0.0) + change
            return old + self.lr * self.m[key]
        self.m[key] = self.beta1 * self.m.get(key, 0.0) + (1 - self.beta1) * change
        self.v[key] = self.beta2 * self.v.get(key, 0.0) + (1 - self.beta2) * change**2
        return old + self.lr * self.m[key] / (np.sqrt(self.v[key]) + self.epsilon)

    def merged(self, round_: Round) -> Pairs:
        """The global adapter after the round, for merge = factors."""
        sent = travels(self.policies, round_.number)
        result = []
        for matrix, pair in enumerate(round_.previous):
            factors = []
            for factor, old in enumerate(pair):
                if not sent[factor]:
                    factors.append(old)
                    continue
                new = np.stack([factor_row(round_, self.policies, matrix, factor, i) for i in range(len(old))])
                factors.append(self.step((matrix, factor), old, new))
            result.append((factors[0], factors[1]))
        return result


def product_mean(round_: Round, policies: dict, matrix: int, levels: list[int]) -> np.ndarray:
    """P = sum over slots of the weighted products [d_out, d_in], by the row's slot_norm."""
    result = 0.0
    for slot in range(max(u.lora_rank for u in round_.uploads)):
        counted = round_.uploads
        if policies["slot_norm"] == "contributors":
            counted = [u for u in round_.uploads if u.lora_rank > slot]
        if policies["slot_norm"] == "levels":
            upper = min(level for level in levels if level > slot)
            counted = [u for u in round_.uploads if u.lora_rank >= upper]
        total = sum(u.weight for u in counted)
        for u in round_.uploads:
            if u.lora_rank > slot:
                a, bt = u.sent[matrix]
                result = result + u.weight / total * np.outer(bt[slot], a[slot])
    return result


def best_approximation(p: np.ndarray, lora_rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(p)
    return u[:, :lora_rank] * s[:lora_rank] @ vt[:lora_rank]


def cut_to_energy(p: np.ndarray, keep: float) -> np.ndarray:
    """The smallest number of singular directions with this share of the squared values."""
    s = np.linalg.svd(p, compute_uv=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return best_approximation(p, int(np.searchsorted(share, keep - 1e-12)) + 1)
