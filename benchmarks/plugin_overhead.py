"""What a Python plugin adds to a round: HetLoRA's weights as built in, and as examples/python-plugins has them.

    .venv/bin/python benchmarks/plugin_overhead.py [--config FILE] [--rounds N] [--repeats N] [KEY=VALUE ...]

Runs take turns, so that a change of the machine's load meets both. The first round of each is left out: its time holds
what is done only once. Prints the medians of t_round_s over all rounds, their ratio, and the time to start. Short
rounds (e.g. local.steps=1 local.batch_size=1) show the plugin's own time best: it does not depend on the training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "examples" / "python-plugins" / "hetlora_weights.py"


def run(arguments: argparse.Namespace, folder: Path, plugin: bool) -> tuple[list[float], float]:
    """(seconds of each round but the first, seconds of everything else) of one run."""
    words = [
        str(arguments.program), "run", "--config", str(arguments.config), "--output", str(folder),
        f"experiment.rounds={arguments.rounds}", "evaluation.every=1000", "checkpoint.every=0", "compute.threads=1",
        *arguments.keys,
    ]  # fmt: skip
    if plugin:
        words.append(f"strategy.plugin={PLUGIN}")
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    with h5py.File(folder / "run.h5") as log:
        rounds = log["rounds/t_round_s"][: int(log.attrs["committed_rounds"])].tolist()
    return rounds[2:], seconds - sum(rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.ini")
    parser.add_argument("--rounds", type=int, default=10, help="a run (default 10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "hetlora")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="of the config, for both")
    arguments = parser.parse_args()
    rounds: dict[bool, list[float]] = {False: [], True: []}
    start: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for plugin in (False, True):
                seconds, rest = run(arguments, Path(folder) / f"{repeat}-{plugin}", plugin)
                rounds[plugin] += seconds
                start[plugin].append(rest)
    builtin, python = (statistics.median(rounds[plugin]) for plugin in (False, True))
    spread = statistics.quantiles(rounds[False], n=4)
    print(f"built in {1e3 * builtin:.2f} ms a round (quartiles {1e3 * spread[0]:.2f} to {1e3 * spread[2]:.2f})")
    print(f"Python   {1e3 * python:.2f} ms a round: {1e3 * (python - builtin):+.2f} ms, ratio {python / builtin:.4f}")
    print(f"medians of {len(rounds[True])} rounds each; besides, {statistics.median(start[True]):.2f} s instead of "
          f"{statistics.median(start[False]):.2f} s for start and end of a run")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
