"""The prepared data file, schema "hetlora-data" version 1: writing and describing it (docs/data.md)."""

import datetime
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetlora import __version__
from hetlora.errors import InputError
from hetlora.files import atomic_file
from hetlora.prepare.splits import PART_NAMES, TRAIN
from hetlora.prepare.tokenizer import TextTokenizer

SCHEMA_NAME, SCHEMA_VERSION = "hetlora-data", 1


@dataclass
class Sequence:
    """One conversation or document from one client's point of view: ids int32 [n], mask uint8 [n], n >= 2."""

    ids: np.ndarray
    mask: np.ndarray
    part: int
    label: int = -1
    group: int = -1
    choices: list[np.ndarray] = field(default_factory=list)
    answer: int = -1


@dataclass
class Client:
    """A client and its sequences in time order (they are sorted by part when written)."""

    name: str
    sequences: list[Sequence]
    held_out: bool = False


@dataclass
class Prepared:
    """Everything a file holds besides the vocabulary. `recipe`: the options that led to it; `notes`: lines to print."""

    name: str
    source: str
    source_sha256: str
    license: str
    recipe: dict
    clients: list[Client]
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    label_choices: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prompt_length(mask: np.ndarray) -> int:
    """Number of tokens before the last run of ones in `mask` (where the last own turn starts); its length if none."""
    ones = np.flatnonzero(mask)
    if not len(ones):
        return len(mask)
    breaks = np.flatnonzero(np.diff(ones) > 1)
    return int(ones[breaks[-1] + 1]) if len(breaks) else int(ones[0])


def check(prepared: Prepared, vocab_size: int) -> None:
    """InputError if there is nothing to train on; AssertionError if sequences break the format's rules (our bug)."""
    if not any(s.part == TRAIN for client in prepared.clients for s in client.sequences):
        raise InputError(
            f"{prepared.source}: no training sequences are left after filtering; "
            "loosen --min-words, --held-out-fraction or --max-length"
        )
    for client in prepared.clients:
        assert client.sequences, f"client {client.name} has no sequences"
        for sequence in client.sequences:
            assert len(sequence.ids) == len(sequence.mask) >= 2, client.name
            assert sequence.mask[0] == 0 and sequence.mask.any(), client.name
            assert 0 <= sequence.ids.min() and sequence.ids.max() < vocab_size, client.name
            assert (sequence.part != TRAIN) if client.held_out else True, client.name


def fixed_strings(names: list[str]) -> np.ndarray:
    """Names as a NUL-padded fixed-length UTF-8 byte array, which every HDF5 reader understands."""
    return np.array([name.encode("utf-8") for name in names], dtype="S") if names else np.zeros(0, dtype="S1")


def offsets(lengths: list[int]) -> np.ndarray:
    """int64 [n+1]: 0 and the running sums."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def write(path: str, prepared: Prepared, tokenizer: TextTokenizer) -> dict:
    """Write the file under a temporary name and rename it; returns the summary of `describe`."""
    import h5py

    check(prepared, tokenizer.vocab_size)
    sequences, owner = [], []
    for index, client in enumerate(prepared.clients):
        ordered = sorted(client.sequences, key=lambda sequence: sequence.part)  # stable: time order stays within a part
        sequences += ordered
        owner += [index] * len(ordered)
    vocabulary = tokenizer.vocabulary()
    data = {
        "tokens/ids": np.concatenate([s.ids for s in sequences]).astype(np.int32),
        "tokens/mask": np.concatenate([s.mask for s in sequences]).astype(np.uint8),
        "sequences/offset": offsets([len(s.ids) for s in sequences]),
        "sequences/client": np.array(owner, dtype=np.int32),
        "sequences/part": np.array([s.part for s in sequences], dtype=np.uint8),
        "sequences/label": np.array([s.label for s in sequences], dtype=np.int32),
        "sequences/prompt_length": np.array([prompt_length(s.mask) for s in sequences], dtype=np.int32),
        "clients/offset": offsets([len(client.sequences) for client in prepared.clients]),
        "clients/name": fixed_strings([client.name for client in prepared.clients]),
        "clients/held_out": np.array([client.held_out for client in prepared.clients], dtype=np.uint8),
        "vocab/bytes": np.frombuffer(b"".join(vocabulary), dtype=np.uint8),
        "vocab/offset": offsets([len(token) for token in vocabulary]),
    }
    if prepared.labels:
        data["labels/name"] = fixed_strings(prepared.labels)
    if prepared.groups:
        data["sequences/group"] = np.array([s.group for s in sequences], dtype=np.int32)
        data["groups/name"] = fixed_strings(prepared.groups)
    data |= choice_arrays(prepared, sequences)
    digest = hashlib.sha256()
    for name in sorted(data):
        digest.update(name.encode() + str(data[name].dtype).encode() + data[name].tobytes())
    attributes = {
        "schema_name": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "creator": f"hetlora prepare {__version__}",
        "created_utc": _now(),
        "name": prepared.name,
        "source": prepared.source,
        "source_sha256": prepared.source_sha256,
        "license": prepared.license,
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer_name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "recipe": json.dumps(prepared.recipe, sort_keys=True),
        "content_sha256": digest.hexdigest(),
    }
    with atomic_file(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        for key, value in attributes.items():
            # Fixed-length strings and 64-bit integers: readable with one plain H5Aread.
            file.attrs[key] = np.bytes_(value.encode("utf-8") or b"\0") if isinstance(value, str) else np.int64(value)
        for name, array in data.items():
            file.create_dataset(name, data=array)
    return describe(prepared, data)


def choice_arrays(prepared: Prepared, sequences: list[Sequence]) -> dict[str, np.ndarray]:
    """The data sets of /choices: answers by label, or of each sequence's own; none where there are neither."""
    own = any(sequence.choices for sequence in sequences)
    answers = [ids for sequence in sequences for ids in sequence.choices] if own else prepared.label_choices
    if not answers:
        return {}
    assert all(len(ids) for ids in answers), "an answer without a token"
    arrays = {
        "choices/ids": np.concatenate(answers).astype(np.int32),
        "choices/offset": offsets([len(ids) for ids in answers]),
    }
    if own:
        arrays["choices/sequence_offset"] = offsets([len(sequence.choices) for sequence in sequences])
        arrays["choices/answer"] = np.array([sequence.answer for sequence in sequences], dtype=np.int32)
    return arrays


def _now() -> str:
    """UTC time of writing; SOURCE_DATE_EPOCH fixes it, so that a repeated preparation gives the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.now(datetime.timezone.utc)
    if epoch and epoch.isdigit():
        moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def describe(prepared: Prepared, data: dict[str, np.ndarray]) -> dict:
    """Counts: clients, held_out, and per part sequences, tokens and loss tokens."""
    lengths = np.diff(data["sequences/offset"])
    cumulative = np.concatenate([[0], np.cumsum(data["tokens/mask"], dtype=np.int64)])
    losses = np.diff(cumulative[data["sequences/offset"]])
    part = data["sequences/part"]
    parts = {
        PART_NAMES[p]: {
            "sequences": int((part == p).sum()),
            "tokens": int(lengths[part == p].sum()),
            "loss_tokens": int(losses[part == p].sum()),
        }
        for p in range(3)
    }
    return {
        "clients": len(prepared.clients),
        "held_out": sum(client.held_out for client in prepared.clients),
        "tokens": int(lengths.sum()),
        "loss_tokens": int(losses.sum()),
        "parts": parts,
    }
