"""Stop and resume: the result is that of the uninterrupted run, bit for bit."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402
from resumed_runs import (  # noqa: E402
    CHANGES,
    ROUNDS,
    assert_same,
    build_world,
    checkpoints,
    finish,
    launch,
    status,
    wait_for_round,
)  # fmt: skip

pytestmark = [program.needs_program, program.needs_mpirun]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize("name", ["USR2", "TERM"])
@pytest.mark.parametrize("mpi_ranks", [0, 2])
def test_a_signal_stops_with_exit_75_and_resume_gives_the_same_bits(world, tmp_path, name, mpi_ranks):
    ini, whole = world.ini, world.whole
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


def test_a_finished_run_is_left_alone_and_goes_on_to_more_rounds(world, tmp_path):
    folder = world.folder
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
    ini, whole = world.ini, world.whole
    run = tmp_path / "run"
    process = launch("run", "--config", ini, "--output", run)
    wait_for_round(run, 2, process)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    done = program.start("run", "--resume", "--output", run)
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)


def test_trace_goes_on(world, tmp_path):
    ini = world.ini
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
    ini, whole = world.ini, world.whole
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
    ini = world.ini
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


def test_a_folder_without_a_run_and_no_config_is_refused(tmp_path):
    done = program.start("run", "--resume", "--output", tmp_path / "typo")
    assert done.returncode == 2
    assert "no config.ini" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_a_folder_in_use_is_refused_but_the_same_job_takes_over(world, tmp_path):
    ini = world.ini
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
    # Killed between a round's status and its checkpoint, it goes on from the round before.
    assert int(re.search(r"going on after round (\d+)", out)[1]) in (reached - 1, reached, reached + 1), out


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_keeps_the_last_checkpoint(world, tmp_path):
    ini, whole = world.ini, world.whole
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
