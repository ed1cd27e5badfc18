"""`--where`: the runs whose settings fulfil conditions; one reading of it for every verb."""

import difflib
import re
from collections.abc import Callable, Sequence

from hetlora.errors import UsageError
from hetlora.run_record import RunRecord


def check_keys(records: Sequence[RunRecord], keys: Sequence[str]) -> None:
    """UsageError for a key that no run's config has."""
    known = dict.fromkeys(key for record in records for key in record.settings)
    for key in keys:
        if known and key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.endswith("." + key)]
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"no run's config has the key {key}{hint}")


def where_filter(records: Sequence[RunRecord], condition: str) -> Callable[[RunRecord], bool]:
    """The test of one condition: KEY=VALUE[,VALUE...] (any of these) or KEY~TEXT (the value contains it).

    Numbers are compared as numbers: 0.50 is 0.5. UsageError for another form and for a key that no run has.
    """
    key, sign, value = (part.strip() for part in re.match(r"([^=~]*)([=~]?)(.*)", condition, re.DOTALL).groups())
    if not sign or not value:
        raise UsageError(
            f"--where {condition}: write section.key=value (commas: any of these values) or section.key~text"
        )
    check_keys(records, (key,))
    if sign == "~":
        return lambda record: value in str(record.settings.get(key, ""))
    wanted = [value, *(one.strip() for one in value.split(","))]
    return lambda record: any(_same(record.settings.get(key), text) for text in wanted)


def chosen_runs(records: list[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """The runs that fulfil every condition. UsageError, with the values there are, for one that none fulfils."""
    for condition in conditions:
        test = where_filter(records, condition)
        kept = [record for record in records if test(record)]
        if records and not kept:
            key = re.split("[=~]", condition)[0].strip()
            found = sorted({str(record.settings.get(key, "")) for record in records})
            raise UsageError(f"--where {condition}: no run has it; their values: {', '.join(found)}")
        records = kept
    return records


def _same(value: object, text: str) -> bool:
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text
