"""kill -9 at random moments, again and again: the resumed run is that of nobody's interference, bit for bit."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402
from resumed_runs import ROUNDS, assert_same, build_world, finish, launch, status, wait_for_round  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]

KILLS = 100 if os.environ.get("HETLORA_TEST_LONG") else 10
KILLS_OF_A_RUN = 3  # at most: the later ones hit a run that was resumed itself


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("mpi_ranks", [1, 3])
def test_killed_at_random_moments(world, tmp_path, mpi_ranks):
    """kill -9 of a random rank at a random moment: all ranks end soon, every file opens, and resume is exact."""
    random.seed(1000 + mpi_ranks)
    kills = interrupted = readable = 0
    while kills < KILLS:
        run = tmp_path / f"run{kills}"
        for _ in range(min(random.randint(1, KILLS_OF_A_RUN), KILLS - kills)):
            if (run / "COMPLETE").exists():
                break
            kills += 1
            interrupted += kill_once(world, run, mpi_ranks)
            readable += log_is_readable(run)
        finish(world.ini, run, mpi_ranks=random.choice([0, 1, 2]))
        assert_same(run, world.whole)
    assert interrupted >= KILLS // 2
    print(f"{KILLS} kills, {interrupted} of a living rank; {readable} logs readable at once, all exact after resume")


def kill_once(world, run: Path, mpi_ranks: int) -> bool:
    """Starts or resumes the run and kills one rank of it; False if none was alive any more."""
    reached = status(run)["round"] if (run / "status.json").exists() else -1
    process = launch("run", "--config", world.ini, "--output", run, "--resume", mpi_ranks=mpi_ranks)
    # reached: while it starts; all rounds are reached already by a run that was killed just before its COMPLETE
    moment = random.randint(min(reached, ROUNDS - 1), ROUNDS - 1)
    if moment >= 0:
        with contextlib.suppress(AssertionError):
            wait_for_round(run, moment, process)
    time.sleep(random.uniform(0.0, 2.0 * world.seconds / ROUNDS))  # seconds: of the whole run, start included
    ranks = ranks_of(process.pid)
    killed = False
    if ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(ranks), signal.SIGKILL)
            killed = True
    process.communicate(timeout=60)
    return killed


def log_is_readable(run: Path) -> bool:
    """A kill in the middle of a write may tear the log: then resume makes it anew, and nothing is lost."""
    with contextlib.suppress(OSError), h5py.File(run / "run.h5") as file:
        assert file.attrs["committed_rounds"] >= 1 or not (run / "checkpoint").exists()
        return True
    return False


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the program's ranks below a launcher."""
    found = subprocess.run(["pgrep", "-P", str(launcher), "-x", "hetlora"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]
