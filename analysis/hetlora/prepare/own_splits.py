"""Which part a record of own data belongs to: by a field, by seeded fractions of records, or by client and time."""

from dataclasses import dataclass

from hetlora.errors import InputError
from hetlora.prepare import splits
from hetlora.prepare.own_records import Record
from hetlora.prepare.splits import TEST, TRAIN, VALID

DEFAULT_FRACTION = 0.1
HELD_OUT = "(held out)"


@dataclass
class Placed:
    """A record, its part, and the client that it goes to."""

    record: Record
    part: int
    client: str
    held_out: bool


def place(records: list[Record], options) -> tuple[list[Placed], str]:
    """Every record with its part and client, and the rule in words.

    With clients and no other wish: held-out clients by hash, the others in time order (docs/data.md). Else records of
    valid and test belong to one made-up client that never trains: they are the global evaluation set.
    """
    by_record = options.valid_fraction is not None or options.test_fraction is not None
    if options.split_field is None and options.client_field is not None and not by_record:
        return _by_client(records, options), f"clients, {options.held_out_fraction:g} held out; others by time"
    given = [record.part for record in records]
    has_valid, has_test = VALID in given, TEST in given
    # Clients as well as a fraction: what is not named is not wanted.
    default = DEFAULT_FRACTION if not by_record else 0.0
    valid = 0.0 if has_valid else _chosen(options.valid_fraction, default)
    without_field = 0.0 if options.split_field is not None else default
    test = 0.0 if has_test else _chosen(options.test_fraction, without_field)
    rule = "by field" if options.split_field is not None else "by record"
    for name, fraction in (("valid", valid), ("test", test)):
        if fraction:
            rule += f", {fraction:g} of the records for {name} by hash (seed {options.seed})"
    held_out = HELD_OUT
    while any(record.client == held_out for record in records):
        held_out = f"({held_out})"
    placed = []
    for record in records:
        part = record.part
        if part in (None, TRAIN):
            # By content: equal records never stand on both sides.
            value = splits.unit_hash(options.seed, "split", record.content)
            part = VALID if value < valid else TEST if value < valid + test else TRAIN
        name = record.client if part == TRAIN else held_out
        placed.append(Placed(record, part, name, part != TRAIN))
    return placed, rule


def _chosen(fraction: float | None, default: float) -> float:
    return default if fraction is None else fraction


def _by_client(records: list[Record], options) -> list[Placed]:
    by_client: dict[str, list[Record]] = {}
    for record in records:
        by_client.setdefault(record.client, []).append(record)
    part_of: dict[int, tuple[int, bool]] = {}
    for name, own in by_client.items():
        held = splits.held_out_part(name, options.held_out_fraction, options.seed)
        parts = splits.time_split(len(own)) if held == TRAIN else [held] * len(own)
        for record, part in zip(own, parts, strict=True):
            part_of[id(record)] = (part, held != TRAIN)
    return [Placed(record, part_of[id(record)][0], record.client, part_of[id(record)][1]) for record in records]


def check_labels(placed: list[Placed], skip_bad: bool) -> list[Placed]:
    """The records whose label (where they have one) occurs in training; InputError for others, unless `skip_bad`."""
    trained = {one.record.label for one in placed if one.part == TRAIN}
    unseen = [one for one in placed if one.record.label is not None and one.record.label not in trained]
    if not unseen:
        return placed
    first = unseen[0].record
    message = (
        f"label {first.label!r} occurs in valid or test but never in training: {first.where}"
        f"{f' and {len(unseen) - 1} more records' if len(unseen) > 1 else ''}"
    )
    if not skip_bad:
        raise InputError(f"{message}; change the split or leave them out with --skip-bad")
    gone = {id(one) for one in unseen}
    return [one for one in placed if id(one) not in gone]
