"""`hetlora sweep` end to end: what is missing runs, nothing runs twice, failures are told, a stopped sweep goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402
from sweeps import ENVIRONMENT, STOPPED, TRAINING, TWO_BY_TWO, USAGE, Sweep  # noqa: E402

pytestmark = program.needs_program
SWEEPS = sorted((program.ROOT / "configs" / "sweeps").glob("*.ini"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return micro.build(tmp_path_factory.mktemp("world"))


def stamps(folder: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("[!.]*") if path.is_file()}


# --- run ---


def test_runs_what_is_missing_and_nothing_twice(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)

    said = sweep.run()

    assert "4 of 4 runs done" in said
    assert {name.rsplit("_", 1)[0] for name in sweep.folders()} == {
        "uniform_s1",
        "uniform_s2",
        "powerlaw_s1",
        "powerlaw_s2",
    }
    for name in sweep.folders():
        status = json.loads((sweep.output / name / "status.json").read_text())
        assert status["run_id"].startswith(name.rsplit("_", 1)[1]), "the folder is named by another identity"
    before = stamps(sweep.output)
    assert "0 to start" in sweep.run()
    assert stamps(sweep.output) == before, "a finished run was touched"

    old = sweep.folders()
    assert "2 to start" in sweep.run("experiment.seed=1..3")
    assert sweep.folders() > old and len(sweep.folders()) == 6
    assert sweep.counts("experiment.seed=1..3") == {"done": 6}
    assert {path: stamp for path, stamp in stamps(sweep.output).items() if path in before} == before
    assert sweep.status()["foreign"] == 2, "runs of a larger sweep are counted apart"


def test_a_new_axis_keeps_finished_runs(world, tmp_path):
    sweep = Sweep(tmp_path, world, "experiment.seed = 1..2")
    sweep.run()
    before = sweep.folders()

    assert "2 to start" in sweep.run("lora.rank_max=8,4")

    assert before < sweep.folders()
    assert sweep.counts("lora.rank_max=8,4") == {"done": 4}


def test_gives_the_same_as_runs_alone(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    sweep.run()
    for name, columns in sweep.results().items():
        alone = tmp_path / "alone" / name
        done = program.start("run", "--config", sweep.output / name / "request.ini", "--output", alone)
        assert done.returncode == 0, done.stderr
        assert program.columns(alone / "run.h5") == columns


def test_more_rounds_go_on_from_where_runs_stand(world, tmp_path):
    sweep = Sweep(tmp_path, world, "experiment.seed = 1..2")
    sweep.run()
    assert sweep.counts("experiment.rounds=4") == {"stopped": 2}

    sweep.run("experiment.rounds=4")

    assert sweep.counts("experiment.rounds=4") == {"done": 2}
    assert sweep.counts() == {"done": 2}, "more rounds than asked for are enough"
    (tmp_path / "b").mkdir()
    whole = Sweep(tmp_path / "b", world, "experiment.seed = 1..2", rounds=4)
    whole.run()
    assert whole.results() == sweep.results()


@program.needs_mpirun
def test_on_several_mpi_ranks(world, tmp_path):
    alone = Sweep(tmp_path / "a", world, "experiment.seed = 1..2")
    alone.run()
    ranks = Sweep(tmp_path / "b", world, "experiment.seed = 1..2")
    ranks.run("--mpi-ranks", 2, "--cores", 4)
    assert ranks.results() == alone.results()


def test_without_a_file_words_are_the_axes(world, tmp_path):
    base = program.write_ini(tmp_path / "base.ini", world, {"experiment": {"rounds": 1}})
    words = ["--config", base, "lora.rank_max=4,8", "experiment.rounds=1", "--output", tmp_path / "out"]
    done = program.start("sweep", "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name.split("_")[0] for path in (tmp_path / "out").glob("*_????????")) == ["4", "8"]


# --- failures ---


def test_a_failed_run_is_told_left_alone_and_tried_again_on_request(world, tmp_path):
    sweep = Sweep(tmp_path, world, "lora.rank_max = 8, 17\nexperiment.seed = 1..2")  # 17: wider than the matrices

    said = sweep.run(code=USAGE)

    assert sweep.counts() == {"done": 2, "failed": 2}
    failed = [run for run in sweep.status()["runs"] if run["state"] == "failed"]
    assert all("17" in run["reason"] and "16" in run["reason"] for run in failed)
    assert "failed" in said and failed[0]["reason"] in said
    assert failed[0]["reason"] in sweep.call("status").stdout
    assert "0 to start" in sweep.run(code=TRAINING), "a failed run went again unasked"
    assert "2 to start" in sweep.run("--retry-failed", code=USAGE)
    log = Path(failed[0]["folder"], "output.log").read_text()
    assert log.count("--- ") == 2, "the first attempt's output is gone"


def test_a_run_that_diverges_does_not_stop_the_others(world, tmp_path):
    sweep = Sweep(tmp_path, world, "local.learning_rate = 1e4, 0.3\nlocal.on_nonfinite = stop, drop",
                  "[exclude]\none_each = local.learning_rate=0.3 local.on_nonfinite=stop")  # fmt: skip
    sweep.run(code=TRAINING)
    states = {run["settings"].split(",")[0]: run["state"] for run in sweep.status()["runs"]}
    assert states["local.learning_rate = 0.3"] == "done"
    assert states["local.learning_rate = 1e4"] == "failed"


# --- stopping ---


def begin(sweep: Sweep, *options: object) -> subprocess.Popen:
    command = [str(program.PROGRAM), *sweep.words("run", *options)]
    # A shell starts what it puts in the background with SIGINT ignored, and that would be inherited.
    heeding = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, env=program.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, heeding)


def wait_for_round(sweep: Sweep, round_: int) -> None:
    end = time.monotonic() + program.TIME_LIMIT_S
    while time.monotonic() < end:
        for path in sweep.output.glob("*/progress.jsonl"):
            if path.read_text().count("\n") > round_:
                return
        time.sleep(0.02)
    raise AssertionError("no run came to that round")


LONG_ROUNDS = 60


@pytest.fixture(scope="session")
def uninterrupted(world, tmp_path_factory):
    sweep = Sweep(tmp_path_factory.mktemp("whole"), world, "experiment.seed = 1..2", rounds=LONG_ROUNDS)
    sweep.run()
    return sweep.results()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_stopped_and_gone_on_with_gives_the_same(world, tmp_path, uninterrupted, how):
    sweep = Sweep(tmp_path, world, "experiment.seed = 1..2", rounds=LONG_ROUNDS)

    with begin(sweep, "--cores", 1) as running:
        wait_for_round(sweep, 3)
        running.send_signal(how)
        out, err = running.communicate(timeout=program.TIME_LIMIT_S)
    assert running.returncode == (-how if how == signal.SIGKILL else STOPPED), out + err
    end = time.monotonic() + program.TIME_LIMIT_S
    while sweep.counts().get("running") and time.monotonic() < end:  # killed: its run gets the news from the kernel
        time.sleep(0.1)

    assert sweep.counts() == {"waiting": 1, "stopped": 1}
    sweep.run()
    assert sweep.counts() == {"done": 2}
    assert sweep.results() == uninterrupted


def test_two_at_once_share_the_work(world, tmp_path):
    sweep = Sweep(tmp_path, world, "experiment.seed = 1..4", rounds=5)
    with begin(sweep, "--cores", 1) as first, begin(sweep, "--cores", 1) as second:
        said = [process.communicate(timeout=program.TIME_LIMIT_S) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sweep.counts() == {"done": 4}


# --- plan ---


def test_plan_measures_each_kind_once(world, tmp_path):
    """With a program whose `plan` takes no time; that of hetlora itself has tests of its own."""
    fake = tmp_path / "fake"
    fake.write_text("""#!/usr/bin/env bash
