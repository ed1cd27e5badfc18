"""Clients whose sequences lie in a TokenSpool: they look like a list of Client, and are read one at a time."""

from collections.abc import Sequence as SequenceOfAny
from dataclasses import dataclass

import numpy as np

from hetlora.prepare.answers import read_choices
from hetlora.prepare.data_file import Client
from hetlora.prepare.token_spool import TokenSpool


@dataclass(slots=True)
class StoredSequence:
    """As data_file.Sequence; ids and mask are read from disk each time they are asked for."""

    spool: TokenSpool
    place: int
    n_tokens: int
    part: int
    label: int
    group: int
    answer: int
    choices_place: int
    choices_stored: int

    @property
    def choices(self) -> list[np.ndarray]:
        return read_choices(self.spool, self.choices_place, self.choices_stored)

    @property
    def ids(self) -> np.ndarray:
        return self.spool.read(self.place, self.n_tokens)[0]

    @property
    def mask(self) -> np.ndarray:
        return self.spool.read(self.place, self.n_tokens)[1]

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) with one read."""
        return self.spool.read(self.place, self.n_tokens)


class StoredSequences(SequenceOfAny):
    """A range of rows of the table of sequences."""

    def __init__(self, spool: TokenSpool, table: dict[str, np.ndarray], begin: int, end: int):
        self._spool, self._table, self._begin, self._end = spool, table, begin, end

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, i: int) -> StoredSequence:
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = self._begin + i
        values = {name: int(column[row]) for name, column in self._table.items()}
        return StoredSequence(self._spool, **values)


class StoredClients(SequenceOfAny):
    """Clients by number.

    `table`: the fields of StoredSequence of every sequence, sorted by client, then part, then time;
    `offset` [n_clients + 1]: rows of each client.
    """

    def __init__(self, spool: TokenSpool, names: list[tuple[str, bool]], table: dict[str, np.ndarray], offset):
        """`names`: (name, held out) of every client."""
        self._spool, self._names, self._table, self._offset = spool, names, table, offset

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Client:
        if not 0 <= i < len(self):
            raise IndexError(i)
        name, held_out = self._names[i]
        rows = StoredSequences(self._spool, self._table, int(self._offset[i]), int(self._offset[i + 1]))
        return Client(name, rows, held_out)
