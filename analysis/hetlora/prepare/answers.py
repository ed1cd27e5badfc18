"""Answers that a model may choose among, while records are read one after another: each record's own, or by label."""

import numpy as np

from hetlora.prepare.choices import check_label_alike, replies, unlike
from hetlora.prepare.own_encoding import RecordEncoder
from hetlora.prepare.own_records import Record
from hetlora.prepare.token_spool import TokenSpool


class Answers:
    """Keeps a record's own answers in the spool, and holds every label to one reply."""

    def __init__(self, spool: TokenSpool, encoder: RecordEncoder, words: dict[str, str] | None):
        """`words`: the reply of each label; None: the label itself."""
        self._spool, self._encoder, self._words = spool, encoder, words
        self._reply: dict[str, np.ndarray] = {}
        self._first: Record | None = None

    def keep(self, record: Record) -> tuple[int, int]:
        """(place, numbers stored) of the record's own answers, for read_choices; (0, 0) where it has none."""
        if not record.choices:
            return 0, 0
        found = replies(record, record.choices, self._encoder.encode)
        numbers = np.concatenate([[len(found)], [len(ids) for ids in found], *found]).astype(np.int32)
        return self._spool.append(numbers, np.zeros(len(numbers), dtype=np.uint8)), len(numbers)

    def check_label(self, record: Record, encoded: tuple[np.ndarray, np.ndarray]) -> None:
        """Before the length policy. InputError if its reply differs from an earlier one of the same label."""
        self._first = self._first or record
        self._reply.setdefault(record.label, check_label_alike(record, encoded, self._reply.get(record.label)))

    def of_labels(self, names: list[str]) -> list[np.ndarray]:
        """The tokens of every label's reply. InputError where the prompt depends on the reply."""
        texts = [self._words[label] if self._words else label for label in names]
        found = replies(self._first, texts, self._encoder.encode)
        for name, ids in zip(names, found, strict=True):
            if not np.array_equal(ids, self._reply[name]):
                raise unlike(name, self._first.where)
        return found


def read_choices(spool: TokenSpool, place: int, stored: int) -> list[np.ndarray]:
    """What Answers.keep put there."""
    if not stored:
        return []
    numbers, _ = spool.read(place, stored)
    n = int(numbers[0])
    return np.split(numbers[1 + n :], np.cumsum(numbers[1:n]))
