"""Starts one process of one system, and judges what it computed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from peers.schedule import Schedule

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class System:
    """How a system is started: a peer's module, or hetlora itself."""

    precision: str  #: fp32 or bf16
    module: str = ""  #: empty = hetlora
    options: tuple[str, ...] = ()
    needs: str = ""  #: a package that may be missing
    what: str = ""


SYSTEMS = {
    "bare": System("fp32", "peers.bare", what="transformers + peft, one client at a time"),
    "bare-autocast": System("bf16", "peers.bare", ("--precision", "autocast"), what="the same under bf16 autocast"),
    "bare-bf16": System("bf16", "peers.bare", ("--precision", "bf16"), what="the same, frozen weights kept in bf16"),
    "batched": System("fp32", "peers.batched", what="all clients in one pass, stacked adapters, plain torch"),
    "batched-bf16": System("bf16", "peers.batched", ("--precision", "bf16"), what="the same in bf16"),
    "onednn": System("fp32", "peers.batched", ("--onednn",), what="batched, frozen matrices through oneDNN"),
    "onednn-bf16": System("bf16", "peers.batched", ("--onednn", "--precision", "bf16"), what="the same in bf16"),
    "pfl": System("fp32", "peers.pfl_peer", needs="pfl", what="pfl with the bare loop's model, one process"),
    "flower": System("fp32", "peers.flower_peer", needs="flwr", what="Flower's simulation with the bare loop's model"),
    "appfl": System("fp32", "peers.appfl_peer", needs="appfl", what="APPFL with the bare loop's model, one process"),
    "hetlora": System("fp32", what="this program"),
    "hetlora-bf16": System("bf16", what="this program"),
}

#: Largest difference from the bare loop in fp32: of a round's mean loss, relative; of the adapter's change over the
#: gate's rounds, relative. bf16 rounds every activation to 8 bits: its limits are wider.
LIMITS = {"fp32": {"loss": 1e-4, "adapter": 1e-2}, "bf16": {"loss": 1e-3, "adapter": 0.3}}


@dataclass
class Outcome:
    """What a process of a system did."""

    losses: list[float] = field(default_factory=list)  #: mean NLL per loss token of each round, nats
    round_s: list[float] = field(default_factory=list)
    adapter: list[np.ndarray] = field(default_factory=list)  #: A and B of each matrix in turn, after the last round
    start_s: float = math.nan  #: from the start of the process to the first training step
    peak_mib: float = math.nan  #: largest resident memory of a process
    facts: dict = field(default_factory=dict)
    error: str = ""


def gate(system: str, reference: Outcome, outcome: Outcome, schedule_file: Path) -> dict:
    """Is this the same training as the bare loop's? {loss, adapter: differences, passed}."""
    limits = LIMITS[SYSTEMS[system].precision]
    same_length = len(reference.losses) == len(outcome.losses) and len(reference.adapter) == len(outcome.adapter)
    loss = adapter = math.inf
    if same_length:
        loss = max(abs(x - y) / y for x, y in zip(outcome.losses, reference.losses, strict=True))
        initial = Schedule.load(schedule_file).initial
        triples = list(zip(outcome.adapter, reference.adapter, initial, strict=True))
        difference = math.sqrt(sum(float(((x - y) ** 2).sum()) for x, y, _ in triples))
        change = math.sqrt(sum(float(((y - z) ** 2).sum()) for _, y, z in triples))
        adapter = difference / change if change > 0 else math.inf
    passed = loss <= limits["loss"] and adapter <= limits["adapter"]  # False for NaN
    return {"loss": loss, "adapter": adapter, "passed": passed, "limits": limits}


