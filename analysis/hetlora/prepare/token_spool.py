"""Token sequences on disk while their place in the data file is not known yet; one sequence is in memory at once."""

import os
import tempfile
from pathlib import Path

import numpy as np


class TokenSpool:
    """A temporary file without a name: ids int32 and mask uint8 of each sequence, in the order of `append`."""

    def __init__(self, folder: Path):
        """`folder` has room for 5 bytes a token; the file goes with this object."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the object)
        self._end = 0

    def append(self, ids: np.ndarray, mask: np.ndarray) -> int:
        """Keep a sequence (both [n]); returns its place for `read`."""
        place = self._end
        self._file.write(ids.astype(np.int32, copy=False).tobytes() + mask.astype(np.uint8, copy=False).tobytes())
        self._end += 5 * len(ids)
        return place

    def read(self, place: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [n], mask [n]) of the sequence of n tokens at `place`."""
        self._file.flush()
        data = os.pread(self._file.fileno(), 5 * n, place)
        return np.frombuffer(data, np.int32, n), np.frombuffer(data, np.uint8, n, 4 * n)
