"""Sequences that are too long: what is cut away, or that they are left out. Pure functions."""

import numpy as np

POLICIES = ("truncate", "drop", "error")
SIDES = ("prompt", "left", "right")


def truncate(ids: np.ndarray, mask: np.ndarray, limit: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask (both [n]) with at most `limit` tokens.

    left: the last tokens stay; right: the first ones; prompt: tokens before the first loss token are cut from their
    start (the sequence's very first token stays: it is what opens a sequence), and if the rest is still too long, its
    end. The first token is never a loss target afterwards.
    """
    n = len(ids)
    if n <= limit:
        return ids, mask
    if side == "right":
        keep = np.arange(limit)
    elif side == "left":
        keep = np.arange(n - limit, n)
    else:
        first_loss = int(np.argmax(mask)) if mask.any() else n
        cut = min(n - limit, max(0, first_loss - 1))
        keep = np.concatenate([[0], np.arange(1 + cut, n)])[:limit]
    ids, mask = ids[keep], mask[keep].copy()
    mask[0] = 0
    return ids, mask
