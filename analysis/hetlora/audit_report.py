"""The audit's checks: largest difference of each kind, where it was, and the table that is printed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field


@dataclass
class Check:
    """One line of the table. A `limit` of None is information only; kind "equal" counts mismatches."""

    name: str
    limit: float | None
    kind: str = "difference"
    value: float = 0.0  #: largest difference, or number of mismatches
    where: str = ""  #: of the largest difference, or of the first mismatch
    seen: int = 0  #: how many comparisons were made

    @property
    def passed(self) -> bool:
        """Within the limit (or informational). A check without a comparison does not fail."""
        return self.limit is None or self.value <= self.limit

    def verdict(self) -> str:
        """Last column of the table."""
        if self.seen == 0:
            return "not checked"
        if self.limit is None:
            return "(for information)"
        if self.kind == "equal":
            return "yes" if self.passed else "NO"
        return "ok" if self.passed else "TOO LARGE"


@dataclass
class Report:
    """All checks of one audit, in the order in which they were declared."""

    checks: dict[str, Check] = field(default_factory=dict)
    facts: dict[str, float | int | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    required: set[str] = field(default_factory=set)  #: checks that fail the audit when nothing was compared

    def declare(self, name: str, limit: float | None, kind: str = "difference") -> None:
        """Adds a line; its place in the table is the order of declaration."""
        self.checks.setdefault(name, Check(name, limit, kind))

    def difference(self, name: str, value: float, where: str) -> None:
        """Records one difference; NaN counts as infinite."""
        check = self.checks[name]
        value = math.inf if math.isnan(value) else float(value)
        check.seen += 1
        if value > check.value:
            check.value, check.where = value, where

    def relative(self, name: str, ours: float, theirs: float, where: str) -> None:
        """Records |ours - theirs| / |theirs|."""
        difference = abs(ours - theirs)
        self.difference(name, 0.0 if difference == 0 else difference / max(abs(theirs), 1e-12), where)

    def equal(self, name: str, same: bool, where: str) -> None:
        """Records one yes-or-no comparison."""
        check = self.checks[name]
        check.seen += 1
        if not same:
            check.where = check.where or where
            check.value += 1

    @property
    def passed(self) -> bool:
        """Every check with a limit is within it, and every required one compared something."""
        return not self.failed()

    def failed(self) -> list[str]:
        """Names of the checks that fail the audit."""
        checks = self.checks.values()
        return [c.name for c in checks if not c.passed or (c.seen == 0 and c.name in self.required)]

    def as_dict(self) -> dict:
        """For --json."""
        checks = [asdict(c) | {"passed": c.passed} for c in self.checks.values()]
        for check in checks:
            check["value"] = None if math.isinf(check["value"]) else check["value"]
        return {"passed": self.passed, "checks": checks, "facts": self.facts, "notes": self.notes}

    def table(self) -> str:
        """The table for people: one line per check, then facts and notes."""
        head = ("check", "compared", "largest", "limit", "verdict", "where")
        rows = []
        for c in self.checks.values():
            if c.kind == "equal":
                value, limit = (f"{int(c.value)} differ" if c.seen else "-"), "equal"
            else:
                value, limit = (f"{c.value:.2e}" if c.seen else "-"), "-" if c.limit is None else f"{c.limit:.0e}"
            rows.append((c.name, str(c.seen), value, limit, c.verdict(), c.where))
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in (head, tuple("-" * w for w in widths), *rows)]  # fmt: skip
        lines += ["", *(f"{name}: {value}" for name, value in self.facts.items())]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
