"""Failures of a running program and of several MPI ranks: the same exit code everywhere, one message, no hang."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402
from test_bad_input import refused  # noqa: E402

pytestmark = program.needs_program

USAGE, INPUT, ENVIRONMENT, TRAINING = 2, 3, 4, 5
NAN = "local.learning_rate=1e300"  # infinite in fp32: the adapter is not finite after the first step


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """The intact world and its config."""
    folder = tmp_path_factory.mktemp("good_mpi")
    world = micro.build(folder)
    return SimpleNamespace(
        folder=folder, model=world[0], data=world[1], ini=program.write_ini(folder / "run.ini", world)
    )


def failed_run(output: Path, committed: int) -> dict:
    """Checks that a failed run is known as failed and its log readable up to the failure; returns its status."""
    status = json.loads((output / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["message"]
    assert not (output / "COMPLETE").exists()
    assert not (output / "adapter").exists()
    with h5py.File(output / "run.h5") as file:
        assert file.attrs["committed_rounds"] == committed
        assert np.isfinite(file["rounds/eval_loss"][:committed]).all()
    return status


BOTH = [0, pytest.param(2, marks=program.needs_mpirun)]


@pytest.mark.parametrize("mpi_ranks", BOTH)
@pytest.mark.parametrize("policy", ["drop", "stop"])
def test_all_clients_not_finite(good, tmp_path, policy, mpi_ranks):
    done = program.start("run", "--config", good.ini, "--output", tmp_path / "out", NAN, f"local.on_nonfinite={policy}",
                         mpi_ranks=mpi_ranks)  # fmt: skip
    refused(
        done,
        TRAINING,
        "round 1",
        "6 of 6 clients",
        "not finite",
        "local.learning_rate",
        "local.clip_norm",
        mpi=mpi_ranks > 0,
    )
    assert "not finite" in failed_run(tmp_path / "out", committed=1)["message"]


def test_divergence_that_stays_finite(good, tmp_path):
    words = ["local.optimizer=adamw", "local.learning_rate=8", "local.steps=4", "evaluation.divergence_factor=1.001",
             "strategy.preset=zeropad", "strategy.prune_gamma=0.99", "strategy.prune_lambda=0.01"]  # fmt: skip
    done = program.start("run", "--config", good.ini, "--output", tmp_path / "out", *words)
    assert done.returncode == TRAINING, done.stderr
    (message,) = program.messages(done.stderr)
    for fragment in ("evaluation loss", "diverged", "evaluation.divergence_factor", "local.learning_rate"):
        assert fragment in message
    failed_run(tmp_path / "out", committed=2)  # the round that showed it is kept


@program.needs_mpirun
@pytest.mark.parametrize("case", ["config", "option", "data", "folder"])
def test_refusals_under_mpirun(good, tmp_path, case):
    words, code, fragment = {
        "config": (["lora.rank_maxx=3"], USAGE, "lora.rank_maxx"),
        "option": (["--outptu=x"], USAGE, "--outptu"),
        "data": ([f"data.path={tmp_path}/no.h5"], INPUT, "no.h5"),
        "folder": (["--output", good.ini / "x"], ENVIRONMENT, "run.ini/x"),
    }[case]
    output = [] if case == "folder" else ["--output", tmp_path / "out"]
    done = program.start("run", "--config", good.ini, *output, *words, mpi_ranks=2)
    refused(done, code, fragment, output=tmp_path / "out", mpi=True)


def two_commands(first: list, second: list) -> subprocess.CompletedProcess:
    """MPI rank 0 with one command line, MPI rank 1 with another."""
    command = [
        *program.mpirun(1),
        program.PROGRAM,
        *first,
        ":",
        "-n",
        "1",
        program.PROGRAM,
        *second,
    ]
    return subprocess.run(list(map(str, command)), env=program.environment(), capture_output=True, text=True,
                          timeout=program.TIME_LIMIT_S, check=False)  # fmt: skip


@program.needs_mpirun
def test_failure_of_one_mpi_rank_only(good, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(good.model, model)
    (model / "model.safetensors").write_bytes(b"damaged")
    words = ["run", "--config", good.ini, "--output", tmp_path / "out"]
    done = two_commands(words, [*words, f"model.path={model}"])
    refused(done, INPUT, str(model / "model.safetensors"), "mpi_rank 1 of 2", output=tmp_path / "out", mpi=True)


@program.needs_mpirun
@pytest.mark.parametrize("other", ["experiment.rounds=2", "experiment.seed=8", "output.trace=true"])
def test_mpi_ranks_with_other_settings(good, tmp_path, other):
    words = ["run", "--config", good.ini, "--output", tmp_path / "out"]
    done = two_commands(words, [*words, other])
    refused(done, USAGE, "other settings", output=tmp_path / "out", mpi=True)


def children(pid: int) -> list[int]:
    """Processes of the program below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            if Path(f"/proc/{child}/comm").read_text().strip() == program.PROGRAM.name:
                found.append(child)
            found += children(child)
    return found


def alive(pid: int) -> bool:
    """True unless the process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, limit_s: float = 40.0):
    """Polls until the condition gives something; fails after the limit."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return value


@program.needs_mpirun
@pytest.mark.parametrize("victim", [0, -1])
def test_killed_mpi_rank_ends_all(good, tmp_path, victim):
    output = tmp_path / "out"
    words = ["run", "--config", good.ini, "--output", output, "experiment.rounds=100000", "evaluation.every=1000"]
    command = [*program.mpirun(3), str(program.PROGRAM), *map(str, words)]
    with subprocess.Popen(command, env=program.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as job:
        try:
            progress = output / "progress.jsonl"
            wait_for(lambda: progress.is_file() and progress.read_bytes().count(b"\n") >= 4)
            processes = sorted(children(job.pid))
            assert len(processes) == 3
            os.kill(processes[victim], signal.SIGKILL)
            _, stderr = job.communicate(timeout=20)
        finally:
            if job.poll() is None:
                job.kill()
    assert job.returncode != 0
    assert b"hetlora: internal error" not in stderr
    wait_for(lambda: not any(map(alive, processes)), 10)
    assert not (output / "COMPLETE").exists()
    with h5py.File(output / "run.h5") as file:
        committed = int(file.attrs["committed_rounds"])
        assert committed >= 4
        assert file["rounds/round"][:committed].tolist() == list(range(committed))
        assert np.isfinite(file["rounds/train_loss"][1:committed]).all()
    info = program.start("info", output)
    assert info.returncode == 0, info.stderr


def test_slurm_tasks_that_mpi_does_not_connect(good, tmp_path):
    env = program.environment(SLURM_NTASKS="2", SLURM_STEP_ID="0", SLURM_JOB_ID="7")
    done = program.start("run", "--config", good.ini, "--output", tmp_path / "out", env=env)
    refused(done, ENVIRONMENT, "2 tasks", "srun --mpi=pmix", output=tmp_path / "out")


def test_slurm_batch_script_with_one_process_is_fine(good):
    done = program.start("check", "--config", good.ini, env=program.environment(SLURM_NTASKS="2", SLURM_JOB_ID="7"))
    assert done.returncode == 0, done.stderr
