"""Memory does not grow with the number of clients of a round: adapters of a finished pack are summed and forgotten."""

import sys
from pathlib import Path

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program

RANK_MAX = 16
PARAMETERS = 16384  # 2 layers, seven matrices of widths 32, 16 and 64: 1,024 values a slot


def test_peak_memory_does_not_grow_with_the_cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "N_CLIENTS", 400)
    model = micro.build_model(tmp_path / "model")
    data = micro.build_corpus(tmp_path / "many.h5", tokenizer_file=model / "tokenizer.json")
    peaks = {}
    for cohort in (20, 390):
        folder = tmp_path / str(cohort)
        done = program.start(
            "run",
            f"model.path={model}",
            f"data.path={data}",
            "experiment.rounds=1",
            f"experiment.clients_per_round={cohort}",
            "lora.targets=all-linear",
            "lora.rank_distribution=fixed",
            f"lora.rank_max={RANK_MAX}",
            "strategy.preset=hetlora-agg",
            "data.sequence_length=24",
            "data.overlap=8",
            "data.min_windows=1",
            "local.steps=1",
            "local.batch_size=1",
            "evaluation.sequences=4",
            "compute.threads=1",
            "compute.pack_tokens=64",
            f"output.dir={folder}",
        )
        assert done.returncode == 0, done.stderr
        with h5py.File(folder / "run.h5") as file:
            assert file["rounds/n_clients"][1] == cohort
            assert file["rounds/bytes_up_true"][1] == cohort * (PARAMETERS * 4 + 4)
            peaks[cohort] = int(file["rounds/peak_memory_bytes"][1])
    if_all_were_kept = 370 * PARAMETERS * 8
    assert peaks[390] - peaks[20] < 0.3 * if_all_were_kept, f"{peaks} against {if_all_were_kept} bytes of adapters"


@pytest.mark.parametrize("cohort", [20])
def test_padded_bytes_do_not_grow_with_the_clients(tmp_path, monkeypatch, cohort):
    """Two MPI ranks exchange the same padded sums whether a few or many clients trained; the reports are small."""
    monkeypatch.setattr(micro, "N_CLIENTS", 60)
    model = micro.build_model(tmp_path / "model")
    data = micro.build_corpus(tmp_path / "some.h5", tokenizer_file=model / "tokenizer.json")
    moved = {}
    for clients in (4, cohort):
        folder = tmp_path / str(clients)
        done = program.start(
            "run",
            f"model.path={model}",
            f"data.path={data}",
            "experiment.rounds=1",
            f"experiment.clients_per_round={clients}",
            "lora.rank_max=8",
            "data.sequence_length=24",
            "data.overlap=8",
            "data.min_windows=1",
            "local.steps=1",
            "local.batch_size=1",
            "evaluation.sequences=4",
            "compute.threads=1",
            "compute.pack_tokens=64",
            f"output.dir={folder}",
            mpi_ranks=2,
        )
        assert done.returncode == 0, done.stderr
        with h5py.File(folder / "run.h5") as file:
            moved[clients] = int(file["rounds/bytes_up_padded"][1])
    assert moved[4] > 0
    assert moved[cohort] - moved[4] < 1000 * (cohort - 4), "a report is a few hundred bytes"
