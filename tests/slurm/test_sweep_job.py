"""jobs/sweep.sbatch on a real Slurm, as an array of two tasks over three runs."""

import shutil
from pathlib import Path

import pytest
from slurm_cluster import Slurm, long_test, needs_slurm, program
from world import EARLY, ROUNDS, World, rounds_done, state_of

pytestmark = [program.needs_program, needs_slurm]

JOBS = program.ROOT / "jobs"


@pytest.fixture(scope="session")
def worlds(world, tmp_path_factory):
    """Two short runs and a long one."""
    return [World(tmp_path_factory.mktemp("short"), rounds=20, seed=seed) for seed in (8, 9)] + [world]


class Sweep:
    """The folders of a sweep: task 0 has the first run, task 1 the others."""

    def __init__(self, folder: Path, requests: list[Path]) -> None:
        self.folder = folder
        self.runs = [folder / f"run_{number}" for number in range(len(requests))]
        for run, request in zip(self.runs, requests, strict=True):
            run.mkdir()
            shutil.copy(request, run / "request.ini")
        self.tasks_file = folder / "tasks.tsv"
        self.tasks_file.write_text("".join(f"{int(i > 0)}\t{run}\n" for i, run in enumerate(self.runs)))

    def submit(self, slurm: Slurm, *options: object, array: str = "0-1") -> str:
        words = [f"--array={array}", *options, JOBS / "sweep.sbatch"]
        return slurm.sbatch(*words, cwd=self.folder, TASKS_FILE=str(self.tasks_file))

    def wait_for_round(self, slurm: Slurm, job: str) -> None:
        """Until the long run, the last one of task 1, is in its middle."""
        slurm.wait_until(f"{job}_1", lambda: rounds_done(self.runs[-1]) >= EARLY)
        assert rounds_done(self.runs[-1]) < ROUNDS


@pytest.fixture
def sweep(worlds, tmp_path):
    return Sweep(tmp_path, [world.ini for world in worlds])


def assert_all_same(sweep: Sweep, worlds: list[World]) -> None:
    for run, world in zip(sweep.runs, worlds, strict=True):
        world.assert_same(run)


@pytest.mark.parametrize("mpi_ranks", [pytest.param(1, marks=long_test), 2])
def test_same_bits_as_without_slurm(slurm, worlds, sweep, mpi_ranks):
    job = sweep.submit(slurm, f"--ntasks={mpi_ranks}")

    for task in ("0", "1"):
        info = slurm.wait_for_end(f"{job}_{task}")
        assert (info["JobState"], info["Restarts"]) == ("COMPLETED", "0")
    assert_all_same(sweep, worlds)
    assert all("results in" in (run / "output.log").read_text() for run in sweep.runs)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["scancel", "--signal=USR2"], id="signal"),
        pytest.param(["scontrol", "requeue"], id="by hand", marks=long_test),
    ],
)
def test_only_the_task_that_was_stopped_is_requeued(slurm, worlds, sweep, how):
    job = sweep.submit(slurm)
    # The last task of an array has the array's own id as SLURM_JOB_ID.
    sweep.wait_for_round(slurm, job)
    slurm.wait_for_end(f"{job}_0")

    slurm.call(*how, f"{job}_1")

    assert slurm.wait_for_end(f"{job}_1")["Restarts"] == "1"
    assert slurm.show(f"{job}_0")["Restarts"] == "0"
    assert_all_same(sweep, worlds)
    assert (sweep.runs[1] / "output.log").read_text().count("results in") == 1, "a complete run was started again"


@long_test
def test_cancelled_task_goes_on_when_submitted_again(slurm, worlds, sweep):
    job = sweep.submit(slurm)
    sweep.wait_for_round(slurm, job)

    slurm.call("scancel", f"{job}_1")

    info = slurm.wait_for_end(f"{job}_1")
    assert (info["JobState"], info["Restarts"]) == ("CANCELLED", "0")
    assert state_of(sweep.runs[-1]) == "stopped"
    job = sweep.submit(slurm, array="1")
    assert slurm.wait_for_end(f"{job}_1")["JobState"] == "COMPLETED"
    slurm.wait_until(job, lambda: (sweep.runs[0] / "COMPLETE").exists())
    assert_all_same(sweep, worlds)


def test_failed_run_stops_no_other_and_is_not_tried_again(slurm, world, tmp_path):
    broken = program.write_ini(tmp_path / "broken.ini", ("/nowhere", world.folder / "micro.h5"))
    sweep = Sweep(tmp_path, [world.ini, broken, world.ini])
    job = sweep.submit(slurm, array="1")
    sweep.wait_for_round(slurm, job)

    slurm.call("scancel", "--signal=USR2", f"{job}_1")

    info = slurm.wait_for_end(f"{job}_1")
    assert (info["JobState"], info["ExitCode"], info["Restarts"]) == ("FAILED", "3:0", "1")
    world.assert_same(sweep.runs[-1])
    assert (sweep.runs[1] / "output.log").read_text().count("/nowhere") == 1
    assert "failed with exit code 3" in (tmp_path / f"job-{job}_1.out").read_text()


def test_both_scripts_share_their_common_lines():
    def common(name: str) -> str:
        return (JOBS / name).read_text().split("# --- common")[1].split("# --- end of common")[0]

    assert common("run.sbatch") == common("sweep.sbatch")
