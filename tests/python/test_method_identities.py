"""With equal lora_ranks, uniform weights and nothing lost on the way, methods that differ in name must not in numbers.

Every row that trains and averages both factors is compared with `fedavg`, round by round. To the bit where the server
takes the mean of the clients' factors; to rounding (fp32: 1e-5 of the largest value) where it takes the mean of their
changes, x + mean(y - x), since y - x rounds.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods  # noqa: E402
import micro  # noqa: E402
import program  # noqa: E402
import server_rules  # noqa: E402

pytestmark = program.needs_program
ROUNDS = 2


def averages_both_factors(row: dict) -> bool:
    p = row["policies"]
    return (p["merge"], p["trainable"], p["shared_factors"]) == ("factors", "both", "both")


def neutral(row: dict) -> dict:
    """The settings that switch off what a method does beyond the mean."""
    p, changes = row["policies"], {"strategy.client_weight": "uniform"}
    if p["local_extra"] == "tail_prune":
        changes["strategy.prune_gamma"] = 1
    if p["local_extra"] == "proximal":
        changes["strategy.prox_mu"] = 0
    if p["rank_schedule"] == "annealing":
        changes["strategy.anneal_start"] = 1
    return changes


SAME = [name for name, row in methods.TABLE.items() if averages_both_factors(row)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    return folder, micro.build(folder)


def traced(folder: Path, row: dict, world: tuple):
    words = methods.settings(row, world, **neutral(row) | {
        "output.trace": True, "experiment.rounds": ROUNDS, "lora.rank_distribution": "fixed",
    })  # fmt: skip
    methods.run(folder, [word for word in words if not word.startswith("lora.rank_list")])
    return server_rules.read_rounds(folder / "trace.h5", row["policies"])[0], methods.log(folder)


@pytest.fixture(scope="module")
def fedavg(world):
    return traced(world[0] / "fedavg", methods.TABLE["fedavg"], world[1])


@pytest.mark.parametrize("name", [name for name in SAME if name != "fedavg"])
def test_equals_fedavg(world, fedavg, tmp_path, name):
    row = methods.TABLE[name]
    rounds, logged = traced(tmp_path / "run", row, world[1])
    deltas = row["policies"]["aggregate"] == "deltas"
    # A base that took over what the mean of the factors misses is another model from round 2 on.
    n = 1 if row["policies"]["base_update"] == "residual" else ROUNDS
    for mine, theirs in zip(rounds[:n], fedavg[0][:n], strict=True):
        for pair, other in zip(mine.after, theirs.after, strict=True):
            for found, expected in zip(pair, other, strict=True):
                if deltas:
                    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
                else:
                    assert (found == expected).all()
    for column in ("train_loss", "eval_loss", "n_clients"):
        found, expected = logged.rounds[column][1 : n + 1], fedavg[1].rounds[column][1 : n + 1]
        if n < ROUNDS and column == "eval_loss":
            continue  # measured with the changed base
        np.testing.assert_allclose(found, expected, rtol=1e-5 if deltas else 0)


def test_most_of_the_table_is_compared():
    assert {"hetlora", "hetlora-agg", "zeropad", "rbla", "replicate", "fed-plora", "fslora", "fedex"} <= set(SAME)
