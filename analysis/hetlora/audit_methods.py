"""What a method gives to a client and lets it change: slots, received factors, frozen entries, the scoring pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetlora.audit_config import Settings
from hetlora.audit_trace import Event, Layout, join, resize, select, split

Masks = list[tuple[np.ndarray, np.ndarray]]  #: (rows of A, rows of Bt) that train, for every matrix


@dataclass
class Private:
    """The B that a client keeps for itself (shared_factors = a), by client: (lora_rank, Bt of every matrix)."""

    kept: dict[int, tuple[int, list[np.ndarray]]]

    def keep(self, client: int, adapter: np.ndarray, layout: Layout, lora_rank: int) -> None:
        """After a participation that was not dropped."""
        self.kept[client] = (lora_rank, [bt.copy() for _, bt in split(adapter, layout, lora_rank)])

    def put(self, client: int, adapter: np.ndarray, layout: Layout, lora_rank: int) -> np.ndarray:
        """The adapter with the client's own B; one that never took part keeps what is there."""
        if client not in self.kept:
            return adapter
        own = self.kept[client][1]
        return join([(a, bt) for (a, _), bt in zip(split(adapter, layout, lora_rank), own, strict=True)])


def received_size(settings: Settings, event: Event, rank_max: int, lora_rank: int) -> int:
    """Slots of the adapter that a client of this lora_rank receives."""
    return rank_max if settings.policy("receive") == "all" else lora_rank


def expected_received(
    settings: Settings, layout: Layout, event: Event, lora_rank: int, before: np.ndarray, private: Private
) -> np.ndarray | None:  # fmt: skip
    """What a client has to receive of the global adapter `before`; None where it starts from a fresh draw."""
    rank_max = int(settings.get("lora.rank_max", 32))
    if settings.policy("merge") == "stack":
        return None
    if settings.policy("receive") == "all":
        return np.asarray(before, dtype=np.float64)
    if event.slots:
        return select(before, layout, rank_max, event.slots)
    out = resize(before, layout, rank_max, lora_rank)
    return private.put(event.client, out, layout, lora_rank) if settings.policy("shared_factors") == "a" else out


def slots_are_valid(event: Event, settings: Settings, layout: Layout, before: np.ndarray | None) -> bool:
    """Ascending places of the right number; with slot_select = importance those of most energy."""
    rule, rank_max = settings.policy("slot_select"), int(settings.get("lora.rank_max", 32))
    if rule in ("prefix", "scored"):
        return not event.slots
    slots = list(event.slots)
    good = len(slots) == event.lora_rank and slots == sorted(set(slots)) and 0 <= slots[0] and slots[-1] < rank_max
    if good and rule == "importance" and before is not None:
        energy = sum((a**2).sum(1) * (bt**2).sum(1) for a, bt in split(np.asarray(before), layout, rank_max))
        others = np.delete(energy, slots)
        # a difference in the last bits decides nothing; equal energies: the first slots
        good = not len(others) or energy[slots].min() >= others.max() * (1 - 1e-12)
    return bool(good)


def factor_masks(settings: Settings, layout: Layout, event: Event, size: int, round_number: int) -> Masks:
    """Rows that train in an adapter of `size` slots: the factors of the round, and only the chosen slots."""
    train_a, train_b = settings.trained_factors(round_number)
    rows = np.ones(size, dtype=bool)
    if settings.policy("receive") == "all" and event.slots:
        rows[:] = False
        rows[list(event.slots)] = True
    return [(rows & train_a, rows & train_b) for _ in layout]


@dataclass(frozen=True)
class Scores:
    """Every (matrix, slot) pair after the scoring pass."""

    values: np.ndarray  #: [n_matrices, size]
    budget: int

    def mask(self) -> np.ndarray:
        """The `budget` pairs of the highest score, equal ones in the order of matrix and slot."""
        flat = self.values.ravel()
        best = np.lexsort((np.arange(len(flat)), -flat))[: self.budget]
        mask = np.zeros(len(flat), dtype=bool)
        mask[best] = True
        return mask.reshape(self.values.shape)

    def is_tie(self, other: np.ndarray, tolerance: float) -> bool:
        """Whether `other` differs from mask() only by pairs whose scores are at the threshold within rounding."""
        mine = self.mask()
        threshold = self.values[mine].min() if mine.any() else 0.0
        differing = self.values[mine != other]
        return bool(np.all(np.abs(differing - threshold) <= tolerance * max(threshold, 1e-300)))


def score(layout: Layout, before: np.ndarray, after: np.ndarray, size: int, trained: tuple[bool, bool]) -> np.ndarray:
    """||change of the live factor's row|| * ||the other factor's row||, [n_matrices, size]."""
    live = 0 if trained[0] else 1
    out = []
    for old, new in zip(split(before, layout, size), split(after, layout, size), strict=True):
        moved = np.linalg.norm(new[live] - old[live], axis=1)
        out.append(moved * np.linalg.norm(old[1 - live], axis=1))
    return np.array(out)


def scored_masks(layout: Layout, chosen: np.ndarray, trained: tuple[bool, bool]) -> Masks:
    """Masks of pairs chosen by score, [n_matrices, size], in the factor that trains."""
    return [(rows & trained[0], rows & trained[1]) for rows in chosen]


def changed_rows(layout: Layout, before: np.ndarray, after: np.ndarray, size: int) -> Masks:
    """Rows of A and of Bt with any entry that is not the same bits."""
    pairs = zip(split(before, layout, size), split(after, layout, size), strict=True)
    return [tuple((new != old).any(axis=1) for old, new in zip(x, y, strict=True)) for x, y in pairs]


def first_frozen_change(layout: Layout, masks: Masks, before: np.ndarray, after: np.ndarray, size: int) -> str:
    """Where a row that must not train changed; empty where none did."""
    changed = changed_rows(layout, before, after, size)
    for (name, _, _), mask, rows in zip(layout, masks, changed, strict=True):
        for factor, allowed, moved in zip("AB", mask, rows, strict=True):
            wrong = np.flatnonzero(moved & ~allowed)
            if len(wrong):
                return f"slot {wrong[0]} of {factor} of {name}"
    return ""


def to_sent(settings: Settings, layout: Layout, event: Event, adapter: np.ndarray, size: int) -> np.ndarray:
    """What of an adapter of `size` received slots is sent: its chosen slots where all were received."""
    if settings.policy("receive") == "all" and event.slots:
        return select(adapter, layout, size, event.slots)
    return adapter
