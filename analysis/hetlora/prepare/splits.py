"""Who trains and who is held out, and which part of a client's time line is kept for evaluation. Pure functions."""

import hashlib

TRAIN, VALID, TEST = 0, 1, 2
PART_NAMES = ("train", "valid", "test")


def unit_hash(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends on the three arguments only (the first 8 bytes of a SHA-256)."""
    digest = hashlib.sha256(f"hetlora:{purpose}:{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def held_out_part(name: str, fraction: float, seed: int) -> int:
    """TRAIN for a client that trains; VALID or TEST (half each) for one of the `fraction` that never does."""
    value = unit_hash(seed, "held-out", name)
    if value >= fraction:
        return TRAIN
    return VALID if value < fraction / 2 else TEST


def time_split(n: int, eval_fraction: float = 0.2) -> list[int]:
    """Parts of a client's n sequences in time order: first train, then valid, the latest test.

    round(eval_fraction * n) of them, at least one if n > 1, are for evaluation; valid gets the larger half. A client
    with one sequence only trains.
    """
    if n <= 1 or eval_fraction == 0:
        return [TRAIN] * n
    n_eval = min(n - 1, max(1, round(eval_fraction * n)))
    n_test = n_eval // 2
    return [TRAIN] * (n - n_eval) + [VALID] * (n_eval - n_test) + [TEST] * n_test
