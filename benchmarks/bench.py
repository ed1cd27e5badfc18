"""`make bench`: hetlora's training engine on this machine, as shares of its GEMM peak.

    .venv/bin/python benchmarks/bench.py [--seconds N] [--only GROUP,...] [--to DIR]

Every figure comes from a `hetlora bench` process of its own (medians over rounds, peak measured in the same process),
those of several MPI ranks from `hetlora run`. Writes DIR/bench.json, DIR/bench.md and DIR/curve.svg. Nothing else may
run on the machine meanwhile; about 12 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import h5py

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "analysis"), str(ROOT / "benchmarks")]

from workloads import WORKLOADS, NotAvailable, Workload, prepare  # noqa: E402

#: One client step of S and M takes a good part of a second: fewer of them a round.
SIZES = {
    "T": (16, 4),
    "S": (16, 1),
    "M": (8, 1),
    "T-small": (64, 4),
    "S-small": (64, 1),
    "M-small": (32, 1),
    "real": (4, 1),
}
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MIXED = "4,8,16,32"


class Bench:
    """Starts the program on the workloads and keeps what it says."""

    def __init__(self, program: Path, to: Path, seconds: int):
        self.program, self.to, self.seconds = program, to, seconds
        self.rows: list[dict] = []

    def config(self, name: str) -> Path:
        """The workload's config file; model and data are made where they are missing."""
        clients, steps = SIZES[name]
        return prepare(replace(WORKLOADS[name], clients_per_round=clients, steps=steps), self.to)[0]

    def measure(self, group: str, name: str, label: str, *words: str, workload: Workload | None = None) -> dict | None:
        """One `hetlora bench`; None (and a line that says so) where it can't run here."""
        out = self.to / "figures.json"
        out.unlink(missing_ok=True)
        config = prepare(workload, self.to)[0] if workload else self.config(name)
        command = [self.program, "bench", "--config", config, "--seconds", str(self.seconds), "--json", out]
        done = subprocess.run([*map(str, command), *words], capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            print(f"{group}: {name} {label}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        figures = json.loads(out.read_text())
        row = {"group": group, "workload": name, "label": label, "words": list(words), **figures}
        self.rows.append(row)
        print(
            f"{group:<8} {name:<8} {label:<26} {row['ms_per_client_step']:>10.3f} ms/step"
            f" {100 * row['share_of_peak']:>6.1f} % of peak {row['peak_memory_bytes'] / 2**20:>7.0f} MiB",
            flush=True,
        )
        return row

    def ranks(self, name: str, mpi_ranks: int, threads: int) -> None:
        """Seconds a round of `hetlora run` on several MPI ranks, evaluation left out."""
        folder = self.to / f"ranks-{name}-{mpi_ranks}"
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        words = [f"output.dir={folder}", f"compute.threads={threads}", "experiment.rounds=5", "compute.pack_tokens=512"]
        start = ["mpirun", "-n", str(mpi_ranks), "--bind-to", "none"] if mpi_ranks > 1 else []
        command = [*start, str(self.program), "run", "--config", str(self.config(name)), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            print(f"ranks: {name}: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return
        with h5py.File(folder / "run.h5") as file:
            rounds = file["rounds"]
            evaluated = rounds["t_eval_s"][2:]
            evaluated[evaluated != evaluated] = 0.0
            round_s = statistics.median(rounds["t_round_s"][2:] - evaluated)
            train_s = statistics.median(rounds["t_train_s"][2:])
        row = {"group": "ranks", "workload": name, "label": f"{mpi_ranks} MPI ranks x {threads} threads",
               "round_s": float(round_s), "train_s": float(train_s)}  # fmt: skip
        self.rows.append(row)
        print(f"ranks    {name:<8} {row['label']:<26} {1e3 * round_s:>10.1f} ms/round", flush=True)


def environment() -> dict:
    """Without limits on threads that the caller may have set: the config says how many."""
    return {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | ENVIRONMENT


def run_groups(bench: Bench, only: set[str]) -> None:
    """All measurements, group by group."""
    cores = os.cpu_count() or 1

    def wanted(group: str) -> bool:
        return not only or group in only

    if wanted("step"):
        for name in ("T", "S", "M", "T-small", "S-small", "M-small", "real"):
            bench.measure("step", name, "fp32")
        for name in ("T", "S", "M"):
            bench.measure("step", name, "bf16", "model.precision=bf16")
    if wanted("gemm"):
        for name in ("T", "S", "M"):
            for gemm in ("mkl", "onednn", "tiles"):
                bench.measure("gemm", name, f"gemm {gemm}", f"compute.gemm={gemm}")
    if wanted("threads") and cores > 1:
        for name in ("T", "S", "M"):
            for threads in (1, 2):
                bench.measure("threads", name, f"{threads} threads", f"compute.threads={threads}")
    if wanted("ranks") and cores > 1:
        for name in ("T", "S"):
            for mpi_ranks, threads in ((1, 1), (1, 2), (2, 1)):
                bench.ranks(name, mpi_ranks, threads)
    if wanted("curve"):
        for name, clients in (("T", (1, 2, 4, 8, 16, 32, 64)), ("S", (1, 2, 4, 8, 16))):
            for k in clients:
                bench.measure("clients", name, f"{k} clients a pack", f"experiment.clients_per_round={max(k, 4)}",
                              f"compute.pack_tokens={128 * k}", "local.steps=1")  # fmt: skip
    if wanted("tokens"):
        for name, batches in (("T", (2, 8, 32, 128)), ("S", (2, 8, 32))):
            for batch in batches:
                changes = {"name": f"{name}-{64 * batch}", "clients_per_round": 2, "n_clients": 4, "steps": 1}
                workload = replace(WORKLOADS[name], batch_size=batch, **changes)
                bench.measure("tokens", name, f"{64 * batch} tokens a client step", f"compute.pack_tokens={64 * batch}",
                              workload=workload)  # fmt: skip
    if wanted("mixed"):
        unequal = ",".join((MIXED.split(",") * 17)[:65])
        zeropad = "strategy.preset=zeropad"
        drawn = ["lora.rank_distribution=list", "lora.rank_min=4", "lora.rank_max=32", f"lora.rank_list={unequal}"]
        for name in ("T", "S"):
            bench.measure("mixed", name, "all at lora_rank 8", zeropad)
            bench.measure("mixed", name, "lora_ranks 4/8/16/32", zeropad, *drawn)
    if wanted("memory"):
        bench.measure("memory", "M", "8 clients, as it is")
        bench.measure("memory", "M", "8 clients, recompute", "compute.recompute=layer")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "hetlora")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement; at least three rounds in any case")
    parser.add_argument(
        "--only",
        default="",
        help="groups: step,gemm,threads,ranks,curve,tokens,mixed,memory; the others keep their rows",
    )
    arguments = parser.parse_args()
    start = time.time()
    bench = Bench(arguments.program.resolve(), arguments.to.resolve(), arguments.seconds)
    arguments.to.mkdir(parents=True, exist_ok=True)
    only = set(filter(None, arguments.only.split(",")))
    before = arguments.to / "bench.json"
    if only and before.is_file():
        groups = only | ({"clients"} if "curve" in only else set())
        bench.rows = [row for row in json.loads(before.read_text())["rows"] if row["group"] not in groups]
    try:
        run_groups(bench, only)
    except NotAvailable as reason:
        print(reason, file=sys.stderr)
    from bench_report import curve_svg, markdown

    cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").open() if "model name" in x), platform.machine())
    version = subprocess.run([str(bench.program), "--version"], capture_output=True, text=True).stdout.strip()
    facts = {"cpu": cpu, "cores": os.cpu_count(), "load_at_end": os.getloadavg(), "hetlora": version,
             "when_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
             "minutes": round((time.time() - start) / 60, 1)}  # fmt: skip
    (arguments.to / "bench.json").write_text(json.dumps({"machine": facts, "rows": bench.rows}, indent=1) + "\n")
    (arguments.to / "bench.md").write_text(markdown(facts, bench.rows))
    (arguments.to / "curve.svg").write_text(curve_svg(bench.rows))
    print(f"{facts['minutes']} minutes; {arguments.to}/bench.md, bench.json, curve.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
