"""A run of the micro model that takes long enough to be stopped, killed and resumed, and what tests ask of it."""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import micro
import program

ROUNDS = 9
ADAPTER = "adapter/adapter_model.safetensors"
# More work a round than in the other tests, so that there is something to interrupt.
CHANGES = {
    "experiment": {"rounds": ROUNDS, "clients_per_round": 10},
    "local": {"steps": 10, "batch_size": 6, "learning_rate": 0.1},
    "evaluation": {"clients": "final"},
}


def build_world(folder: Path) -> SimpleNamespace:
    """folder, ini, whole (the folder of the uninterrupted run) and its seconds."""
    ini = program.write_ini(folder / "run.ini", micro.build(folder), CHANGES)
    began = time.monotonic()
    program.finished("run", "--config", ini, "--output", folder / "whole")
    return SimpleNamespace(folder=folder, ini=ini, whole=folder / "whole", seconds=time.monotonic() - began)


def launch(*words: object, mpi_ranks: int = 0, env: dict | None = None) -> subprocess.Popen:
    command = [*(program.mpirun(mpi_ranks) if mpi_ranks else []), str(program.PROGRAM), *map(str, words)]
    return subprocess.Popen(
        command, env=env or program.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def wait_for_round(run: Path, round_: int, process: subprocess.Popen) -> None:
    """Returns when that round is committed."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if status(run)["round"] >= round_:
                return
        time.sleep(0.005)
    raise AssertionError(f"ended before round {round_}: {process.communicate()}")


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoint").iterdir())


def assert_same(run: Path, whole: Path) -> None:
    assert (run / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    here, there = program.columns(run / "run.h5"), program.columns(whole / "run.h5")
    assert here.keys() == there.keys()
    assert [name for name in there if here[name] != there[name]] == []
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines)))
    assert len(lines) == h5py.File(run / "run.h5").attrs["committed_rounds"]


def finish(ini: Path, run: Path, mpi_ranks: int = 0) -> str:
    done = program.start("run", "--config", ini, "--output", run, "--resume", mpi_ranks=mpi_ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(run)["state"] == "done"
    return done.stdout + done.stderr
