"""jobs/run.sbatch on a real Slurm: whatever ends a job in mid-run, the result is the same, bit for bit."""

import os
import re
import signal
from pathlib import Path

import pytest
from slurm_cluster import Slurm, long_test, needs_slurm, program
from world import EARLY, ROUNDS, World, rounds_done, state_of

pytestmark = [program.needs_program, needs_slurm]

JOB = program.ROOT / "jobs" / "run.sbatch"


class Job:
    """A submitted jobs/run.sbatch."""

    def __init__(self, slurm: Slurm, world: World, tmp_path: Path, *options: object, **variables: str) -> None:
        self.slurm, self.world, self.folder, self.run = slurm, world, tmp_path, tmp_path / "run"
        self.options, self.variables = options, variables
        self.submit()

    def submit(self) -> None:
        words = [*self.options, JOB, self.world.ini, "--output", self.run]
        self.id = self.slurm.sbatch(*words, cwd=self.folder, **self.variables)

    def wait_for_round(self, number: int = EARLY) -> None:
        self.slurm.wait_until(self.id, lambda: rounds_done(self.run) >= number or (self.run / "COMPLETE").exists())
        assert not (self.run / "COMPLETE").exists(), "the run was over before the test could touch it"

    def end(self) -> dict[str, str]:
        return self.slurm.wait_for_end(self.id)

    def output(self) -> str:
        return (self.folder / f"job-{self.id}.out").read_text()

    def assert_completed(self, restarts: int) -> None:
        info = self.end()
        assert (info["JobState"], info["Restarts"]) == ("COMPLETED", str(restarts)), self.output()
        assert state_of(self.run) == "done"
        self.world.assert_same(self.run)


@pytest.mark.parametrize("mpi_ranks", [1, 2])
def test_same_bits_as_without_slurm(slurm, world, tmp_path, mpi_ranks):
    job = Job(slurm, world, tmp_path, f"--ntasks-per-node={mpi_ranks}")
    job.assert_completed(restarts=0)


def test_usr2_requeues_and_goes_on(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path)
    job.wait_for_round()

    slurm.call("scancel", "--signal=USR2", job.id)  # to the steps, as Slurm does before the time limit

    slurm.wait_until(job.id, lambda: slurm.show(job.id)["Restarts"] == "1")
    assert state_of(job.run) == "stopped"
    stopped_at = rounds_done(job.run)
    job.assert_completed(restarts=1)
    assert EARLY <= stopped_at < ROUNDS
    assert "requeueing" in job.output()


@long_test
def test_requeue_by_hand_in_mid_run(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path)
    job.wait_for_round()

    slurm.call("scontrol", "requeue", job.id)

    job.assert_completed(restarts=1)


@long_test
def test_preempted_job_goes_on(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path)
    job.wait_for_round()

    urgent = slurm.sbatch("--partition=urgent", "--ntasks=4", "--wrap=sleep 1", cwd=tmp_path)

    assert slurm.wait_for_end(urgent)["JobState"] == "COMPLETED"
    job.assert_completed(restarts=1)


def test_cancelled_job_stays_cancelled_and_goes_on_when_submitted_again(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path)
    job.wait_for_round()

    slurm.call("scancel", job.id)

    info = job.end()
    assert (info["JobState"], info["Restarts"]) == ("CANCELLED", "0"), job.output()
    assert state_of(job.run) == "stopped"
    assert "To go on: submit it again" in job.output()
    job.submit()
    job.assert_completed(restarts=0)


def test_killed_rank_ends_all_and_the_job_starts_once_more(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path)
    job.wait_for_round()
    processes = slurm.rank_processes(job.id)
    assert len(processes) == 2

    os.kill(processes[1], signal.SIGKILL)

    slurm.wait_until(job.id, lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 60)
    job.assert_completed(restarts=0)
    assert "a rank was killed (exit code 137): starting once more" in job.output()


def test_mpirun_passes_the_signal_on(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path, "--signal=B:USR2@120", LAUNCHER="mpirun")
    job.wait_for_round()

    slurm.call("scancel", "--batch", "--signal=USR2", job.id)  # to the script alone, as B: says

    job.assert_completed(restarts=1)


def test_no_more_requeues_than_allowed(slurm, world, tmp_path):
    job = Job(slurm, world, tmp_path, MAX_REQUEUES="0")
    job.wait_for_round()

    slurm.call("scancel", "--signal=USR2", job.id)

    info = job.end()
    assert (info["JobState"], info["ExitCode"], info["Restarts"]) == ("FAILED", "75:0", "0")
    assert re.search(r"requeued 0 times already .* submit it again with the same arguments", job.output())


@pytest.mark.parametrize(
    ("broken", "code"),
    [({"lora": {"rank_max": -1}}, 2), ({"model": {"path": "/nowhere"}}, 3)],
)
def test_errors_are_not_tried_again(slurm, world, tmp_path, broken, code):
    ini = program.write_ini(tmp_path / "run.ini", (world.folder / "model", world.folder / "micro.h5"), broken)
    job = slurm.sbatch(JOB, ini, "--output", tmp_path / "run", cwd=tmp_path)

    info = slurm.wait_for_end(job)

    assert (info["JobState"], info["ExitCode"], info["Restarts"]) == ("FAILED", f"{code}:0", "0")


def test_program_is_missing(slurm, world, tmp_path):
    job = slurm.sbatch(JOB, world.ini, cwd=tmp_path, HETLORA="build/nothing")

    assert slurm.wait_for_end(job)["ExitCode"] == "4:0"
    assert "no program at 'build/nothing'" in (tmp_path / f"job-{job}.out").read_text()


def test_srun_without_pmix_is_refused_in_plain_words(slurm, world, tmp_path):
    start = ["srun", "--mpi=none", "-n", "2", program.PROGRAM]

    done = slurm.call(*start, "run", "--config", world.ini, "--output", tmp_path / "r", check=False)

    assert done.returncode == 4
    assert "Slurm started 2 tasks" in done.stderr and "srun --mpi=pmix" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="session")
def minute_world(world, tmp_path_factory):
    """A run that takes longer than the shortest time limit that Slurm knows, one minute."""
    start_s = World(tmp_path_factory.mktemp("start"), rounds=1).seconds
    round_s = (world.seconds - start_s) / (ROUNDS - 1)
    return World(tmp_path_factory.mktemp("minute"), rounds=int(100 / round_s))


@long_test
@pytest.mark.parametrize(
    ("launcher", "sent"),
    [("srun-pmix", "USR2@20"), ("mpirun", "B:USR2@20"), ("srun-pmix", "CONT@1")],
    ids=["srun", "mpirun", "without a signal before the limit"],
)
def test_time_limit(slurm, minute_world, tmp_path, launcher, sent):
    job = Job(slurm, minute_world, tmp_path, "--time=1", f"--signal={sent}", LAUNCHER=launcher)

    info = slurm.wait_for_end(job.id, seconds=1500)  # each start does less than a minute of it

    assert int(info["Restarts"]) >= 1
    job.assert_completed(restarts=int(info["Restarts"]))
