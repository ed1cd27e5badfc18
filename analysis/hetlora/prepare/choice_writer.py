"""Writes /choices of a prepared data file: docs/data.md has the format."""

from array import array

import numpy as np

BLOCK_TOKENS = 1 << 20


class ChoiceWriter:
    """Takes the sequences in the file's order. Memory: a block of tokens, 4 bytes an answer and 8 a sequence."""

    def __init__(self, file, label_choices: list[np.ndarray]):
        """`label_choices`: the answers by label, where sequences have none of their own."""
        self._file, self._label_choices = file, label_choices
        self._lengths, self._counts, self._answers = array("i"), array("i"), array("i")
        self._block: list[np.ndarray] = []
        self._waiting = self._written = 0
        self._ids = None

    def add(self, sequence) -> None:
        """The next sequence's answers (none is well)."""
        choices = sequence.choices
        self._counts.append(len(choices))
        self._answers.append(sequence.answer)
        for ids in choices:
            self._put(ids)

    def finish(self) -> None:
        """Write what is left; nothing at all where there are no answers."""
        own = len(self._lengths) > 0
        if not own:
            for ids in self._label_choices:
                self._put(ids)
        if not self._lengths:
            return
        self._flush()
        self._file.create_dataset("choices/offset", data=_offsets(self._lengths))
        if own:
            self._file.create_dataset("choices/sequence_offset", data=_offsets(self._counts))
            self._file.create_dataset("choices/answer", data=np.array(self._answers, dtype=np.int32))

    def _put(self, ids: np.ndarray) -> None:
        assert len(ids), "an answer without a token"
        self._lengths.append(len(ids))
        self._block.append(ids)
        self._waiting += len(ids)
        if self._waiting >= BLOCK_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if self._ids is None:
            self._ids = self._file.create_dataset(
                "choices/ids",
                (0,),
                maxshape=(None,),
                chunks=(min(max(self._waiting, 1), BLOCK_TOKENS),),
                dtype=np.int32,
            )
        end = self._written + self._waiting
        self._ids.resize((end,))
        if self._block:
            self._ids[self._written : end] = np.concatenate(self._block)
        self._block, self._waiting, self._written = [], 0, end


def _offsets(lengths: array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
