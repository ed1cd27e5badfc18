"""Job scripts under a launcher that lies: srun was seen to end with 0 without having started a task. Needs no Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import micro
import program
import pytest
from hetlora.run_record import read_run

JOBS = program.ROOT / "jobs"
# Counts its calls; what it does in the n-th is the n-th word of SRUN_DOES, the last one for all further calls.
SRUN = """#!/bin/bash
echo "$*" >>"$SRUN_LOG"
n=$(wc -l <"$SRUN_LOG")
does=($SRUN_DOES)
case ${does[n - 1]:-${does[-1]}} in
    nothing) echo "srun: error: task 0 launch failed: Error configuring interconnect" >&2; exit 0 ;;
    killed) exit 137 ;;
    fails) exit 3 ;;
esac
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def node(tmp_path):
    """A folder with srun on the path; job(script, words, does) runs a job script as Slurm would."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)

    def job(script: str, words: list, does: str, **variables: object) -> subprocess.CompletedProcess:
        own = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SRUN_LOG": str(tmp_path / "srun.log")}
        own |= {"SRUN_DOES": does, "HETLORA": str(program.PROGRAM), "SLURM_JOB_ID": "7"}
        own |= {key: str(value) for key, value in variables.items()}
        return subprocess.run(
            ["bash", JOBS / script, *map(str, words)], env=program.environment(**own), cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def starts() -> int:
        return len((tmp_path / "srun.log").read_text().splitlines())

    return SimpleNamespace(folder=tmp_path, job=job, starts=starts)


@pytest.fixture(scope="module")
def ini(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    return program.write_ini(folder / "run.ini", micro.build(folder), {"experiment": {"rounds": 2}})


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*exit_*")]


@program.needs_program
def test_a_launcher_that_starts_nothing_is_no_success(node, ini):
    done = node.job("run.sbatch", [ini, "--output", node.folder / "run"], "nothing")
    assert (done.returncode, node.starts()) == (4, 2), done.stderr
    assert "srun ended with 0, but no run has ended: starting once more" in done.stderr
    assert "srun ended with 0 again, and no run has ended" in done.stderr
    assert not (node.folder / "run").exists() and not left_behind(node.folder)


@program.needs_program
def test_the_second_start_counts(node, ini):
    done = node.job("run.sbatch", [ini, "--output", node.folder / "run"], "nothing start")
    assert (done.returncode, node.starts()) == (0, 2), done.stderr
    assert (node.folder / "run" / "COMPLETE").exists() and not left_behind(node.folder)


@program.needs_program
def test_an_older_complete_does_not_hide_it(node, ini):
    run = node.folder / "run"
    assert node.job("run.sbatch", [ini, "--output", run], "start").returncode == 0
    again = node.job("run.sbatch", [ini, "--output", run], "start")  # passed over: it is done
    assert (again.returncode, node.starts()) == (0, 2), again.stderr
    more = node.job("run.sbatch", [ini, "experiment.rounds=3", "--output", run], "nothing")
    assert more.returncode == 4 and read_run(run).n_rounds == 2


@program.needs_program
def test_codes_of_the_launcher_stay_what_they_were(node, ini):
    words = [ini, "--output", node.folder / "run"]
    assert node.job("run.sbatch", words, "fails").returncode == 3 and node.starts() == 1
    done = node.job("run.sbatch", words, "fails killed start")
    assert done.returncode == 0 and node.starts() == 3
    assert "a rank was killed (exit code 137): starting once more" in done.stderr


@program.needs_program
def test_a_task_of_a_sweep_goes_on_with_its_other_runs(node, ini):
    runs = [node.folder / name for name in ("one", "two")]
    for run in runs:
        run.mkdir()
        (run / "request.ini").write_text(ini.read_text())
    tasks = node.folder / "tasks.tsv"
    tasks.write_text("".join(f"0\t{run}\n" for run in runs))
    done = node.job("sweep.sbatch", [], "nothing nothing start", TASKS_FILE=tasks, SLURM_ARRAY_TASK_ID=0)
    assert (done.returncode, node.starts()) == (4, 3), done.stderr
    assert "failed with exit code 4" in done.stderr
    assert "no run has ended" in (runs[0] / "output.log").read_text()
    assert not (runs[0] / "COMPLETE").exists() and (runs[1] / "COMPLETE").exists()
    assert not left_behind(node.folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@program.needs_program
def test_from_a_folder_that_cannot_be_written(node, ini, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    node.folder.chmod(0o555)
    try:
        done = node.job("run.sbatch", [ini, "--output", out / "run"], "start", SRUN_LOG=out / "srun.log")
    finally:
        node.folder.chmod(0o755)
    assert done.returncode == 0, done.stderr


@program.needs_program
def test_an_exit_file_that_cannot_be_written_is_an_error(ini, tmp_path):
    out = tmp_path / "run"
    done = program.start("run", "--config", ini, "--output", out, "--exit-file", tmp_path / "nowhere" / "file")
    assert done.returncode == 4 and "--exit-file" in done.stderr
    assert (out / "COMPLETE").exists()
