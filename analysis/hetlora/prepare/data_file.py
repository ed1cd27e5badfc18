"""The prepared data file, schema "hetlora-data" version 1: what it holds, and writing it (docs/data.md)."""

import datetime
import json
import os
from collections.abc import Sequence as SequenceOfAny
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetlora import __version__
from hetlora.errors import InputError
from hetlora.files import atomic_file, store_sha256
from hetlora.prepare.splits import TRAIN
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

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask)."""
        return self.ids, self.mask


@dataclass
class Client:
    """A client and its sequences in time order (they are sorted by part when written), or StoredSequences."""

    name: str
    sequences: SequenceOfAny[Sequence]
    held_out: bool = False


@dataclass
class Prepared:
    """Everything a file holds besides the vocabulary. `recipe`: the options that led to it; `notes`: lines to print.

    `task` classification: the last token of every sequence stands for its label.
    """

    name: str
    source: str
    source_sha256: str
    license: str
    recipe: dict
    clients: SequenceOfAny[Client]
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    label_choices: list[np.ndarray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: str = "causal"


def prompt_length(mask: np.ndarray) -> int:
    """Number of tokens before the last run of ones in `mask` (where the last own turn starts); its length if none."""
    ones = np.flatnonzero(mask)
    if not len(ones):
        return len(mask)
    breaks = np.flatnonzero(np.diff(ones) > 1)
    return int(ones[breaks[-1] + 1]) if len(breaks) else int(ones[0])


def fixed_strings(names: list[str]) -> np.ndarray:
    """Names as a NUL-padded fixed-length UTF-8 byte array, which every HDF5 reader understands."""
    return np.array([name.encode("utf-8") for name in names], dtype="S") if names else np.zeros(0, dtype="S1")


def offsets(lengths: list[int]) -> np.ndarray:
    """int64 [n+1]: 0 and the running sums."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def write(path: str, prepared: Prepared, tokenizer: TextTokenizer) -> dict:
    """Write the file under a temporary name and rename it; returns its counts (SequenceWriter.summary).

    Sequences are taken one at a time, so that `prepared.clients` may read them from disk. InputError if there is
    nothing to train on; AssertionError if sequences break the format's rules (our bug).
    """
    import h5py

    from hetlora.prepare.sequence_writer import SequenceWriter, content_sha256

    if not any(sequence.part == TRAIN for client in prepared.clients for sequence in client.sequences):
        raise InputError(
            f"{prepared.source}: no training sequences are left after filtering; "
            "loosen --min-words, --held-out-fraction or --max-length"
        )
    vocabulary = tokenizer.vocabulary()
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
    }
    target = Path(path).expanduser()
    with atomic_file(target) as temporary:
        with h5py.File(temporary, "w") as file:
            writer = SequenceWriter(file, prepared, tokenizer.vocab_size)
            summary = writer.write()
            file.create_dataset("clients/name", data=fixed_strings([client.name for client in prepared.clients]))
            file.create_dataset("vocab/bytes", data=np.frombuffer(b"".join(vocabulary), dtype=np.uint8))
            file.create_dataset("vocab/offset", data=offsets([len(token) for token in vocabulary]))
            if prepared.labels:
                file.create_dataset("labels/name", data=fixed_strings(prepared.labels))
            if prepared.groups:
                file.create_dataset("groups/name", data=fixed_strings(prepared.groups))
            attributes["content_sha256"] = content_sha256(file)
            if prepared.task != "causal":
                attributes |= {"task": prepared.task, "longest_sequence": summary["longest"]}
            for key, value in attributes.items():
                # Fixed-length strings and 64-bit integers: readable with one plain H5Aread.
                text = isinstance(value, str)
                file.attrs[key] = np.bytes_(value.encode("utf-8") or b"\0") if text else np.int64(value)
    store_sha256(target)
    return summary


def _now() -> str:
    """UTC time of writing; SOURCE_DATE_EPOCH fixes it, so that a repeated preparation gives the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.now(datetime.timezone.utc)
    if epoch and epoch.isdigit():
        moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
