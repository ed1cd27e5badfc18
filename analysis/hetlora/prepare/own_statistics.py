"""What happened to own data on the way: lengths, truncation, duplicates across splits; printed and kept in the file."""

from dataclasses import dataclass, field

import numpy as np

from hetlora.prepare.own_index import KEPT, TOO_LONG, TRUNCATED, WITHOUT_LOSS, RecordIndex
from hetlora.prepare.own_splits import Placed
from hetlora.prepare.splits import TRAIN


@dataclass
class Account:
    """`lengths` are tokens of each record before the length policy; `positions` those of the model, 0 if unknown."""

    rule: str
    positions: int = 0
    task: str = "causal"
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    truncated: int = 0
    dropped: int = 0
    without_loss: int = 0
    lost_to_truncation: int = 0
    duplicates: int = 0
    across: int = 0
    sequences_of_clients: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def count_records(self, index: RecordIndex, placed: Placed) -> None:
        """Lengths, what the length policy did, and equal records.

        Records are equal if 8 bytes of a hash of their text are: duplicates repeat an earlier one of the same part,
        and `across` counts contents that are in more than one part.
        """
        state = index.column("state")[placed.rows]
        self.lengths = index.column("length")[placed.rows]
        self.truncated = int(((state & TRUNCATED) != 0).sum())
        self.dropped = int(((state & TOO_LONG) != 0).sum())
        self.without_loss = int(((state & WITHOUT_LOSS) != 0).sum())
        self.lost_to_truncation = int((state == TRUNCATED | WITHOUT_LOSS).sum())
        content = index.column("content")[placed.rows]
        order = np.lexsort((placed.part, content))
        content, part = content[order], placed.part[order]
        same_content = content[1:] == content[:-1]
        same = same_content & (part[1:] == part[:-1])
        self.duplicates = int(same.sum())
        # Contents with two parts have one step between parts, those with three have two.
        steps = content[1:][same_content & ~same]
        self.across = len(np.unique(steps))

    def count_clients(self, index: RecordIndex, placed: Placed) -> None:
        """Training sequences of every client that trains."""
        used = index.column("state")[placed.rows] & (TOO_LONG | WITHOUT_LOSS) == KEPT
        trains = used & (placed.part == TRAIN)
        counts = np.bincount(placed.client[trains])
        self.sequences_of_clients = counts[counts > 0]

    def numbers(self) -> dict[str, int | float]:
        """The counts as they are kept in the file's recipe."""
        n = max(1, len(self.lengths))
        return {
            "records": len(self.lengths),
            "longest": int(self.lengths.max(initial=0)),
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
        own = self.sequences_of_clients if len(self.sequences_of_clients) else np.zeros(1, dtype=np.int64)
        result = [
            f"split: {self.rule}",
            f"training sequences of a client: median {int(np.median(own))}, largest {own.max()}, "
            f"{len(own)} client{'' if len(own) == 1 else 's'}",
            f"length of a record in tokens: median {middle}, 90 % {most}, largest {self.lengths.max()}",
            f"truncated: {self.truncated:,} of {n:,} ({self.truncated / n:.1%}); left out: {self.dropped:,} too long, "
            f"{self.without_loss:,} without a loss token",
            f"duplicates: {self.duplicates:,} within a split, {self.across:,} texts in more than one split",
        ]
        longer = int((self.lengths > self.positions).sum()) if self.positions else 0
        if longer and not self.truncated and not self.dropped:
            cure = "a run cuts them into windows of data.sequence_length"
            if self.task == "classification":
                cure = f"give --max-length {self.positions}, or a run sees only the last piece of them"
            result.append(f"{longer:,} records are longer than the model's {self.positions} positions: {cure}")
        if self.lost_to_truncation:
            result.append(
                f"{self.lost_to_truncation:,} records lost every loss token to the truncation and are left out: take "
                "--truncation-side prompt"
            )
        if self.across:
            result.append("texts in more than one split make the evaluation look better than it is")
        return result
