"""A micro corpus of labelled texts, as `hetlora prepare --task classification` writes one, for tests."""

from __future__ import annotations

from pathlib import Path

import h5py
import micro
import numpy as np

LABELS = ("calm", "glad", "sour")
WORDS = (("tea", "rain", "moss"), ("yes", "sun?", "a pear"), ("no!", "hill", "so it goes"))
HELD_OUT = (4,)
TRAIN_COUNTS = (3, 7, 5, 4)


def text_of(rng: np.random.Generator, label: int) -> str:
    """Words that mostly belong to the label."""
    owner = [label if rng.random() < 0.8 else int(rng.integers(0, 3)) for _ in range(int(rng.integers(2, 5)))]
    return " ".join(rng.choice(WORDS[k]) for k in owner)


def build_corpus(path: Path, tokenizer: Path, seed: int = 0, task: str = "classification") -> Path:
    """Five clients, the last one held out; every text is bos, characters, and one last token that carries the loss."""
    rng = np.random.default_rng(seed)
    base = micro.build_corpus(path, seed, tokenizer)
    ids, mask, offset, client_of, part_of, label_of, prompt_of, client_offset = [], [], [0], [], [], [], [], [0]
    for client in range(len(TRAIN_COUNTS) + len(HELD_OUT)):
        parts = [1] * 9 + [2] * 4 if client in HELD_OUT else [0] * TRAIN_COUNTS[client] + [1, 1, 2]
        for part in parts:
            label = int(rng.integers(0, len(LABELS)))
            tokens = [micro.BOS, *micro.encode(text_of(rng, label)), micro.EOS]
            ids += tokens
            mask += [0] * (len(tokens) - 1) + [1]
            offset.append(len(ids))
            client_of.append(client)
            part_of.append(part)
            label_of.append(label)
            prompt_of.append(len(tokens) - 1)
        client_offset.append(len(client_of))
    n_clients = len(client_offset) - 1
    with h5py.File(base, "r+") as file:
        if task:
            file.attrs["task"] = np.bytes_(task)
        for group in ("tokens", "sequences", "clients", "labels"):
            del file[group]
        for name, values, kind in (
            ("tokens/ids", ids, np.int32), ("tokens/mask", mask, np.uint8), ("sequences/offset", offset, np.int64),
            ("sequences/client", client_of, np.int32), ("sequences/part", part_of, np.uint8),
            ("sequences/label", label_of, np.int32), ("sequences/prompt_length", prompt_of, np.int32),
            ("clients/offset", client_offset, np.int64),
            ("clients/held_out", [int(c in HELD_OUT) for c in range(n_clients)], np.uint8),
            ("clients/name", [f"client-{c:02d}".encode() for c in range(n_clients)], "S9"),
            ("labels/name", [label.encode() for label in LABELS], "S4"),
        ):  # fmt: skip
            file.create_dataset(name, data=np.asarray(values, dtype=kind))
    return path


def texts(path: Path, part: int, client: int | None = None, held_out: bool = False) -> list[tuple[list[int], int]]:
    """(input ids, label) of a part: of one client, or of all held-out ones."""
    with h5py.File(path) as file:
        ids, offset = file["tokens/ids"][:], file["sequences/offset"][:]
        columns = {name: file[f"sequences/{name}"][:] for name in ("client", "part", "label")}
    chosen = []
    for s in range(len(offset) - 1):
        owner = int(columns["client"][s])
        if columns["part"][s] != part or (owner in HELD_OUT) != held_out or client not in (None, owner):
            continue
        chosen.append((ids[offset[s] : offset[s + 1] - 1].tolist(), int(columns["label"][s])))
    return chosen
