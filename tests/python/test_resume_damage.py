"""Resume from what is damaged, of another run or of another version: made good, or refused with nothing changed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402
from resumed_runs import ROUNDS, assert_same, build_world, checkpoints, finish, launch, wait_for_round  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def stopped_run(world):
    """The folder of a run stopped after some rounds, to be copied."""
    run = world.folder / "stopped"
    process = launch("run", "--config", world.ini, "--output", run)
    wait_for_round(run, 4, process)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == 75
    return run


@pytest.fixture
def stopped(world, stopped_run, tmp_path):
    """(config, a copy of the stopped run, uninterrupted one)."""
    return world.ini, shutil.copytree(stopped_run, tmp_path / "run"), world.whole


@pytest.fixture
def finished(world, tmp_path):
    """(config, a copy of the uninterrupted run)."""
    return world.ini, shutil.copytree(world.whole, tmp_path / "run")


def refused(run: Path, ini: Path, code: int, *words: str) -> str:
    """The message of a resume that must leave every file as it is."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = program.start("run", "--config", ini, "--output", run, "--resume", *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    return done.stderr


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(stopped):
    ini, run, whole = stopped
    older, newest = checkpoints(run)
    state = run / "checkpoint" / newest / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    text = finish(ini, run)
    assert newest in text and "is damaged" in text
    assert f"going on after round {int(older.removeprefix('round_'))}" in text
    assert_same(run, whole)


@pytest.mark.parametrize("damage", ["truncated", "no sums", "no manifest"])
def test_no_good_checkpoint_is_a_clear_error(stopped, damage):
    ini, run, _ = stopped
    for name in checkpoints(run):
        folder = run / "checkpoint" / name
        if damage == "truncated":
            content = (folder / "state.safetensors").read_bytes()
            (folder / "state.safetensors").write_bytes(content[: len(content) // 2])
        else:
            (folder / ("SHA256SUMS" if damage == "no sums" else "manifest.json")).unlink()
    before = sorted(path.name for path in run.rglob("*"))
    done = program.start("run", "--config", ini, "--output", run, "--resume")
    assert done.returncode == 3
    assert "is damaged" in done.stderr and "no checkpoint in" in done.stderr
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_checkpoint_of_another_version_is_refused(stopped):
    ini, run, _ = stopped
    newest = run / "checkpoint" / checkpoints(run)[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["schema_version"] = 99
    (newest / "manifest.json").write_text(json.dumps(manifest))
    sums = subprocess.run(
        ["sha256sum", "state.safetensors", "manifest.json"], cwd=newest, capture_output=True, text=True, check=True
    )
    (newest / "SHA256SUMS").write_text(sums.stdout)
    done = program.start("run", "--config", ini, "--output", run, "--resume")
    assert done.returncode == 3
    assert "format version 99" in done.stderr


def test_another_run_is_refused_and_the_difference_named(stopped):
    ini, run, whole = stopped
    done = program.start("run", "--config", ini, "--output", run, "--resume", "local.learning_rate=0.2")
    assert done.returncode == 2
    assert "then local.learning_rate=0.1" in done.stderr and "now local.learning_rate=0.2" in done.stderr
    finish(ini, run)
    assert_same(run, whole)


def test_a_finished_run_of_other_settings_is_refused(finished):
    ini, run = finished
    assert "now experiment.seed=99" in refused(run, ini, 2, "experiment.seed=99")


def test_a_finished_run_without_checkpoint_is_not_begun_anew(finished):
    ini, run = finished
    shutil.rmtree(run / "checkpoint")
    assert "has no checkpoint" in refused(run, ini, 3, f"experiment.rounds={ROUNDS + 1}")


def test_a_trace_cannot_begin_in_the_middle(finished):
    ini, run = finished
    message = refused(run, ini, 2, f"experiment.rounds={ROUNDS + 1}", "output.trace=true")
    assert "output.trace=false" in message
    assert (run / "COMPLETE").exists()


def test_another_config_of_the_base_is_another_run(finished, world, tmp_path):
    ini, run = finished
    model = shutil.copytree(world.folder / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    more = (f"experiment.rounds={ROUNDS + 1}", f"model.path={model}")
    assert "base_sha256" in refused(run, ini, 2, *more)
    (model / "config.json").write_text(json.dumps(dict(reversed(config.items())) | {"transformers_version": "9"}))
    assert program.start("run", "--config", ini, "--output", run, "--resume", *more).returncode == 0


def test_a_damaged_log_is_made_anew_from_the_second_copy(stopped):
    ini, run, whole = stopped
    (run / "run.h5").write_bytes((run / "run.h5").read_bytes()[:5000])
    text = finish(ini, run)
    assert "made anew from progress.jsonl" in text
    assert (run / "run.h5.damaged").stat().st_size == 5000
    assert_same(run, whole)


def test_a_repaired_run_goes_on_exactly(stopped, tmp_path):
    """Nothing of run.h5 is left: clients come from the data file, config and hashes from the checkpoint."""
    ini, run, whole = stopped
    (run / "run.h5").write_bytes((run / "run.h5").read_bytes()[:5000])
    done = program.start("repair", run)
    assert done.returncode == 0, done.stderr
    lost = [line for line in done.stdout.splitlines() if line.startswith("lost: ")]
    assert [line.split(":")[1] for line in lost] == [" created_utc", " provenance"], done.stdout
    with h5py.File(run / "run.h5") as here, h5py.File(whole / "run.h5") as there:
        for name in ("name", "n_train_sequences", "n_train_tokens", "initial_lora_rank"):
            assert here["clients"][name][()].tobytes() == there["clients"][name][()].tobytes(), name
        assert here.attrs["run_id"] == there.attrs["run_id"]
        assert here["provenance"].attrs["data_sha256"] == there["provenance"].attrs["data_sha256"]
    assert "damaged" not in finish(ini, run)
    assert_same(run, whole)


def test_a_torn_second_copy_is_made_anew_from_the_log(stopped):
    ini, run, whole = stopped
    lines = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    (run / "progress.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    assert "made anew from run.h5" in finish(ini, run)
    assert_same(run, whole)
