"""Which part a record of own data belongs to: by a field, by seeded fractions of records, or by client and time."""

from dataclasses import dataclass

import numpy as np

from hetlora.errors import InputError
from hetlora.prepare import splits
from hetlora.prepare.own_index import NOTHING, RecordIndex
from hetlora.prepare.splits import TEST, TRAIN, VALID

DEFAULT_FRACTION = 0.1
HELD_OUT = "(held out)"


@dataclass
class Placed:
    """Records that are used (rows of the index, rising), with the part and client of each. `held_out`: of clients."""

    rows: np.ndarray
    part: np.ndarray
    client: np.ndarray
    held_out: set[int]

    def only(self, wanted: np.ndarray) -> "Placed":
        """Those that a boolean array [n] says."""
        return Placed(self.rows[wanted], self.part[wanted], self.client[wanted], self.held_out)


def place(index: RecordIndex, rows: np.ndarray, options) -> tuple[Placed, str]:
    """The records in `rows` with their parts and clients, and the rule in words.

    With clients and no other wish: held-out clients by hash, the others in time order (docs/data.md). Else records of
    valid and test belong to one made-up client that never trains: they are the global evaluation set.
    """
    by_record = options.valid_fraction is not None or options.test_fraction is not None
    if options.split_field is None and options.client_field is not None and not by_record:
        return _by_client(index, rows, options), f"clients, {options.held_out_fraction:g} held out; others by time"
    part = index.column("part")[rows].copy()
    has_valid, has_test = bool((part == VALID).any()), bool((part == TEST).any())
    # Clients as well as a fraction: what is not named is not wanted.
    default = DEFAULT_FRACTION if not by_record else 0.0
    valid = 0.0 if has_valid else _chosen(options.valid_fraction, default)
    without_field = 0.0 if options.split_field is not None else default
    test = 0.0 if has_test else _chosen(options.test_fraction, without_field)
    rule = "by field" if options.split_field is not None else "by record"
    for name, fraction in (("valid", valid), ("test", test)):
        if fraction:
            rule += f", {fraction:g} of the records for {name} by hash (seed {options.seed})"
    # By content: equal records never stand on both sides.
    unit = index.column("unit")[rows]
    open_ = (part == NOTHING) | (part == TRAIN)
    part[open_] = np.select([unit < valid, unit < valid + test], [VALID, TEST], TRAIN)[open_]
    name = HELD_OUT
    while name in index.clients:
        name = f"({name})"
    held_out = index.clients.number(name)
    client = np.where(part == TRAIN, index.column("client")[rows], held_out)
    return Placed(rows, part, client, {held_out}), rule


def _chosen(fraction: float | None, default: float) -> float:
    return default if fraction is None else fraction


def _by_client(index: RecordIndex, rows: np.ndarray, options) -> Placed:
    client = index.column("client")[rows]
    part = np.empty(len(rows), dtype=np.int8)
    held_out = set()
    order = np.argsort(client, kind="stable")
    numbers, starts = np.unique(client[order], return_index=True)
    for number, own in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        held = splits.held_out_part(index.clients.names[number], options.held_out_fraction, options.seed)
        part[own] = splits.time_split(len(own)) if held == TRAIN else held
        if held != TRAIN:
            held_out.add(number)
    return Placed(rows, part, client, held_out)


def check_labels(index: RecordIndex, placed: Placed, skip_bad: bool) -> Placed:
    """The records whose label (where they have one) occurs in training; InputError for others, unless `skip_bad`."""
    label = index.column("label")[placed.rows]
    trained = np.zeros(len(index.labels.names) + 1, dtype=bool)
    trained[label[placed.part == TRAIN]] = True
    trained[NOTHING] = True
    unseen = np.flatnonzero(~trained[label])
    if not len(unseen):
        return placed
    first = unseen[0]
    message = (
        f"label {index.labels.names[label[first]]!r} occurs in valid or test but never in training: "
        f"{index.where(placed.rows[first])}{f' and {len(unseen) - 1} more records' if len(unseen) > 1 else ''}"
    )
    if not skip_bad:
        raise InputError(f"{message}; change the split or leave them out with --skip-bad")
    return placed.only(trained[label])
