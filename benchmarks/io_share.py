"""Share of a run's time that goes into writing its log: t_io_s of /rounds over t_round_s.

    python benchmarks/io_share.py RUN_DIR ... [--most PERCENT]

Prints one line a run. With --most the exit code is 1 if a share is above it. The first round is left out: its time
holds what is done only once (allocation, the first pass over the weights).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np


def io_share(run: Path) -> tuple[float, float, float, int]:
    """(share of writing, its mean seconds, mean seconds of a round, rounds) from the second round on."""
    with h5py.File(run / "run.h5") as log:
        committed = int(log.attrs["committed_rounds"])
        io_s, round_s = (log[f"rounds/{name}"][2:committed] for name in ("t_io_s", "t_round_s"))
    if len(io_s) == 0:
        raise SystemExit(f"{run}: fewer than two rounds - run.h5 - measure a longer run")
    return float(np.sum(io_s) / np.sum(round_s)), float(np.mean(io_s)), float(np.mean(round_s)), len(io_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--most", type=float, metavar="PERCENT", help="exit with 1 above this share")
    arguments = parser.parse_args()
    shares = []
    for run in arguments.runs:
        share, io_s, round_s, rounds = io_share(run)
        shares.append(100.0 * share)
        print(f"{run}: {100.0 * share:.4f} % ({1e3 * io_s:.3f} ms of {round_s:.3f} s, mean of {rounds} rounds)")
    return int(arguments.most is not None and max(shares) > arguments.most)


if __name__ == "__main__":
    sys.exit(main())
