"""`hetlora sweep` with wrong input, and `sweep submit` as far as it goes without a Slurm (tests/slurm has one)."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402
from sweeps import ENVIRONMENT, INPUT, TWO_BY_TWO, USAGE, Sweep, commands, refused  # noqa: E402

pytestmark = program.needs_program


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return micro.build(tmp_path_factory.mktemp("world"))


# --- submit ---


def test_submit_writes_one_array_and_submits_nothing_twice(world, tmp_path):
    path = commands(tmp_path / "bin", sbatch=f'echo "$@" >>{tmp_path}/calls; echo 42', squeue="seq 0 3",
                    scontrol="echo MaxArraySize = 1001")  # fmt: skip
    sweep = Sweep(tmp_path, world, TWO_BY_TWO, compute={"threads": None})
    (tmp_path / "site.ini").write_text("[site]\npartition = batch\ncpus_per_task = 3\nsetup = module load x\n")

    done = sweep.call("submit", "--no-calibrate", "--throttle", 2, "--profile", tmp_path / "site.ini",
                      env=program.environment(PATH=path))  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "job 42: 4 runs in 4 array tasks" in done.stdout
    (script,) = sweep.output.glob("slurm/*/sweep.sbatch")
    text = script.read_text()
    assert "--array=0-3%2\n" in text and "--partition=batch\n" in text and "\nmodule load x\n" in text
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    tasks = [line.split("\t") for line in (script.parent / "tasks.tsv").read_text().splitlines()]
    assert [index for index, _ in tasks] == ["0", "1", "2", "3"]
    for _, folder in tasks:
        assert "\nthreads = 3\n" in Path(folder, "request.ini").read_text(), "a task has 3 cores"
    assert len((tmp_path / "calls").read_text().splitlines()) == 1

    again = sweep.call("submit", "--no-calibrate", env=program.environment(PATH=path))
    assert again.returncode == 0 and "nothing to submit" in again.stdout
    assert len((tmp_path / "calls").read_text().splitlines()) == 1

    commands(tmp_path / "bin", squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    once_more = sweep.call("submit", "--no-calibrate", env=program.environment(PATH=path))
    assert "4 runs in 4 array tasks" in once_more.stdout, "the queue is empty, the runs never began"


def test_submit_splits_where_the_clusters_limit_forces_it(world, tmp_path):
    path = commands(tmp_path / "bin", sbatch="echo 7", scontrol="echo 'MaxArraySize            = 3'")
    sweep = Sweep(tmp_path, world, "experiment.seed = 1..7")
    done = sweep.call("submit", "--no-calibrate", env=program.environment(PATH=path))
    assert done.returncode == 0, done.stderr
    tasks = sorted(len(file.read_text().splitlines()) for file in sweep.output.glob("slurm/*/tasks.tsv"))
    assert tasks == [1, 3, 3]


def test_dry_run_prints_the_script_and_writes_nothing(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    empty = tmp_path / "nothing"
    empty.mkdir()
    done = sweep.call("submit", "--no-calibrate", "--dry-run", env=program.environment(PATH=str(empty)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n") and "# --- body ---" in done.stdout
    assert not (sweep.output / "slurm").exists() and not sweep.folders()


def test_no_sbatch_and_a_refusing_sbatch(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    empty = tmp_path / "nothing"
    empty.mkdir()
    refused(sweep.call("submit", "--no-calibrate", env=program.environment(PATH=str(empty))), ENVIRONMENT,
            "no sbatch on the path", "hetlora sweep run", "--dry-run")  # fmt: skip
    path = commands(tmp_path / "bin", scontrol="exit 1",
                    sbatch="echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")  # fmt: skip
    refused(sweep.call("submit", "--no-calibrate", env=program.environment(PATH=path)), ENVIRONMENT,
            "invalid partition specified: nowhere", "--profile")  # fmt: skip
    assert not (sweep.output / "slurm").exists(), "a submission that does not exist has files"
    assert sweep.counts() == {"waiting": 4}


# --- wrong input ---


BAD_FILES = {
    "unknown key": ("lora.rank_maxx = 1, 2", "", ["sweep.ini:5", "lora.rank_maxx", "did you mean lora.rank_max"]),
    "empty product": ("experiment.seed =", "", ["sweep.ini:5", "experiment.seed", "no values"]),
    "everything excluded": ("experiment.seed = 1, 2", "[exclude]\na = experiment.seed=1..2", ["all 2", "nothing"]),
    "the same run twice": ("experiment.seed = 1, 1", "", ["same run", "experiment.seed = 1"]),
    "a key without effect on results": ("compute.threads = 1, 2", "", ["same run", "compute.threads = 2"]),
    "wrong value": ("local.optimizer = sgd, adam", "", ["local.optimizer = adam", "mean adamw", "1 of the runs"]),
    "wrong combination": ("lora.rank_min = 2, 9", "", ["rank_min", "rank_max", "first with lora.rank_min = 9"]),
    "too many": ("experiment.seed = 0..9999", "", ["10000 runs", "max_runs = 5000"]),
    "unknown section": ("experiment.seed = 1, 2", "[axis]\na = 1", ["[axis]", "did you mean axes"]),
    "unequal zip": ("experiment.seed = 1, 2", "[zip.a]\nlocal.steps = 1, 2\nlocal.batch_size = 1, 2, 3",
                    ["local.batch_size has 3", "local.steps"]),
}  # fmt: skip


# All cases with `run`, one of each stage with the other verbs.
EVERY_CASE = [("run", case) for case in BAD_FILES]
EVERY_VERB = [(verb, case) for verb in ("plan", "submit", "status") for case in ("unknown key", "the same run twice")]


@pytest.mark.parametrize(("verb", "case"), EVERY_CASE + EVERY_VERB)
def test_bad_sweep_file(world, tmp_path, verb, case):
    axes, more, fragments = BAD_FILES[case]
    sweep = Sweep(tmp_path, world, axes, more)
    refused(sweep.call(verb), USAGE, *fragments)
    assert not sweep.folders()


BAD_WORDS = {
    "no file": (["plan"], ["--config"]),
    "missing file": (["plan", "--config", "no.ini"], ["no.ini"]),
    "unknown action": (["pln", "--config", "x"], ["did you mean plan", "plan, run, submit, status"]),
    "another action's option": (["status", "--config", "x", "--throttle", "3"], ["--throttle", "sweep submit"]),
    "no axis": (["run", "--config", "{base}"], ["no axis"]),
    "not a word": (["run", "--config", "{base}", "oops"], ["'oops'", "section.key=value"]),
    "bad profile": (["submit", "--config", "{base}", "experiment.seed=1,2", "--profile", "{base}"],
                    ["no section [experiment]", "site"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_words(world, tmp_path, case):
    words, fragments = BAD_WORDS[case]
    base = program.write_ini(tmp_path / "base.ini", world)
    refused(program.start("sweep", *[word.format(base=base) for word in words], cwd=tmp_path), USAGE, *fragments)


def test_missing_data_is_an_input_error(world, tmp_path):
    refused(Sweep(tmp_path, (world[0], tmp_path / "no.h5"), TWO_BY_TWO).call("run"), INPUT, "no.h5", "prepare")


@program.needs_mpirun
def test_not_under_mpirun(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    done = program.start(*sweep.words("status"), mpi_ranks=2)
    assert done.returncode == USAGE
    assert "--mpi-ranks" in done.stderr