class Runner:
    """Starts processes with the same threads and environment for everybody."""

    def __init__(self, program: Path, to: Path, threads: int) -> None:
        self.program, self.to, self.threads = program, to, threads
        foreign = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "HETLORA_", "OMP_", "MKL_", "KMP_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "benchmarks"),
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            # Freed memory is kept, which saves page faults in every step: some per cent for all of them.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
        }  # fmt: skip
        asks = "import torch, sys; sys.exit(not torch.ops.mkldnn._is_mkldnn_bf16_supported())"
        self.cpu_has_bf16 = subprocess.run([sys.executable, "-c", asks], env=self.environment).returncode == 0

    def missing(self, system: str, folder: Path) -> str:
        """Why a system can't run here on this workload; empty if it can."""
        wanted = SYSTEMS[system]
        bf16 = wanted.precision == "bf16"
        if not wanted.module:
            check = [self.program, "check", "--config", folder / "config.ini", f"model.precision={wanted.precision}"]
            done = subprocess.run(check, env=self.environment, capture_output=True, text=True)
            return "" if done.returncode == 0 else " ".join(done.stderr.split())[:300]
        if bf16 and not self.cpu_has_bf16:
            return "this CPU has no bf16 arithmetic that torch could use"  # emulated: 30 times slower than fp32
        if wanted.needs:
            check = [sys.executable, "-c", f"import {wanted.needs}"]
            if subprocess.run(check, capture_output=True).returncode != 0:
                return f"the package {wanted.needs} is not installed in {Path(sys.prefix).name}"
        return ""

    def run(self, system: str, folder: Path, rounds: int, limit_s: float, attention: str = "auto") -> Outcome:
        """One process of `rounds` rounds on a workload's folder."""
        runs = self._hetlora if not SYSTEMS[system].module else self._peer
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-{system}-", dir=self.to) as place:
            return runs(system, folder, rounds, limit_s, Path(place), attention)

    def _peer(self, system, folder, rounds, limit_s, place, attention) -> Outcome:
        out = place / "out.json"
        model = json.loads((folder / "made.json").read_text())["model"]
        options = {
            "--model": model, "--schedule": folder / "schedule.npz", "--rounds": rounds, "--out": out,
            "--threads": self.threads, "--attention": attention, "--started": repr(time.time()),
        }  # fmt: skip
        command = [sys.executable, "-m", SYSTEMS[system].module, *SYSTEMS[system].options]
        command += [str(word) for pair in options.items() for word in pair]
        code, lines = self._start(command, limit_s)
        if code != 0:
            return Outcome(error=problem(code, lines))
        result = json.loads(out.read_text())
        with np.load(out.with_suffix(".npz")) as file:
            adapter = [file[f"arr_{i}"] for i in range(len(file.files))]
        return Outcome(
            result["losses"], result["round_s"], adapter, result["start_s"], result["peak_mib"], result["facts"]
        )  # fmt: skip

    def _hetlora(self, system, folder, rounds, limit_s, place, _attention) -> Outcome:
        from safetensors.numpy import load_file

        run_dir = place / "run"
        changes = [f"experiment.rounds={rounds}", f"compute.threads={self.threads}", f"output.dir={run_dir}"]
        changes.append(f"model.precision={SYSTEMS[system].precision}")
        begin = time.time()
        command = [str(self.program), "run", "--config", str(folder / "config.ini"), *changes]
        code, lines = self._start(command, limit_s)
        if code != 0:
            return Outcome(error=problem(code, lines))
        with h5py.File(run_dir / "run.h5") as file:
            losses = file["rounds/train_loss"][1:].tolist()
            evaluation_s = np.nan_to_num(file["rounds/t_eval_s"][:])  # NaN = this round had none
            seconds = file["rounds/t_round_s"][:]
            peak_mib = float(file["rounds/peak_memory_bytes"][:].max()) / 2**20
        # The end of round 1 is known to the outside; what lies before its first step is the rest.
        first = next((when for when, line in lines if line.lstrip().startswith("round 1/")), math.nan)
        matrices = Schedule.load(folder / "schedule.npz").matrices
        tensors = load_file(run_dir / "adapter" / "adapter_model.safetensors")
        adapter = [tensors[f"base_model.model.{name}.lora_{x}.weight"] for name in matrices for x in "AB"]
        return Outcome(
            losses, (seconds - evaluation_s)[1:].tolist(), adapter, first - begin - seconds[1] - evaluation_s[0],
            peak_mib,
        )  # fmt: skip

    def _start(self, command: list[str], limit_s: float) -> tuple[int, list[tuple[float, str]]]:
        """(exit code, lines of output with the time of each)."""
        process = subprocess.Popen(
            command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        lines = [(time.time(), line.rstrip()) for line in process.stdout]
        process.wait()
        timer.cancel()
        return process.returncode, lines


def problem(code: int, lines: list[tuple[float, str]]) -> str:
    """One line about a process that failed."""
    if code == -9:
        return "out of time"
    return f"exit code {code}: {' '.join(line for _, line in lines[-3:]) or 'no output'}"[:300]
