"""Stop, kill and resume: the result is that of the uninterrupted run, bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]

ROUNDS = 9
KILLS = 100 if os.environ.get("HETLORA_TEST_LONG") else 10
ADAPTER = "adapter/adapter_model.safetensors"
# More work a round than in the other tests, so that there is something to interrupt.
CHANGES = {
    "experiment": {"rounds": ROUNDS, "clients_per_round": 10},
    "local": {"steps": 10, "batch_size": 6, "learning_rate": 0.1},
    "evaluation": {"clients": "final"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, config, folder of the uninterrupted run, its seconds)."""
    folder = tmp_path_factory.mktemp("resume")
    ini = program.write_ini(folder / "run.ini", micro.build(folder), CHANGES)
    began = time.monotonic()
    done = program.start("run", "--config", ini, "--output", folder / "whole")
    assert done.returncode == 0, done.stderr
    return folder, ini, folder / "whole", time.monotonic() - began


def launch(*words: object, mpi_ranks: int = 0, env: dict | None = None) -> subprocess.Popen:
    command = [*(program.mpirun(mpi_ranks) if mpi_ranks else []), str(program.PROGRAM), *map(str, words)]
    return subprocess.Popen(
        command, env=env or program.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def wait_for_round(run: Path, round_: int, process: subprocess.Popen) -> None:
    """Returns when that round is committed."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if status(run)["round"] >= round_:
                return
        time.sleep(0.005)
    raise AssertionError(f"ended before round {round_}: {process.communicate()}")


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoint").iterdir())


def assert_same(run: Path, whole: Path) -> None:
    assert (run / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    here, there = program.columns(run / "run.h5"), program.columns(whole / "run.h5")
    assert here.keys() == there.keys()
    assert [name for name in there if here[name] != there[name]] == []
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines)))
    assert len(lines) == h5py.File(run / "run.h5").attrs["committed_rounds"]


def finish(ini: Path, run: Path, mpi_ranks: int = 0) -> str:
    done = program.start("run", "--config", ini, "--output", run, "--resume", mpi_ranks=mpi_ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(run)["state"] == "done"
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["USR2", "TERM"])
@pytest.mark.parametrize("mpi_ranks", [0, 2])
def test_a_signal_stops_with_exit_75_and_resume_gives_the_same_bits(world, tmp_path, name, mpi_ranks):
    _, ini, whole, _ = world
    if name == "TERM" and mpi_ranks:
        pytest.skip("mpirun itself ends on TERM: the job scripts forward USR2 to it")
    run = tmp_path / "run"
    process = launch("run", "--config", ini, "--output", run, mpi_ranks=mpi_ranks)
    wait_for_round(run, 3, process)
    process.send_signal(getattr(signal, f"SIG{name}"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    stopped = status(run)
    assert stopped["state"] == "stopped"
    assert f"SIG{name}" in stopped["message"]
    assert "--resume" in out
    assert not (run / "COMPLETE").exists()
    text = finish(ini, run, mpi_ranks=3 - mpi_ranks if mpi_ranks else 3)
    assert f"going on after round {stopped['round']}" in text
    assert_same(run, whole)
    with h5py.File(run / "run.h5") as file:
        assert f"SIG{name}" in file["provenance"].attrs["stops"].decode()
        assert f"after round {stopped['round']}" in file["provenance"].attrs["resumes"].decode()
    assert checkpoints(run) == [f"round_{ROUNDS:06}"]


@pytest.mark.parametrize("mpi_ranks", [1, 3])
def test_killed_at_random_moments(world, tmp_path, mpi_ranks):
    """kill -9 of a random rank at a random moment: all ranks end soon, every file opens, and resume is exact."""
    _, ini, whole, seconds = world  # seconds of the whole run, start included
    random.seed(1000 + mpi_ranks)
    interrupted = readable = 0
    for kill in range(KILLS):
        run = tmp_path / f"run{kill}"
        process = launch("run", "--config", ini, "--output", run, "--resume", mpi_ranks=mpi_ranks)
        moment = random.randint(-1, ROUNDS - 1)  # -1: while it starts
        if moment >= 0:
            with contextlib.suppress(AssertionError):
                wait_for_round(run, moment, process)
        time.sleep(random.uniform(0.0, 2.0 * seconds / ROUNDS))
        ranks = [int(pid) for pid in ranks_of(process.pid)]
        if ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(ranks), signal.SIGKILL)
                interrupted += 1
        process.communicate(timeout=60)
        if (run / "checkpoint").exists():
            # A kill in the middle of a write may tear the log: then resume makes it anew, and nothing is lost.
            with contextlib.suppress(OSError), h5py.File(run / "run.h5") as file:
                assert file.attrs["committed_rounds"] >= 1
                readable += 1
        finish(ini, run, mpi_ranks=random.choice([0, 1, 2]))
        assert_same(run, whole)
        shutil.rmtree(run)
    assert interrupted >= KILLS // 2
    print(f"{KILLS} kills, {interrupted} of a living rank; {readable} logs readable at once, all exact after resume")


def ranks_of(launcher: int) -> list[str]:
    """Process ids of the program's ranks below a launcher."""
    found = subprocess.run(["pgrep", "-P", str(launcher), "-x", "hetlora"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_a_finished_run_is_left_alone_and_goes_on_to_more_rounds(world, tmp_path):
    folder, ini, _, _ = world
    run = tmp_path / "run"
    short = program.write_ini(
        tmp_path / "short.ini", (folder / "model", folder / "micro.h5"), CHANGES | {"experiment": {"rounds": 5}}
    )
    longer = program.write_ini(
        tmp_path / "longer.ini", (folder / "model", folder / "micro.h5"), CHANGES | {"experiment": {"rounds": 8}}
    )
    assert program.start("run", "--config", short, "--output", run).returncode == 0
    before = (run / "run.h5").read_bytes()
    again = program.start("run", "--config", short, "--output", run, "--resume")
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert (run / "run.h5").read_bytes() == before
    assert program.start("run", "--config", longer, "--output", tmp_path / "straight").returncode == 0
    finish(longer, run)
    assert_same(run, tmp_path / "straight")
    assert (run / "COMPLETE").read_text().endswith("8 rounds\n")


def test_resume_needs_no_config_beside_the_folder(world, tmp_path):
    _, ini, whole, _ = world
    run = tmp_path / "run"
    process = launch("run", "--config", ini, "--output", run)
    wait_for_round(run, 2, process)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    done = program.start("run", "--resume", "--output", run)
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)


def test_trace_goes_on(world, tmp_path):
    _, ini, _, _ = world
    whole, run = tmp_path / "whole", tmp_path / "run"
    words = ("run", "--config", ini, "output.trace=true")
    assert program.start(*words, "--output", whole).returncode == 0
    process = launch(*words, "--output", run)
    wait_for_round(run, 4, process)
    process.kill()
    process.communicate(timeout=60)
    assert program.start(*words, "--output", run, "--resume").returncode == 0
    assert_same(run, whole)
    here, there = program.columns(run / "trace.h5"), program.columns(whole / "trace.h5")
    assert [name for name in there if here[name] != there[name]] == []


def test_files_in_the_folder_ask_for_a_checkpoint_and_for_a_stop(world, tmp_path):
    _, ini, whole, _ = world
    run = tmp_path / "run"
    process = launch("run", "--config", ini, "--output", run, "checkpoint.every=0")
    wait_for_round(run, 2, process)
    assert not (run / "checkpoint").exists() or checkpoints(run) == []
    (run / "CHECKPOINT").touch()
    wait_for_round(run, status(run)["round"] + 2, process)
    assert len(checkpoints(run)) == 1
    (run / "STOP").touch()
    assert process.wait(timeout=60) == 75
    assert not (run / "STOP").exists()
    assert checkpoints(run)[-1] == f"round_{status(run)['round']:06}"
    finish(ini, run)
    assert_same(run, whole)


def test_a_stop_in_an_evaluation_saves_the_lora_ranks_of_the_round_before(world, tmp_path):
    """Nearly all the time goes into evaluating, so that a stop finds a round that has pruned but is not complete."""
    _, ini, _, _ = world
    words = ("run", "--config", ini, "checkpoint.every=0", "local.steps=1", "compute.pack_tokens=24")
    words += ("experiment.clients_per_round=4", "experiment.rounds=30", "strategy.prune_gamma=0.95")
    assert program.start(*words, "--output", tmp_path / "whole").returncode == 0
    run = tmp_path / "run"
    for round_ in (2, 5, 8, 12):
        process = launch(*words, "--output", run, "--resume")
        wait_for_round(run, round_, process)
        process.send_signal(signal.SIGUSR2)
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
    assert program.start(*words, "--output", run, "--resume").returncode == 0
    assert_same(run, tmp_path / "whole")


@pytest.fixture
def stopped(world, tmp_path):
    """(config, folder of a run stopped after some rounds, uninterrupted one)."""
    _, ini, whole, _ = world
    run = tmp_path / "run"
    process = launch("run", "--config", ini, "--output", run)
    wait_for_round(run, 4, process)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == 75
    return ini, run, whole


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


@pytest.fixture(scope="module")
def finished(world):
    """(config, folder) of a finished run, to be copied."""
    _, ini, whole, _ = world
    return ini, whole


def refused(run: Path, ini: Path, code: int, *words: str) -> str:
    """The message of a resume that must leave every file as it is."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = program.start("run", "--config", ini, "--output", run, "--resume", *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    return done.stderr


def test_a_finished_run_of_other_settings_is_refused(finished, tmp_path):
    ini, whole = finished
    run = shutil.copytree(whole, tmp_path / "run")
    assert "now experiment.seed=99" in refused(run, ini, 2, "experiment.seed=99")


def test_a_finished_run_without_checkpoint_is_not_begun_anew(finished, tmp_path):
    ini, whole = finished
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoint")
    assert "has no checkpoint" in refused(run, ini, 3, f"experiment.rounds={ROUNDS + 1}")


def test_a_trace_cannot_begin_in_the_middle(finished, tmp_path):
    ini, whole = finished
    run = shutil.copytree(whole, tmp_path / "run")
    message = refused(run, ini, 2, f"experiment.rounds={ROUNDS + 1}", "output.trace=true")
    assert "output.trace=false" in message
    assert (run / "COMPLETE").exists()


def test_another_config_of_the_base_is_another_run(finished, world, tmp_path):
    ini, whole = finished
    run = shutil.copytree(whole, tmp_path / "run")
    model = shutil.copytree(world[0] / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    more = (f"experiment.rounds={ROUNDS + 1}", f"model.path={model}")
    assert "base_sha256" in refused(run, ini, 2, *more)
    (model / "config.json").write_text(json.dumps(dict(reversed(config.items())) | {"transformers_version": "9"}))
    assert program.start("run", "--config", ini, "--output", run, "--resume", *more).returncode == 0


def test_a_folder_without_a_run_and_no_config_is_refused(tmp_path):
    done = program.start("run", "--resume", "--output", tmp_path / "typo")
    assert done.returncode == 2
    assert "no config.ini" in done.stderr
    assert not (tmp_path / "typo").exists()


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


def test_a_folder_in_use_is_refused_but_the_same_job_takes_over(world, tmp_path):
    _, ini, whole, _ = world
    run = tmp_path / "run"
    job = {"SLURM_JOB_ID": "77"}
    words = ("run", "--config", ini, "--output", run, "--resume", "experiment.rounds=5000")  # long enough for all below
    first = launch(*words, env=program.environment(**job))
    wait_for_round(run, 2, first)
    stranger = program.start(*words)
    assert stranger.returncode == 2
    assert "another process works" in stranger.stderr and "job 77" in stranger.stderr
    assert program.start(*words, env=program.environment(SLURM_JOB_ID="78")).returncode == 2
    second = launch(*words, env=program.environment(**job))
    time.sleep(0.3)
    first.kill()
    first.communicate(timeout=60)
    reached = status(run)["round"]
    wait_for_round(run, reached + 2, second)
    assert status(run)["pid"] == second.pid
    (run / "STOP").touch()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 75, out + err
    assert f"going on after round {reached}" in out


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_keeps_the_last_checkpoint(world, tmp_path):
    _, ini, whole, _ = world
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("this container may not mount a tmpfs")
    try:
        run = disk / "run"
        process = launch("run", "--config", ini, "--output", run)
        wait_for_round(run, 3, process)
        with open(disk / "ballast", "wb", buffering=0) as ballast:
            with contextlib.suppress(OSError):
                while ballast.write(b"x" * 4096):
                    pass
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, out + err
        assert "space" in err
        (disk / "ballast").unlink()
        finish(ini, run)
        assert_same(run, whole)
    finally:
        subprocess.run(["fuser", "-k", "-m", disk], check=False, capture_output=True)
        subprocess.run(["umount", "-l", disk], check=True)
