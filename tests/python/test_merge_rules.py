"""Every method's server against NumPy float64 (server_rules.py), on traced runs: mixed ranks, a dropped client.

Tolerance 1e-10 of the size of the target; products that go through a singular value decomposition 1e-9.
"""

import json
import math
import re
import shutil
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

#: Rows of the table with other policies, so that each rule is seen where no preset has it alone.
VARIANTS = {
    "deltas, momentum": (
        "zeropad",
        {"aggregate": "deltas", "server_optimizer": "momentum", "server_learning_rate": 0.5},
    ),
    "fslora, adam": ("fslora", {"server_optimizer": "adam", "server_learning_rate": 0.01, "server_beta1": 0.5}),
    "alternate, momentum": ("rolora", {"aggregate": "deltas", "server_optimizer": "momentum"}),
    "contributors, uncovered kept": ("rbla", {"keep_uncovered": "last", "client_weight": "uniform"}),
    "contributors of deltas": ("fed-plora", {"aggregate": "deltas", "keep_uncovered": "no"}),
    "pruned deltas": ("hetlora", {"aggregate": "deltas", "prune_gamma": 0.7, "prune_lambda": 3}),
    "pruned products": (
        "flexlora",
        {
            "local_extra": "tail_prune",
            "prune_gamma": 0.7,
            "prune_lambda": 10,
            "experiment.rounds": 12,
            "local.lr_schedule": "cosine",
        },
    ),
    "replicated, uniform, annealed": ("replicate", {"client_weight": "uniform", "rank_schedule": "annealing"}),
    "B only, contributors": ("ffa", {"slot_norm": "contributors", "keep_uncovered": "last"}),
    "private B, deltas, momentum": ("fedsa", {"aggregate": "deltas", "server_optimizer": "momentum"}),
    "important slots": ("fslora", {"slot_select": "importance"}),
    "scored, annealed": ("lora-a2", {"rank_schedule": "annealing"}),
    "residual of sparsity weights": ("fedex", {"client_weight": "sparsity"}),
}
CASES = {name: (name, {}) for name in methods.ADAPTED} | VARIANTS
KEYS_THAT_ARE_NO_POLICY = ("server_", "prune_", "local.", "experiment.")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    good = micro.build(folder)
    return folder, methods.spoil(folder, *good), good


def traced(folder: Path, preset: str, world: tuple, changes: dict, **more: object):
    """(policies, rounds, {matrix: change of the base}, LoRA scale, folder) of a run in fp64."""
    row = methods.TABLE[preset]
    fixed = {"model.precision": "fp64", "output.trace": True, "experiment.rounds": 3,
             "local.weight_decay": 0.1}  # fmt: skip
    words = methods.settings(
        row, world, **fixed | {k if "." in k else f"strategy.{k}": v for k, v in changes.items()} | more
    )
    methods.run(folder, words)
    chosen = {
        k: str(v) for k, v in changes.items() if k == "server_optimizer" or not k.startswith(KEYS_THAT_ARE_NO_POLICY)
    }
    policies = row["policies"] | chosen
    rounds, names = server_rules.read_rounds(folder / "trace.h5", policies)
    state = methods.state_values(folder)
    change = {}
    if policies["base_update"] != "none":
        from safetensors.numpy import load_file

        base = load_file(world[0] / "model.safetensors")
        for name in names:
            before = base[f"{name}.weight"].astype(np.float64)
            change[name] = state[f"base/{name}"].reshape(before.shape) - before
    scale = json.loads((folder / "config.json").read_text())["lora"]["scale"]
    return policies, rounds, change, names, float(scale), folder


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def check_factors(rounds, policies: dict, changes: dict) -> None:
    options = {key.removeprefix("server_"): value for key, value in changes.items() if key.startswith("server_")}
    options.pop("optimizer", None)
    if "learning_rate" in options:
        options["lr"] = options.pop("learning_rate")
    server = server_rules.Server(policies, **options)
    for round_ in rounds:
        for found, expected in zip(round_.after, server.merged(round_), strict=True):
            close(found[0], expected[0])
            close(found[1], expected[1])


