"""JSON lines, plain or .xz: records with the fields that are wanted, and an honest account of the bad lines."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hetlora.errors import InputError
from hetlora.files import existing_file, read_lines

SHOWN = 5  # bad lines that are spelled out


class BadLine(Exception):
    """One line is not what it should be; the text says why."""


@dataclass
class BadLines:
    """How many lines of a file were bad, and the first few with their numbers."""

    n: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, why: str) -> None:
        """One more."""
        self.n += 1
        if len(self.first) < SHOWN:
            self.first.append((number, why))


def read_records(path: str, what: str, pick: Callable[[dict], object], skip_bad: bool) -> Iterator[object]:
    """`pick(record)` for every line; blank lines are ignored.

    `pick` raises BadLine for a record it cannot use. Bad lines are counted and the first few shown with their numbers;
    without `skip_bad` they are an InputError after the whole file has been looked at.
    """
    file = existing_file(path, what)
    bad = BadLines()
    n_lines = 0
    for number, line in read_lines(file):
        if not line.strip():
            continue
        n_lines += 1
        try:
            record = parse(line)
            value = pick(record)
        except BadLine as error:
            bad.add(number, str(error))
            continue
        yield value
    if n_lines == 0:
        raise InputError(f"{file} is empty; one JSON object a line was expected ({what})")
    if bad.n:
        report(file, bad, n_lines, skip_bad)


def parse(line: bytes) -> dict:
    """The JSON object on one line, or BadLine."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine(
            f"not UTF-8 at byte {error.start} (convert it, e.g. with iconv -f ISO-8859-1 -t UTF-8)"
        ) from error
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadLine("JSON nested too deeply") from error
    if not isinstance(record, dict):
        raise BadLine(f"a JSON {type(record).__name__}, an object was expected")
    return record


def report(file: Path, bad: BadLines, n_lines: int, skip_bad: bool) -> None:
    """Print what was skipped, or raise InputError with the same account."""
    shown = "\n".join(f"  {file}:{number}: {why}" for number, why in bad.first)
    more = f"\n  ... and {bad.n - SHOWN} more" if bad.n > SHOWN else ""
    if skip_bad:
        print(f"hetlora prepare: skipped {bad.n} bad of {n_lines} lines in {file}:\n{shown}{more}", file=sys.stderr)
        return
    raise InputError(
        f"{bad.n} bad of {n_lines} lines in {file}:\n{shown}{more}\nmend them, or leave them out with --skip-bad"
    )


def text_field(record: dict, field: str) -> str:
    """The non-blank string in `field`, stripped, or BadLine."""
    if field not in record:
        raise BadLine(f"no field {field!r} (fields here: {', '.join(sorted(record)) or 'none'})")
    value = record[field]
    if not isinstance(value, str):
        raise BadLine(f"field {field!r} is {type(value).__name__}, a string was expected")
    if not value.strip():
        raise BadLine(f"field {field!r} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLine(f"field {field!r} holds half a surrogate pair, which is no character") from error
    return value.strip()


def name_field(record: dict, field: str) -> str:
    """A client name or label: a non-blank string, an integer or a boolean, as text."""
    value = record.get(field)
    if isinstance(value, (int, bool)):
        return str(value)
    name = text_field(record, field)
    if "\0" in name:
        raise BadLine(f"field {field!r} holds a NUL character")
    return name
