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


def truncate_text(
    ids: np.ndarray, mask: np.ndarray, limit: int, side: str, ends: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask (both [n]) with at most `limit` tokens, of which the first ends[0] and the last ends[1] stay.

    right: what lies between loses its end; left and prompt: its start. limit > ends[0] + ends[1].
    """
    n, (first, last) = len(ids), ends
    if n <= limit:
        return ids, mask
    room = limit - first - last
    text = np.arange(first, first + room) if side == "right" else np.arange(n - last - room, n - last)
    keep = np.concatenate([np.arange(first), text, np.arange(n - last, n)])
    return ids[keep], mask[keep]
