"""`hetlora sweep submit` and `status` on a real Slurm."""

import json
from pathlib import Path

import pytest
from slurm_cluster import Slurm, needs_slurm, program
from world import EARLY, ROUNDS, World, read_result

pytestmark = [program.needs_program, needs_slurm]

SEEDS = (7, 8, 9)
PROFILE = """[site]
name = test
time = 00:10:00
mem = 500M
signal_lead_s = 30
setup = export HETLORA_TEST_SETUP=1; echo "setup of the profile"
"""


class Sweep:
    """A sweep over three seeds."""

    def __init__(self, slurm: Slurm, world: World, folder: Path, rounds: int) -> None:
        self.slurm, self.folder, self.output = slurm, folder, folder / "sweep"
        lines = ["[sweep]", f"base = {world.ini}", "[set]", f"experiment.rounds = {rounds}", "[axes]"]
        lines += [f"experiment.seed = {SEEDS[0]}..{SEEDS[-1]}"]
        (folder / "sweep.ini").write_text("\n".join(lines) + "\n")
        (folder / "site.ini").write_text(PROFILE)

    def call(self, verb: str, *options: object) -> str:
        words = ["sweep", verb, "--config", self.folder / "sweep.ini", "--output", self.output, *options]
        return self.slurm.call(program.PROGRAM, *words, cwd=self.folder).stdout

    def submit(self, *options: object) -> str:
        """Submits and returns the id of the array."""
        before = set(self.output.glob("slurm/*/job_ids"))
        self.call("submit", "--no-calibrate", "--profile", self.folder / "site.ini", *options)
        (ids,) = set(self.output.glob("slurm/*/job_ids")) - before
        return ids.read_text().strip()

    def status(self) -> dict:
        self.call("status", "--json", self.folder / "status.json")
        return json.loads((self.folder / "status.json").read_text())

    def counts(self) -> dict[str, int]:
        """How many runs are in each state, without the zeros."""
        return {state: number for state, number in self.status()["counts"].items() if number}

    def runs(self) -> list[dict]:
        return self.status()["runs"]

    def wait_for_end(self, job: str, tasks: int = len(SEEDS)) -> None:
        for task in range(tasks):
            self.slurm.wait_for_end(f"{job}_{task}")


def assert_same_as_local(sweep: Sweep, runs: list[dict]) -> None:
    for run in map(Path, (run["folder"] for run in runs)):
        local = sweep.folder / f"local_{run.name}"
        done = program.start("run", "--config", run / "request.ini", "--output", local)
        assert done.returncode == 0, done.stderr
        assert read_result(run) == read_result(local)


@pytest.mark.parametrize("mpi_ranks", [1, 2])
def test_same_bits_as_local_runs(slurm, world, tmp_path, mpi_ranks):
    sweep = Sweep(slurm, world, tmp_path, rounds=20)

    job = sweep.submit("--mpi-ranks", mpi_ranks)

    sweep.wait_for_end(job)
    assert sweep.counts() == {"done": 3}, sweep.runs()
    assert_same_as_local(sweep, sweep.runs())
    (task, *_) = sweep.output.glob("slurm/*/task_0.out")
    assert "setup of the profile" in task.read_text()


def test_dry_run_is_accepted_by_slurm_and_starts_nothing(slurm, world, tmp_path):
    sweep = Sweep(slurm, world, tmp_path, rounds=20)

    script = sweep.call("submit", "--dry-run", "--no-calibrate", "--profile", tmp_path / "site.ini", "--mpi-ranks", "2")

    written = [path.name for path in sweep.output.rglob("*")]
    assert written in ([], [".hashes.json"])  # at most what it learnt of the data
    (tmp_path / "script").write_text(script)
    slurm.call("sbatch", "--test-only", tmp_path / "script")


@pytest.mark.parametrize("name", ["generic-cpu", "generic-gpu"])
def test_shipped_profiles_are_read(slurm, world, tmp_path, name):
    sweep = Sweep(slurm, world, tmp_path, rounds=20)
    profile = program.ROOT / "jobs" / "profiles" / f"{name}.ini"

    script = sweep.call("submit", "--dry-run", "--no-calibrate", "--profile", profile)

    assert ("--gpu-bind=none" in script) == (name == "generic-gpu")
    assert f"site {name}" in script and "#SBATCH --signal=USR2@120" in script


def test_status_tells_the_truth_while_a_task_is_cancelled_and_submitted_again(slurm, world, tmp_path):
    sweep = Sweep(slurm, world, tmp_path, rounds=ROUNDS)
    assert sweep.counts() == {"waiting": 3}

    job = sweep.submit("--throttle", "1")  # one task after another
    slurm.wait_until(f"{job}_0", lambda: sweep.runs()[0]["round"] >= EARLY)
    status = sweep.status()
    assert (status["runs"][0]["state"], status["runs"][0]["job_id"]) == ("running", f"{job}_0")
    assert (status["counts"]["running"], status["counts"]["waiting"]) == (1, 2)
    assert "nothing to submit" in sweep.call("submit", "--no-calibrate"), "runs were submitted twice"

    slurm.call("scancel", f"{job}_0")
    assert slurm.wait_for_end(f"{job}_0")["JobState"] == "CANCELLED"
    assert sweep.runs()[0]["state"] == "stopped"

    again = sweep.submit()
    sweep.wait_for_end(again, tasks=1)
    sweep.wait_for_end(job)
    assert sweep.counts() == {"done": 3}, sweep.runs()
    assert_same_as_local(sweep, sweep.runs()[:1])