[ "$1" = plan ] || exit 70
echo "$@" >>"$0.calls"
while [ $# -gt 0 ]; do [ "$1" != --json ] || json=$2; shift; done
echo '{"seconds_start": 2, "seconds_total": 12, "peak_memory_bytes": 1000000, "device": "cpu"}' >"$json"
""")
    fake.chmod(0o755)
    env = program.environment(HETLORA_PROGRAM=str(fake))
    sweep = Sweep(tmp_path, world, "lora.rank_max = 4, 8\nexperiment.seed = 1..10")

    done = sweep.call("plan", "--cores", "4", env=env)

    assert done.returncode == 0, done.stderr
    assert "20 runs (20 waiting)" in done.stdout and "about 1 min 00 s on this machine, 4 side by side" in done.stdout
    assert "0.07 core-hours" in done.stdout
    assert sweep.call("plan", env=env).returncode == 0
    assert len(Path(f"{fake}.calls").read_text().splitlines()) == 2, "measured more than once for each kind"
    assert not sweep.folders(), "planning made run folders"

    fake.write_text("#!/bin/sh\necho 'hetlora plan: no' >&2\nexit 4\n")
    again = sweep.call("plan", "local.steps=4", env=env)
    assert again.returncode == ENVIRONMENT and "hetlora plan: no" in again.stderr and "--no-calibrate" in again.stderr


def test_plan_lists_the_runs_with_their_folders(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    planned = sweep.call("plan", "--no-calibrate")
    assert planned.returncode == 0, planned.stderr
    sweep.run()
    for name in sweep.folders():
        assert name in planned.stdout


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_shipped_sweeps_are_whole(world, tmp_path, file):
    words = [f"model.path={world[0]}", f"data.path={world[1]}", "--output", tmp_path / "out"]
    done = program.start("sweep", "plan", "--no-calibrate", "--all", "--config", file, *words, cwd=program.ROOT)
    assert done.returncode == 0, done.stderr
    assert ("4 runs" in done.stdout) == (file.stem == "minimal")


def test_damaged_folders_are_survived(world, tmp_path):
    sweep = Sweep(tmp_path, world, TWO_BY_TWO)
    sweep.run()
    folders = sorted(sweep.output.glob("*_????????"))
    (folders[0] / "status.json").write_text("{")
    (folders[1] / "progress.jsonl").write_text("nonsense")
    (sweep.output / ".hashes.json").write_text("[")
    (sweep.output / ".calibration.json").write_text("[]")
    shutil.rmtree(folders[2])
    assert sweep.counts() == {"done": 3, "waiting": 1}
