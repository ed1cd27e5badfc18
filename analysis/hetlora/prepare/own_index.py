"""What is known of every record of own data while its tokens lie on disk: about 70 bytes each, no text."""

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hetlora.prepare.own_records import Record
from hetlora.prepare.splits import unit_hash

KEPT, TRUNCATED, TOO_LONG, WITHOUT_LOSS = 0, 1, 2, 4  # flags of `state`
NOTHING = -1


class Names:
    """Numbers of names in order of appearance."""

    def __init__(self):
        self.names: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """The number of a name, a new one where it is seen for the first time; NOTHING for None."""
        if name is None:
            return NOTHING
        found = self._number.setdefault(name, len(self.names))
        if found == len(self.names):
            self.names.append(name)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._number


@dataclass(frozen=True)
class StoredTokens:
    """Where a record's tokens are in the spool: its sequence, and its answers (place, numbers stored)."""

    place: int
    length: int  # before the length policy
    stored: int  # after it; 0: left out
    choices: tuple[int, int]


class RecordIndex:
    """Columns of numbers, one row a record, in the order of the input."""

    COLUMNS = {"client": "i", "part": "b", "label": "i", "group": "i", "content": "Q", "unit": "d", "line": "q",
               "place": "q", "length": "i", "stored": "i", "state": "B", "answer": "i", "choices_place": "q",
               "choices_stored": "i"}  # fmt: skip

    def __init__(self, files: list[Path], seed: int):
        self.clients, self.labels, self.groups = Names(), Names(), Names()
        self._files, self._seed = files, seed
        self._first_of_file: list[int] = []
        self._columns = {name: array(kind) for name, kind in self.COLUMNS.items()}

    def begin_file(self) -> None:
        """The records from here on are of the next file."""
        self._first_of_file.append(len(self))

    def __len__(self) -> int:
        return len(self._columns["client"])

    def append(self, record: Record, tokens: "StoredTokens", state: int) -> None:
        """A record, where its tokens are, and what the length policy did (`state`)."""
        content = record.content.encode("utf-8", errors="surrogatepass")
        row = {
            "client": self.clients.number(record.client),
            "part": NOTHING if record.part is None else record.part,
            "label": self.labels.number(record.label),
            "group": self.groups.number(record.group),
            "content": int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"),
            "unit": unit_hash(self._seed, "split", record.content),
            "line": int(record.where.rsplit(":", 1)[1]),
            "place": tokens.place,
            "length": tokens.length,
            "stored": tokens.stored,
            "state": state,
            "answer": record.answer,
            "choices_place": tokens.choices[0],
            "choices_stored": tokens.choices[1],
        }
        for name, value in row.items():
            self._columns[name].append(value)

    def where(self, row: int) -> str:
        """ "file:line" of a record."""
        number = int(np.searchsorted(self._first_of_file, row, side="right")) - 1
        return f"{self._files[number]}:{self._columns['line'][row]}"

    def column(self, name: str) -> np.ndarray:
        """All values of a column, not copied. Nothing may be appended while it is in use."""
        return np.frombuffer(self._columns[name], dtype=self._columns[name].typecode)
