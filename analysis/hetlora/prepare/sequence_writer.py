"""Writes the tokens and the index of a prepared data file, one sequence after another: docs/data.md has the format."""

import hashlib
from collections.abc import Iterable

import numpy as np

from hetlora.prepare.choice_writer import ChoiceWriter
from hetlora.prepare.data_file import Client, Prepared, Sequence, prompt_length
from hetlora.prepare.splits import PART_NAMES, TRAIN

BLOCK_TOKENS = 1 << 20  # tokens in memory at once (one longer sequence is written whole)


def by_part(client: Client) -> Iterable[Sequence]:
    """A client's sequences in the order of the file; those of StoredClients are in it."""
    if isinstance(client.sequences, list):
        return sorted(client.sequences, key=lambda sequence: sequence.part)  # stable: time order stays within a part
    return client.sequences


class SequenceWriter:
    """Writes /tokens, /sequences and /clients but for the names. Memory: a block of tokens, and 30 bytes a sequence."""

    def __init__(self, file, prepared: Prepared, vocab_size: int):
        self._file, self._prepared, self._vocab_size = file, prepared, vocab_size
        counts = [len(client.sequences) for client in prepared.clients]
        n = sum(counts)
        self._index = {
            "client": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            "part": np.empty(n, dtype=np.uint8),
            "label": np.empty(n, dtype=np.int32),
            "prompt_length": np.empty(n, dtype=np.int32),
            "n_loss": np.empty(n, dtype=np.int32),
            "group": np.empty(n, dtype=np.int32),
        }
        self._offset = np.zeros(n + 1, dtype=np.int64)
        for row, sequence in enumerate(s for client in prepared.clients for s in by_part(client)):
            self._offset[row + 1] = self._offset[row] + sequence.n_tokens
        self._client_offset = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def write(self) -> dict:
        """Write everything; returns clients, held_out, and per part and in all sequences, tokens and loss tokens;
        the longest sequence in tokens."""
        file, index = self._file, self._index
        n_tokens = int(self._offset[-1])
        self._tokens = (
            file.create_dataset("tokens/ids", (n_tokens,), dtype=np.int32),
            file.create_dataset("tokens/mask", (n_tokens,), dtype=np.uint8),
        )
        self._written = 0
        choices = ChoiceWriter(file, self._prepared.label_choices)
        row, block = 0, []
        waiting = 0
        for client in self._prepared.clients:
            assert len(client.sequences), f"client {client.name} has no sequences"
            for sequence in by_part(client):
                ids, mask = sequence.tokens()
                self._check(client, sequence, ids, mask)
                index["part"][row] = sequence.part
                index["label"][row] = sequence.label
                index["group"][row] = sequence.group
                index["prompt_length"][row] = prompt_length(mask)
                index["n_loss"][row] = np.count_nonzero(mask)
                choices.add(sequence)
                block.append((ids, mask))
                waiting += len(ids)
                row += 1
                if waiting >= BLOCK_TOKENS:
                    self._flush(block)
                    block, waiting = [], 0
        self._flush(block)
        choices.finish()
        file.create_dataset("sequences/offset", data=self._offset)
        for name, values in index.items():
            if name != "group" or self._prepared.groups:
                file.create_dataset(f"sequences/{name}", data=values)
        held_out = np.fromiter((client.held_out for client in self._prepared.clients), dtype=np.uint8)
        file.create_dataset("clients/offset", data=self._client_offset)
        file.create_dataset("clients/held_out", data=held_out)
        return self._summary(int(held_out.sum()))

    def _check(self, client: Client, sequence: Sequence, ids: np.ndarray, mask: np.ndarray) -> None:
        assert len(ids) == len(mask) >= 2, client.name
        assert mask[0] == 0 and mask.any(), client.name
        assert ids.min() >= 0 and ids.max() < self._vocab_size, client.name
        assert (sequence.part != TRAIN) if client.held_out else True, client.name

    def _flush(self, block: list[tuple[np.ndarray, np.ndarray]]) -> None:
        if not block:
            return
        end = self._written + sum(len(ids) for ids, _ in block)
        for data, pieces in zip(self._tokens, zip(*block, strict=True), strict=True):
            data[self._written : end] = np.concatenate(pieces)
        self._written = end

    def _summary(self, held_out: int) -> dict:
        lengths, part, losses = np.diff(self._offset), self._index["part"], self._index["n_loss"]
        parts = {
            PART_NAMES[p]: {
                "sequences": int((part == p).sum()),
                "tokens": int(lengths[part == p].sum()),
                "loss_tokens": int(losses[part == p].sum(dtype=np.int64)),
            }
            for p in range(3)
        }
        return {
            "clients": len(self._prepared.clients),
            "held_out": held_out,
            "tokens": int(lengths.sum()),
            "loss_tokens": int(losses.sum(dtype=np.int64)),
            "longest": int(lengths.max(initial=0)),
            "parts": parts,
        }


def content_sha256(file) -> str:
    """SHA-256 over names, types and values of all datasets, read back in blocks: equal for equal data."""
    names: list[str] = []
    file.visit(names.append)
    digest = hashlib.sha256()
    for name in sorted(names):
        data = file[name]
        if not hasattr(data, "dtype"):  # a group
            continue
        digest.update(name.encode() + str(data.dtype).encode())
        for begin in range(0, len(data), BLOCK_TOKENS):
            digest.update(data[begin : begin + BLOCK_TOKENS].tobytes())
    return digest.hexdigest()
