"""Token sequences on disk while their place in the data file is not known yet; one sequence is in memory at once."""

import os
import tempfile
from pathlib import Path

import numpy as np

from hetlora.errors import EnvironmentProblem, InputError


class TokenSpool:
    """A temporary file without a name: ids int32 and mask uint8 of each sequence, in the order of `append`."""

    def __init__(self, folder: Path):
        """`folder` has room for 5 bytes a token; the file goes with this object. InputError if it cannot be written."""
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the object)
        except OSError as error:
            raise InputError(f"cannot write in {folder}: {error.strerror}; choose another place") from error
        self._end = 0

    def append(self, ids: np.ndarray, mask: np.ndarray) -> int:
        """Keep a sequence (both [n]); returns its place for `read`. EnvironmentProblem if the disk is full."""
        place = self._end
        try:
            self._file.write(ids.astype(np.int32, copy=False).tobytes() + mask.astype(np.uint8, copy=False).tobytes())
        except OSError as error:
            raise EnvironmentProblem(
                f"{self._folder}: {error.strerror} after {place / 1e6:,.0f} MB of tokens, which wait there in a "
                "temporary file; make room, or write the output to another disk"
            ) from error
        self._end += 5 * len(ids)
        return place

    def read(self, place: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [n], mask [n]) of the sequence of n tokens at `place`."""
        self._file.flush()
        data = os.pread(self._file.fileno(), 5 * n, place)
        return np.frombuffer(data, np.int32, n), np.frombuffer(data, np.uint8, n, 4 * n)
