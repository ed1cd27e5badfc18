"""Records of any kind of file as dicts: JSON lines, CSV and TSV with a header, Parquet; bad ones are accounted for."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from hetlora.errors import InputError, need
from hetlora.files import plain_suffix, read_lines
from hetlora.prepare.records import BadLine, BadLines, parse, report

KINDS = {
    "jsonl": "JSON lines (.jsonl, may end in .xz)",
    "csv": ".csv or .tsv with a header line (may end in .xz)",
    "parquet": "Parquet (.parquet)",
}
ROWS_AT_ONCE = 4096


def read_table(file: Path, kind: str, pick: Callable[[dict, str], object], skip_bad: bool) -> Iterator[object]:
    """`pick(record, "file:line")` of every record; `pick` raises BadLine for one that it cannot use.

    Bad ones are counted and the first few shown; without `skip_bad` they are an InputError at the end of the file.
    """
    reader = {"jsonl": _json_lines, "csv": _csv_rows, "parquet": _parquet_rows}[kind]
    bad = BadLines()
    n_records = 0
    for number, record in reader(file):
        n_records += 1
        try:
            if isinstance(record, BadLine):
                raise record
            value = pick(record, f"{file}:{number}")
        except BadLine as error:
            bad.add(number, str(error))
            continue
        if bad.n == 0 or skip_bad:  # else the file is refused at its end: nothing more is worth encoding
            yield value
    if n_records == 0:
        raise InputError(f"{file} is empty; records were expected ({KINDS[kind]})")
    if bad.n:
        report(file, bad, n_records, skip_bad)


def _json_lines(file: Path) -> Iterator[tuple[int, object]]:
    for number, line in read_lines(file):
        if not line.strip():
            continue
        try:
            yield number, parse(line)
        except BadLine as error:
            yield number, error


def _csv_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Rows after the header as dicts of texts. TSV is read without quotes, as it is commonly written."""
    if plain_suffix(file) == ".tsv":
        rows = csv.reader(_csv_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(_csv_lines(file))
    try:
        header = next(rows, None)
        if header is None:
            return
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                yield rows.line_num, BadLine(f"{len(row)} columns, the header has {len(header)}")
            else:
                yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}:{rows.line_num}: not CSV: {error}") from error


def _csv_lines(file: Path) -> Iterator[str]:
    """Lines with their ends; InputError for one that is not UTF-8."""
    for number, line in read_lines(file):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file}:{number}: not UTF-8 at byte {error.start} of the line; "
                f"convert it, e.g. with iconv -f ISO-8859-1 -t UTF-8"
            ) from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Rows as dicts, numbered from 1; a bounded number is in memory at once."""
    parquet = need("pyarrow.parquet", "parquet")
    arrow = need("pyarrow", "parquet")
    try:
        table = parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}; is the file complete?") from error
