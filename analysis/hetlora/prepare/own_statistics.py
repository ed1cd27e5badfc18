"""What happened to own data on the way: lengths, truncation, duplicates across splits; printed and kept in the file."""

from dataclasses import dataclass, field

import numpy as np

from hetlora.prepare.data_file import Client
from hetlora.prepare.own_splits import Placed
from hetlora.prepare.splits import TRAIN


@dataclass
class Account:
    """`lengths` are tokens of each record before the length policy; `positions` those of the model, 0 if unknown."""

    rule: str
    positions: int = 0
    lengths: list[int] = field(default_factory=list)
    truncated: int = 0
    dropped: int = 0
    without_loss: int = 0
    lost_to_truncation: int = 0
    duplicates: int = 0
    across: int = 0
    sequences_of_clients: list[int] = field(default_factory=list)

    def count_duplicates(self, placed: list[Placed]) -> None:
        """Records that repeat an earlier one of the same part, and those whose content is in another part, too."""
        parts: dict[str, set[int]] = {}
        for one in placed:
            seen = parts.setdefault(one.record.content, set())
            self.duplicates += one.part in seen
            seen.add(one.part)
        self.across = sum(len(seen) > 1 for seen in parts.values())

    def count_clients(self, clients: list[Client]) -> None:
        """Training sequences of every client that trains."""
        counts = [sum(s.part == TRAIN for s in client.sequences) for client in clients if not client.held_out]
        self.sequences_of_clients = [count for count in counts if count]

    def numbers(self) -> dict[str, int | float]:
        """The counts as they are kept in the file's recipe."""
        n = max(1, len(self.lengths))
        return {
            "records": len(self.lengths),
            "longest": max(self.lengths, default=0),
            "truncated_share": round(self.truncated / n, 6),
            "dropped": self.dropped,
            "without_loss": self.without_loss,
            "duplicates": self.duplicates,
            "across_splits": self.across,
        }

    def lines(self) -> list[str]:
        """The counts as lines for people."""
        n = max(1, len(self.lengths))
        middle, most = (int(np.quantile(self.lengths, q)) for q in (0.5, 0.9))
        own = np.array(self.sequences_of_clients or [0])
        result = [
            f"split: {self.rule}",
            f"training sequences of a client: median {int(np.median(own))}, largest {own.max()}, {len(own)} clients",
            f"length of a record in tokens: median {middle}, 90 % {most}, largest {max(self.lengths)}",
            f"truncated: {self.truncated:,} of {n:,} ({self.truncated / n:.1%}); left out: {self.dropped:,} too long, "
            f"{self.without_loss:,} without a loss token",
            f"duplicates: {self.duplicates:,} within a split, {self.across:,} texts in more than one split",
        ]
        longer = sum(length > self.positions for length in self.lengths) if self.positions else 0
        if longer and not self.truncated and not self.dropped:
            result.append(
                f"{longer:,} records are longer than the model's {self.positions} positions: a run cuts them into "
                "windows of data.sequence_length"
            )
        if self.lost_to_truncation:
            result.append(
                f"{self.lost_to_truncation:,} records lost every loss token to the truncation and are left out: take "
                "--truncation-side prompt"
            )
        if self.across:
            result.append("texts in more than one split make the evaluation look better than it is")
        return result