def check_products(rounds, policies: dict) -> None:
    levels = sorted(set(methods.RANK_LIST))
    for round_ in rounds:
        for matrix, (a, bt) in enumerate(round_.after):
            p = server_rules.product_mean(round_, policies, matrix, levels)
            close(bt.T @ a, server_rules.best_approximation(p, methods.RANK_MAX), 1e-9)
            s = np.linalg.svd(p, compute_uv=False)
            error = np.linalg.norm(p - bt.T @ a)
            assert error == pytest.approx(np.linalg.norm(s[methods.RANK_MAX :]), abs=1e-9)  # Eckart-Young


def check_base(rounds, policies: dict, change: dict, names: list[str], scale: float) -> None:
    """What went into the base over all rounds."""
    for matrix, name in enumerate(names):
        expected = 0.0
        for round_ in rounds:
            p = server_rules.product_mean(round_, policies | {"slot_norm": "all"}, matrix, [])
            if policies["base_update"] == "truncated":
                p = server_rules.cut_to_energy(p, 0.95)
            if policies["base_update"] == "residual":
                a, bt = round_.after[matrix]
                p = p - bt.T @ a
            expected = expected + scale * p
        close(change[name], expected, 1e-9 if policies["base_update"] == "truncated" else 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_server_equals_numpy(world, tmp_path, case):
    preset, changes = CASES[case]
    policies, rounds, change, names, scale, folder = traced(tmp_path / "run", preset, world[1], changes)
    assert len(rounds) >= 3 and all(len(round_.uploads) >= 2 for round_ in rounds)
    for round_ in rounds:
        server_rules.check_weights(round_, policies)
    if policies["merge"] == "factors":
        check_factors(rounds, policies, changes)
    elif policies["merge"] == "product":
        check_products(rounds, policies)
    else:
        assert policies["merge"] == "stack"
        for round_ in rounds:  # the adapter itself never changes
            assert all((new == old).all() for a, b in zip(round_.after, round_.previous, strict=True)
                       for new, old in zip(a, b, strict=True))  # fmt: skip
    if policies["base_update"] != "none":
        check_base(rounds, policies, change, names, scale)
    if "prune_gamma" in changes:
        events = methods.log(folder).participation
        assert (events["lora_rank_after"] < events["lora_rank_before"]).any(), "nothing was pruned"
    check_received(
        rounds, policies, [8] * 12 if methods.TABLE[preset]["requires_equal_lora_ranks"] else methods.client_ranks()
    )


def check_received(rounds, policies: dict, ranks: list[int]) -> None:
    """Clients start from the global adapter's slots; ranks are those of the list under the cap."""
    for round_ in rounds:
        for upload in round_.uploads:
            if policies["local_extra"] != "tail_prune" and policies["receive"] == "selected":
                assert upload.lora_rank == min(ranks[upload.client], cap(policies, round_.number, len(rounds)))
            if policies["merge"] == "stack":
                assert all((bt == 0).all() for _, bt in upload.received)
                continue
            if policies["slot_select"] == "scored":
                check_scored(
                    upload,
                    policies,
                    round_.number,
                    min(ranks[upload.client], cap(policies, round_.number, len(rounds))),
                )
                continue
            check_frozen(upload, policies, round_.number)
            for (a, bt), (old_a, old_bt) in zip(upload.received, round_.previous, strict=True):
                assert (a == old_a[upload.slots[: len(a)]]).all()
                if policies["shared_factors"] == "both":
                    assert (bt == old_bt[upload.slots[: len(bt)]]).all()


def check_frozen(upload, policies: dict, round_number: int) -> None:
    """The factor that does not train is sent as it was received, whatever the weight decay."""
    trains = {"both": (True, True), "b": (False, True), "alternate": (round_number % 2 == 0, round_number % 2 == 1)}
    for sent, received in zip(upload.sent, upload.received, strict=True):
        for factor, moves in enumerate(trains[policies["trainable"]]):
            if not moves:
                assert (sent[factor] == received[factor][: len(sent[factor])]).all()


def check_scored(upload, policies: dict, round_number: int, lora_rank: int) -> None:
    """At most lora_rank x matrices (matrix, slot) pairs of the live factor have changed, and nothing else."""
    check_frozen(upload, policies, round_number)
    changed = sum(
        int((sent != received).any(axis=1).sum())
        for pair, other in zip(upload.sent, upload.received, strict=True)
        for sent, received in zip(pair, other, strict=True)
    )
    assert 0 < changed <= lora_rank * len(upload.sent)


def cap(policies: dict, round_number: int, rounds: int, start: float = 0.2) -> int:
    if policies["rank_schedule"] == "none":
        return methods.RANK_MAX
    first = math.floor(start * rounds + 1e-9)
    u = max(0.0, (round_number - first) / (rounds - first))
    exact = methods.RANK_MAX * (methods.RANK_MIN / methods.RANK_MAX) ** u
    return max(methods.RANK_MIN, math.floor(exact + 0.5))


@pytest.mark.parametrize("name", methods.ADAPTED)
def test_one_client_is_local_training_alone(world, tmp_path, name):
    """The model after the rounds is the base with that client's own product, whatever the rule."""
    changes = {"keep_energy": 1} if methods.TABLE[name]["policies"]["base_update"] == "truncated" else {}
    policies, rounds, change, names, scale, folder = traced(
        tmp_path / "run",
        name,
        world[2],
        changes,
        **{"experiment.clients_per_round": 1, "experiment.rounds": 2},
    )
    logged = methods.log(folder)
    assert (logged.participation["weight"] == 1).all()
    assert np.isfinite(logged.rounds["eval_loss"]).all()
    if not changes:  # a truncation that keeps all has another size
        methods.check_true_bytes(methods.TABLE[name], logged, value_bytes=8)
    for matrix, name_ in enumerate(names):
        clients = [round_.uploads[0] for round_ in rounds]
        products = [u.sent[matrix][1].T @ u.sent[matrix][0] for u in clients]
        a, bt = rounds[-1].after[matrix]
        if policies["shared_factors"] == "a":
            close(a[: clients[-1].lora_rank], clients[-1].sent[matrix][0])
            continue
        if policies["merge"] == "stack":
            close(change[name_], scale * sum(products), 1e-9)
        else:
            assert not change or np.abs(change[name_]).max() < 1e-12
            slots = clients[-1].slots
            own = bt[slots].T @ a[slots] if policies["merge"] == "factors" else bt.T @ a
            close(own, products[-1], 1e-9)


@pytest.mark.parametrize(
    "name", [n for n, row in methods.TABLE.items() if row["policies"]["base_update"] in ("merge", "residual")]
)
def test_loss_is_that_of_a_base_with_the_mean_of_the_products(world, tmp_path, name):
    import torch
    from safetensors.torch import load_file, save_file

    _, rounds, _, names, scale, folder = traced(tmp_path / "run", name, world[2], {}, **{"experiment.rounds": 1})
    model = shutil.copytree(world[2][0], tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    for matrix, target in enumerate(names):
        mean = scale * server_rules.product_mean(rounds[0], {"slot_norm": "all"}, matrix, [])
        weight = tensors[f"{target}.weight"]
        tensors[f"{target}.weight"] = (weight.double() + torch.from_numpy(mean)).float()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    words = methods.settings(methods.TABLE[name], (model, world[2][1]), **{"model.precision": "fp64"})
    done = program.start("evaluate", *words)
    assert done.returncode == 0, done.stderr
    expected = methods.log(folder).rounds["eval_loss"]
    assert float(re.search(r"loss ([\d.]+\d)", done.stdout)[1]) == pytest.approx(expected[1], abs=2e-6)
    assert abs(expected[1] - expected[0]) > 1e-3
