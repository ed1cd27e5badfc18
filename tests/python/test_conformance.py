"""Every method of the table: same bits for any number of MPI ranks and after a resume, true bytes, dropped clients.

One run of each does for many checks. Its world has a client whose training is not finite (dropped in every round that
it takes part in), cohorts without a client of the largest lora_rank, and several packs a round.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods  # noqa: E402
import micro  # noqa: E402
import program  # noqa: E402

pytestmark = [program.needs_program, program.needs_mpirun]
ALL = pytest.mark.parametrize("name", methods.TABLE)
ROUNDS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    good = micro.build(folder)
    return folder, methods.spoil(folder, *good), good


@pytest.fixture(scope="module")
def bare(world):
    """bare(name): folder of the method's run without mpirun, made once."""
    done = {}

    def of(name: str) -> Path:
        if name not in done:
            done[name] = methods.run(world[0] / name, methods.settings(methods.TABLE[name], world[1]))
        return done[name]

    return of


@ALL
def test_loss_is_finite_and_falls_though_a_client_is_dropped(bare, name):
    logged = methods.log(bare(name))
    losses = logged.rounds["eval_loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.02
    events = logged.participation
    assert events["dropped"].any() and set(events["client"][events["dropped"] != 0]) == {methods.SPOILT}
    assert events["pack"].max() >= 1, "one pack a round only: nothing to divide among MPI ranks"
    kept = events["dropped"] == 0
    for round_ in range(1, ROUNDS + 1):
        of_round = events["round"] == round_
        assert logged.rounds["n_clients"][round_] == (of_round & kept).sum()
        assert events["weight"][of_round & kept].sum() == pytest.approx(1.0)
        assert (events["weight"][of_round & ~kept] == 0).all()


def test_some_cohort_lacks_the_largest_lora_rank(bare):
    events = methods.log(bare("zeropad")).participation
    largest = [events["lora_rank_before"][events["round"] == r].max() for r in range(1, ROUNDS + 1)]
    assert largest[0] == methods.RANK_MAX and min(largest) < methods.RANK_MAX


@ALL
def test_true_bytes_are_those_of_the_printed_formula(bare, name):
    methods.check_true_bytes(methods.TABLE[name], methods.log(bare(name)))


def interrupted(folder: Path, row: dict, world: tuple, mpi_ranks: int) -> None:
    """A run that ended after some of its rounds: at a smaller number of them or, where the number matters, by STOP."""
    if row["policies"]["rank_schedule"] == "none":
        methods.run(folder, methods.settings(row, world, **{"experiment.rounds": ROUNDS // 2}), mpi_ranks)
        return
    command = [*program.mpirun(mpi_ranks), str(program.PROGRAM), "run", "--output", str(folder)]
    command += methods.settings(row, world)
    process = program.subprocess.Popen(
        command, env=program.environment(), stdout=program.subprocess.DEVNULL, stderr=program.subprocess.DEVNULL
    )
    log = folder / "progress.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.002)
    if process.poll() is None:
        (folder / "STOP").touch()
    assert process.wait(timeout=program.TIME_LIMIT_S) in (0, 75)


@pytest.mark.parametrize("mpi_ranks", [(4, 1), (2, 3)], ids=["4 then 1", "2 then 3"])
@ALL
def test_same_bits_on_other_mpi_ranks_with_a_stop_between(world, bare, tmp_path, name, mpi_ranks):
    row = methods.TABLE[name]
    interrupted(tmp_path / "run", row, world[1], mpi_ranks[0])
    methods.run(tmp_path / "run", methods.settings(row, world[1]), mpi_ranks[1], "--resume")
    methods.assert_same(tmp_path / "run", bare(name))


@ALL
def test_one_client_a_round(world, tmp_path, name):
    row = methods.TABLE[name]
    words = methods.settings(row, world[2], **{"experiment.clients_per_round": 1, "experiment.rounds": 3})
    logged = methods.log(methods.run(tmp_path / "run", words))
    assert (logged.participation["weight"] == 1).all()
    assert np.isfinite(logged.rounds["eval_loss"]).all()
    methods.check_true_bytes(row, logged)


@ALL
def test_all_clients_a_round(world, tmp_path, name):
    row = methods.TABLE[name]
    words = methods.settings(row, world[1], **{"experiment.clients_per_round": 0, "experiment.rounds": 2})
    logged = methods.log(methods.run(tmp_path / "run", words))
    assert logged.rounds["n_clients"][1:].tolist() == [9, 9]
    assert logged.rounds["eval_loss"][-1] < logged.rounds["eval_loss"][0]
    methods.check_true_bytes(row, logged)


@pytest.mark.skipif(not os.environ.get("HETLORA_TEST_LONG"), reason="ten rounds on tiny-chat: HETLORA_TEST_LONG=1")
@ALL
def test_ten_rounds_on_tiny_chat(tmp_path, name):
    model = program.ROOT / "models" / "tiny-chat"
    data = program.ROOT / "data" / "chitchat-tiny.h5"
    if not (model / "model.safetensors").exists() or not data.exists():
        pytest.skip("models/tiny-chat or data/chitchat-tiny.h5 is not there (make demo-llm)")
    words = methods.settings(methods.TABLE[name], (model, data), **{
        "experiment.rounds": 10, "data.sequence_length": 128, "data.overlap": 0, "local.learning_rate": 1e-3,
        "lora.rank_distribution": "fixed", "lora.rank_list": None, "compute.pack_tokens": "auto",
    })  # fmt: skip
    logged = methods.log(methods.run(tmp_path / "run", [word for word in words if not word.endswith("=None")]))
    assert np.isfinite(logged.rounds["eval_loss"]).all()
    assert logged.rounds["eval_loss"][-1] < logged.rounds["eval_loss"][0]
