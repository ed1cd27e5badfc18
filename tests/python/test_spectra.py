"""/layers of run.h5 (log.spectra) against NumPy on dense products, on any number of MPI ranks, and after a resume."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]

RANK_MIN = program.CONFIG["lora"]["rank_min"]
WORDS = ("log.spectra=2", "output.trace=true")  # three rounds: the second, and the last


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectra")
    return folder, program.write_ini(folder / "run.ini", micro.build(folder))


@pytest.fixture(scope="module")
def runs(world):
    """{MPI ranks: run folder}."""
    folder, ini = world
    found = {}
    for mpi_ranks in (0, 3):
        found[mpi_ranks] = folder / f"n{mpi_ranks}"
        words = ("run", "--config", ini, "--output", found[mpi_ranks], *WORDS)
        done = program.start(*words, mpi_ranks=mpi_ranks)
        assert done.returncode == 0, done.stderr
    return found


class Trace:
    """The adapters of trace.h5 as matrices."""

    def __init__(self, path: Path):
        with h5py.File(path) as file:
            self.matrices = [
                (name.decode(), int(d_out), int(d_in))
                for name, d_out, d_in in zip(
                    *(file[f"matrices/{k}"][:] for k in ("name", "d_out", "d_in")), strict=True
                )
            ]
            self.rank_max = int(file.attrs["rank_max"])
            self.globals = {
                int(round_): self.split(file["globals/values"][begin:end], self.rank_max)
                for round_, begin, end in zip(
                    file["globals/round"][:], file["globals/offset"][:-1], file["globals/offset"][1:], strict=True
                )
            }
            self.events = [
                {
                    "round": int(file["events/round"][e]),
                    "dropped": bool(file["events/dropped"][e]),
                    "rank": int(file["events/lora_rank_after"][e]),
                    **{
                        kind: self.split(
                            file[f"adapters/{kind}"][slice(*file[f"events/{kind}_offset"][e : e + 2])],
                            int(file[f"events/lora_rank_{when}"][e]),
                        )
                        for kind, when in (("received", "before"), ("sent", "after"))
                    },
                }
                for e in range(len(file["events/round"]))
            ]

    def split(self, values: np.ndarray, lora_rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """[(A [r, d_in], B^T [r, d_out]) of each matrix]."""
        found, at = [], 0
        for _, d_out, d_in in self.matrices:
            a = values[at : at + lora_rank * d_in].reshape(lora_rank, d_in)
            at += a.size
            b = values[at : at + lora_rank * d_out].reshape(lora_rank, d_out)
            at += b.size
            found.append((a, b))
        assert at == len(values)
        return found

    def product(self, round_: int, matrix: int, scale: float) -> np.ndarray:
        a, b = self.globals[round_][matrix]
        return scale * b.T @ a

    def mean_cosine(self, round_: int, matrix: int) -> float:
        updates = []
        for event in self.events:
            if event["round"] != round_ or event["dropped"]:
                continue
            padded = [
                np.zeros((self.rank_max, sent.shape[1])) for sent in event["sent"][matrix]
            ]  # slots that were not sent say nothing
            for change, sent, received in zip(padded, event["sent"][matrix], event["received"][matrix], strict=True):
                change[: event["rank"]] = sent - received[: event["rank"]]
            updates.append(np.concatenate([change.ravel() for change in padded]))
        units = np.array([update / np.linalg.norm(update) for update in updates])
        cosines = units @ units.T
        n = len(units)
        assert n > 2
        return (cosines.sum() - np.trace(cosines)) / (n * (n - 1))


@pytest.mark.parametrize("mpi_ranks", [0, 3])
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_every_value_is_that_of_the_dense_product(runs, mpi_ranks, engine):
    run = runs[mpi_ranks]
    trace = Trace(run / "trace.h5")
    lora = json.loads((run / "config.json").read_text())["lora"]
    assert lora["scale_rule"] == "constant"
    with xr.open_dataset(run / "run.h5", group="layers", engine=engine) as layers:
        layers.load()
    np.testing.assert_array_equal(layers["round"], [2, 3])
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in layers["name"].values]
    assert names == [name for name, _, _ in trace.matrices]
    for round_ in (2, 3):
        for matrix in range(len(names)):
            row = layers.sel(round=round_, layer=matrix)
            w = trace.product(round_, matrix, lora["scale"])
            change = w - trace.product(round_ - 1, matrix, lora["scale"])
            sigma = np.linalg.svd(w, compute_uv=False)[: trace.rank_max]
            close = {"rtol": 1e-9, "atol": 1e-12 * sigma[0]}
            np.testing.assert_allclose(row.singular_value, sigma, **close)
            np.testing.assert_allclose(row.product_norm, np.linalg.norm(w), **close)
            np.testing.assert_allclose(row.update_norm, np.linalg.norm(change), **close)
            np.testing.assert_allclose(row.effective_rank, (sigma**2).sum() ** 2 / (sigma**4).sum(), rtol=1e-9)
            np.testing.assert_allclose(row.leading_energy, (sigma[:RANK_MIN] ** 2).sum() / (sigma**2).sum(), rtol=1e-9)
            np.testing.assert_allclose(row.client_cosine, trace.mean_cosine(round_, matrix), rtol=1e-9, atol=1e-12)
    assert (layers.update_norm > 0).all() and layers.leading_energy.min() < 0.999
    with xr.open_dataset(run / "run.h5", group="rounds", engine=engine) as rounds:
        mean_rank = layers.effective_rank.mean("layer")
        np.testing.assert_allclose(rounds.effective_rank.sel(round=[2, 3]), mean_rank, rtol=1e-6)


def test_the_bits_do_not_depend_on_the_number_of_mpi_ranks(runs):
    one, three = (program.columns(runs[n] / "run.h5") for n in (0, 3))
    assert "layers/client_cosine" in one and one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] == []


def test_a_run_that_goes_on_has_the_same_layers(world, runs):
    """Also where run.h5 has to be made anew from progress.jsonl."""
    folder, ini = world
    run = folder / "continued"
    words = ("run", "--config", ini, "--output", run, *WORDS)
    assert program.start(*words, "experiment.rounds=2").returncode == 0
    (run / "run.h5").write_bytes((run / "run.h5").read_bytes()[:5000])
    done = program.start(*words, "--resume", mpi_ranks=2)
    assert done.returncode == 0, done.stderr
    assert "made anew from progress.jsonl" in done.stdout + done.stderr
    here, there = program.columns(run / "run.h5"), program.columns(runs[0] / "run.h5")
    assert here.keys() == there.keys()
    assert [name for name in there if here[name] != there[name]] == []


def test_looking_changes_nothing(world, runs):
    folder, ini = world
    done = program.start("run", "--config", ini, "--output", folder / "blind")
    assert done.returncode == 0, done.stderr
    seen, blind = (program.columns(path / "run.h5") for path in (runs[0], folder / "blind"))
    assert not any(name.startswith("layers") for name in blind)
    assert [name for name in blind if blind[name] != seen[name]] == []
