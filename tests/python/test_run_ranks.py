"""The same experiment on any number of MPI ranks: bit-identical adapter and log."""

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]

MPI_RANKS = (0, 1, 2, 3, 4, 8)  # 0: started bare
if os.environ.get("HETLORA_TEST_LONG"):
    MPI_RANKS += (16, 32)  # many more than cores, and more than packs


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """{MPI ranks: run folder} of one experiment."""
    folder = tmp_path_factory.mktemp("ranks")
    ini = program.write_ini(folder / "run.ini", micro.build(folder))
    for mpi_ranks in MPI_RANKS:
        done = program.start("run", "--config", ini, "--output", folder / f"n{mpi_ranks}", mpi_ranks=mpi_ranks)
        assert done.returncode == 0, done.stderr
    return {mpi_ranks: folder / f"n{mpi_ranks}" for mpi_ranks in MPI_RANKS}


def test_the_experiment_is_not_trivial(runs):
    with h5py.File(runs[1] / "run.h5") as file:
        events = {name: file[f"participation/{name}"][:] for name in file["participation"]}
        rounds = file["rounds"]
        assert (events["lora_rank_after"] < events["lora_rank_before"]).any(), "nothing was pruned"
        assert len(set(events["lora_rank_before"])) >= 3
        assert events["pack"].max() >= 2, "one pack only: nothing to divide among MPI ranks"
        assert rounds["eval_loss"][-1] < rounds["eval_loss"][0]
        assert np.ptp(events["weight"]) > 0


@pytest.mark.parametrize("mpi_ranks", MPI_RANKS[1:])
def test_adapter_has_the_same_bits(runs, mpi_ranks):
    name = "adapter/adapter_model.safetensors"
    assert (runs[mpi_ranks] / name).read_bytes() == (runs[0] / name).read_bytes()


@pytest.mark.parametrize("mpi_ranks", MPI_RANKS[1:])
def test_log_has_the_same_bits(runs, mpi_ranks):
    here, bare = program.columns(runs[mpi_ranks] / "run.h5"), program.columns(runs[0] / "run.h5")
    assert here.keys() == bare.keys()
    assert [name for name in bare if here[name] != bare[name]] == []
    for name in ("rounds/eval_loss", "rounds/train_loss", "slots/energy", "participation/weight", "clients/name"):
        assert name in bare


@pytest.mark.parametrize("mpi_ranks", [2, 4, 8])
def test_work_was_divided(runs, mpi_ranks):
    with h5py.File(runs[mpi_ranks] / "run.h5") as file:
        used = set(file["participation/mpi_rank"][:].tolist())
        assert used <= set(range(mpi_ranks))
        assert len(used) >= 2


def test_padded_bytes_only_between_processes(runs):
    with h5py.File(runs[1] / "run.h5") as alone, h5py.File(runs[4] / "run.h5") as four:
        assert alone["rounds/bytes_up_padded"][:].sum() == 0
        assert (four["rounds/bytes_up_padded"][1:] > 0).all()
        assert (four["rounds/bytes_down_padded"][1:] > 0).all()


def test_same_identity(runs):
    ids = set()
    for folder in runs.values():
        with h5py.File(folder / "run.h5") as file:
            ids.add(bytes(np.asarray(file.attrs["run_id"]).item()))
    assert len(ids) == 1
