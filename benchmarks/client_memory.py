"""Does a round's memory grow with its clients? One short run for each number of clients, linear and SVD merges.

    python benchmarks/client_memory.py [--clients 10,100,1000] [--presets zeropad,flexlora] [--registered N]

Runs the demo's base and data (configs/demo.ini) on one MPI rank and one thread with one local step of one short
sequence, so that what is held for clients is most of what can grow. Prints the largest resident memory, and what all
clients of a round send, which a root that kept every adapter would have to hold. `--registered` deals the data to
so many clients.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

ROOT = Path(__file__).resolve().parents[1]
LORA_RANK = 32


def measure(preset: str, clients: int, registered: int, folder: Path) -> tuple[float, float, float]:
    """Largest memory after the last round and before the first, and what the clients of a round send, in MiB."""
    words = [
        f"strategy.preset={preset}", f"experiment.clients_per_round={clients}", "experiment.rounds=2",
        "local.steps=1", "local.batch_size=1", "data.sequence_length=32", "data.overlap=8", "data.min_windows=1",
        "lora.rank_distribution=fixed", f"lora.rank_min={LORA_RANK}", f"lora.rank_max={LORA_RANK}",
        "lora.targets=all-linear", "evaluation.sequences=8", "evaluation.every=2", "compute.threads=1",
        "compute.gemm=mkl", "compute.pack_tokens=256", "strategy.prune_gamma=1", "data.partition=iid",
        f"data.partition_clients={registered}",
    ]  # fmt: skip
    command = [ROOT / "build/hetlora", "run", "--config", "configs/demo.ini", "--output", folder, *words]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    with h5py.File(folder / "run.h5") as log:
        peak = log["rounds/peak_memory_bytes"][:]
        sent = float(log["rounds/bytes_up_true"][1])
    return peak[-1] / 2**20, peak[0] / 2**20, sent / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="10,100,1000", help="clients of a round")
    parser.add_argument("--presets", default="zeropad,hetlora,flexlora")
    parser.add_argument("--registered", type=int, default=1000, help="clients that the data are dealt to")
    arguments = parser.parse_args()
    print(f"{'preset':10} {'clients':>8} {'peak MiB':>10} {'at start':>10} {'adapters of a round':>20}")
    with tempfile.TemporaryDirectory() as scratch:
        for preset in arguments.presets.split(","):
            for clients in map(int, arguments.clients.split(",")):
                folder = Path(scratch) / f"{preset}-{clients}"
                peak, start, sent = measure(preset, clients, arguments.registered, folder)
                print(f"{preset:10} {clients:8} {peak:10.1f} {start:10.1f} {sent:20.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
