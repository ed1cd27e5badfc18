"""Partitions at run time: the same on any number of MPI ranks, hashed, counted in the log and drawn in the report."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hetlora.__main__ import main
from hetlora.report import rows
from hetlora.report.figures_data import labels_by_client
from hetlora.report.rows import methods_of
from hetlora.run_record import read_run

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program

RULES = {
    "label": {"partition": "dirichlet", "dirichlet_alpha": 0.3},
    "group": {"partition": "dirichlet", "dirichlet_alpha": 0.3, "dirichlet_by": "group"},
    "quantity": {"partition": "quantity", "quantity_sigma": 1.2},
    "iid": {"partition": "iid"},
    "natural": {"partition_clients": None},
}


def add_groups(file: Path) -> None:
    """Gives every sequence a group, by client parity."""
    with h5py.File(file, "r+") as data:
        data["sequences/group"] = (data["sequences/client"][:] % 2).astype(np.int32)
        data["groups/name"] = np.array([b"even", b"odd"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partition")
    made = micro.build(folder)
    add_groups(made[1])
    return folder, made


@pytest.fixture(scope="module")
def runs(world):
    """{rule: (folder of a run, its stderr and stdout)}."""
    folder, made = world
    found = {}
    for name, rule in RULES.items():
        found[name] = (folder / name, start(folder, made, name, rule))
    return found


def start(folder: Path, made: tuple[Path, Path], name: str, rule: dict, mpi_ranks: int = 0, **experiment):
    changes = {
        "data": {"partition_clients": 7, **rule},
        "experiment": {"rounds": 1, "clients_per_round": 2, **experiment},
        "local": {"steps": 1},
    }
    ini = program.write_ini(folder / f"{name}.ini", made, changes)
    done = program.start("run", "--config", ini, "--output", folder / name, mpi_ranks=mpi_ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def train_owners(run: Path) -> int:
    with h5py.File(run / "run.h5") as file:
        return int(file["clients/n_train_sequences"][:].sum())


def test_every_rule_counts_its_labels_and_has_a_hash(runs, world):
    with h5py.File(world[1][1]) as data:
        train = data["sequences/part"][:] == 0
        totals = {"label": np.bincount(data["sequences/label"][:][train], minlength=3),
                  "group": np.bincount(data["sequences/group"][:][train], minlength=2)}  # fmt: skip
    hashes = set()
    for name, (run, output) in runs.items():
        record = read_run(run)
        kind = "group" if name == "group" else "label"
        counts = record.labels["n_train_sequences"]
        assert counts.sum(axis=0).tolist() == totals[kind].tolist(), name
        assert counts.sum(axis=1).tolist() == record.clients["n_train_sequences"].tolist()
        assert list(record.labels["name"]) == (["even", "odd"] if kind == "group" else ["calm", "glad", "sour"])
        digest = record.provenance["partition_sha256"]
        assert len(digest) == 64 and f"hash {digest[:12]}" in output
        hashes.add(digest)
    assert len(hashes) == len(RULES)
    assert "dirichlet by group, alpha 0.3, seed 7" in runs["group"][1]
    assert "quantity, log-normal with sigma 1.2" in runs["quantity"][1]
    sizes = read_run(runs["quantity"][0]).clients["n_train_sequences"]
    assert sizes.max() > 2 * np.median(sizes)


def test_xarray_opens_the_table(runs):
    xarray = pytest.importorskip("xarray")
    for engine in ("h5netcdf", "netcdf4"):
        with xarray.open_dataset(runs["label"][0] / "run.h5", group="labels", engine=engine) as table:
            assert table.n_train_sequences.dims == ("client", "label") and table.name.dims == ("label",)
            assert table.attrs["kind"] == "label"


@program.needs_mpirun
def test_the_partition_is_the_same_on_three_mpi_ranks(runs, world):
    folder, made = world
    for name in ("group", "quantity"):
        start(folder, made, f"{name}-3", RULES[name], mpi_ranks=3)
        assert program.columns(folder / f"{name}-3" / "run.h5") == program.columns(runs[name][0] / "run.h5")
        here, bare = (read_run(run).provenance["partition_sha256"] for run in (folder / f"{name}-3", runs[name][0]))
        assert here == bare


def test_the_seed_of_the_partition_changes_it_alone(runs, world):
    folder, made = world
    start(folder, made, "other-seed", RULES["label"], seed_partition=8)
    one, other = read_run(folder / "other-seed"), read_run(runs["label"][0])
    assert one.provenance["partition_sha256"] != other.provenance["partition_sha256"]
    assert one.clients["initial_lora_rank"].tolist() == other.clients["initial_lora_rank"].tolist()


def test_the_report_draws_labels_by_client(runs, tmp_path):
    record = read_run(runs["label"][0])
    methods = methods_of([record])
    found = rows.label_counts(methods, 120)
    assert sum(row["sequences"] for row in found) == train_owners(runs["label"][0])
    for client in {row["client"] for row in found}:
        own = [row for row in found if row["client"] == client]
        assert sum(row["share"] for row in own) == pytest.approx(1, abs=1e-4)
    figure = labels_by_client(methods)
    assert record.provenance["partition_sha256"][:12] in figure.note
    few = rows.label_counts(methods, 3)
    assert len({row["client"] for row in few}) == 3
    page = tmp_path / "page.html"
    assert main(["report", str(runs["label"][0]), str(runs["quantity"][0]), "--output", str(page)]) == 0
    assert 'id="labels-by-client"' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "rule, code, message",
    [
        ({"partition": "dirichlet", "dirichlet_by": "group"}, 3, "no sequence has a group"),
        ({"partition": "quantity", "quantity_sigma": 0}, 2, "quantity_sigma"),
        ({"partition": "quantity", "partition_clients": 0}, 2, "partition_clients"),
        ({"partition": "dirichlet", "dirichlet_by": "topic"}, 2, "dirichlet_by"),
        ({"partition": "dirichlet", "dirichlet_alpha": 1e-5, "partition_clients": 50}, 2, "clients can train"),
        ({"sequence_length": 300, "partition_clients": None}, 2, "longer than the 256 positions"),
    ],
)
def test_bad_partitions_end_in_one_message(world, tmp_path, rule, code, message):
    made = (world[1][0], micro.build_corpus(tmp_path / "plain.h5", 0, world[1][0] / "tokenizer.json"))
    changes = {"data": {"partition_clients": 7, **rule}, "experiment": {"rounds": 1, "clients_per_round": 6},
               "compute": {"pack_tokens": "auto"}}  # fmt: skip
    ini = program.write_ini(tmp_path / "bad.ini", made, changes)
    done = program.start("check", "--config", ini)
    assert done.returncode == code and message in done.stderr, done.stderr
