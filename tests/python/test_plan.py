"""`hetlora plan`: figures that a run then has, nothing trained or written."""

import json
import sys
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    changes = {"experiment": {"rounds": 4}, "evaluation": {"every": 2}}
    return program.write_ini(folder / "run.ini", micro.build(folder), changes)


def plan(config, *words, mpi_ranks=0):
    goal = config.parent / "plan.json"
    done = program.start("plan", "--config", config, "--json", goal, *words, mpi_ranks=mpi_ranks, cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(goal.read_text())
    goal.unlink()
    return figures, done.stdout


def test_figures_are_consistent_and_nothing_is_written(config):
    before = sorted(config.parent.rglob("*"))
    figures, text = plan(config)
    assert sorted(config.parent.rglob("*")) == before
    assert figures["mpi_ranks"] == figures["mpi_ranks_measured"] == 1
    assert figures["threads"] == 1
    assert figures["rounds"] == 4
    positive = ("seconds_start", "seconds_train", "seconds_per_round", "seconds_per_evaluation", "peak_memory_bytes")
    assert all(figures[name] > 0 for name in positive)
    # The state before training, rounds 2 and 4: three evaluations.
    rounds = 4 * (figures["seconds_train"] + figures["seconds_overhead"])
    total = figures["seconds_start"] + rounds + 3 * figures["seconds_per_evaluation"]
    assert figures["seconds_total"] == pytest.approx(total)
    assert "plan for 1 MPI rank of 1 thread" in text


def test_memory_is_that_of_the_run(config):
    figures, _ = plan(config)
    run = config.parent / "run"
    assert program.start("run", "--config", config, "--output", run).returncode == 0
    with h5py.File(run / "run.h5") as file:
        measured = file["rounds/peak_memory_bytes"][:].max()
    assert figures["peak_memory_bytes"] == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("mpi_ranks", [0, 2])
def test_several_ranks_are_measured_side_by_side(config, mpi_ranks):
    figures, text = plan(config, *(() if mpi_ranks else ("--mpi-ranks", "2")), mpi_ranks=mpi_ranks)
    assert figures["mpi_ranks"] == 2
    assert figures["mpi_ranks_measured"] == 2
    assert "MPI rank 1 on" in text


def test_more_ranks_than_cores_are_planned_from_fewer(config):
    figures, _ = plan(config, "--mpi-ranks", "64")
    assert figures["mpi_ranks"] == 64
    assert 1 < figures["mpi_ranks_measured"] <= 64
    alone, _ = plan(config)
    assert figures["seconds_train"] < 64 * alone["seconds_train"]


def test_a_wrong_config_is_told(config):
    done = program.start("plan", "--config", config, "lora.rank_maxx=3")
    assert done.returncode == 2
    assert "lora.rank_max" in done.stderr
