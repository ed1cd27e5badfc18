"""A config of the micro model, its result without Slurm, and what can be read from a run's folder."""

import json
import subprocess
import time
from pathlib import Path

from slurm_cluster import micro, program

ROUNDS = 150  # seconds, not minutes; enough to be hit in mid-run
EARLY = 10


class World:
    """A config of the micro model and its result without Slurm."""

    def __init__(self, folder: Path, rounds: int, seed: int = 7) -> None:
        self.folder = folder
        changes = {"experiment": {"rounds": rounds, "seed": seed}}
        self.ini = program.write_ini(folder / "run.ini", micro.build(folder), changes)
        start = time.monotonic()
        words = [program.PROGRAM, "run", "--config", self.ini, "--output", folder / "reference"]
        done = subprocess.run(words, env=program.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - start
        self.adapter, self.columns = read_result(folder / "reference")

    def assert_same(self, run: Path) -> None:
        adapter, columns = read_result(run)
        assert adapter == self.adapter
        assert columns.keys() == self.columns.keys()
        assert [name for name in columns if columns[name] != self.columns[name]] == []


def read_result(run: Path) -> tuple[bytes, dict]:
    return (run / "adapter/adapter_model.safetensors").read_bytes(), program.columns(run / "run.h5")


def rounds_done(run: Path) -> int:
    log = run / "progress.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def state_of(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]
