"""The audit of classification runs: heads beside adapters, with every family's stock class, and what it must notice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import program
import pytest
import torch
from classifying import FAMILIES, MIXED, build_world, run, words
from hetlora.audit import main

pytestmark = [program.needs_program, pytest.mark.filterwarnings("ignore")]

EXACT = {"model__precision": "fp64", "local__optimizer": "sgd", "local__learning_rate": 0.05}
EXACT |= {"local__head_learning_rate": 0.2, "evaluation__clients": "none", "output__trace": "true"}
FINE = ("--chain", "--evaluate", "--tolerance", "1e-9")
HEADS = ("sent head, relative", "head from traced heads, relative", "own chain: head, relative")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Model folder and corpus of a family, made once."""
    torch.set_num_threads(1)
    made = {}

    def get(family: str):
        if family not in made:
            made[family] = build_world(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


def traced(worlds, folder: Path, family: str, mpi_ranks: int = 0, rounds: int = 2, **changes: object) -> Path:
    settings = MIXED | EXACT | {"lora__targets": FAMILIES[family][0]} | changes
    return run(worlds(family), folder / "run", rounds, mpi_ranks, **settings)


def audit(folder: Path, capsys, *options: str) -> tuple[int, dict, str]:
    """(exit code, checks by name, what was printed)."""
    file = folder.parent / "audit.json"
    code = main([str(folder), "--threads", "1", "--json", str(file), *options])
    checks = {check["name"]: check for check in json.loads(file.read_text())["checks"]}
    return code, checks, capsys.readouterr().out


def assert_passed(folder: Path, capsys, *options: str) -> None:
    code, checks, table = audit(folder, capsys, *options)
    assert code == 0, table
    assert all(checks[name]["seen"] > 0 for name in (*HEADS, "initial head as specified")), table


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_its_stock_class(worlds, tmp_path, capsys, family):
    assert_passed(traced(worlds, tmp_path, family), capsys, *FINE)


@pytest.mark.parametrize("preset", ["flexlora", "flora", "fedex", "rolora", "lora-a2", "fedsa", "fedprox"])
def test_every_kind_of_method_agrees(worlds, tmp_path, capsys, preset):
    equal = {"lora__rank_list": "8,8,8"} if preset in ("fedex", "rolora", "fedsa") else {}
    more = {"evaluation__metrics": "accuracy"} if preset == "fedsa" else {}
    folder = traced(worlds, tmp_path, "llama", mpi_ranks=2, strategy__preset=preset, **equal, **more)
    assert_passed(folder, capsys, *FINE)


def test_single_precision_with_adamw(worlds, tmp_path, capsys):
    folder = traced(worlds, tmp_path, "roberta", model__precision="fp32", strategy__preset="zeropad")
    assert_passed(folder, capsys, "--evaluate")
    adamw = {"local__optimizer": "adamw", "local__weight_decay": 0.1, "local__learning_rate": 3e-3}
    adamw |= {"local__head_learning_rate": 0, "local__lr_schedule": "cosine", "local__clip_norm": 0.02}
    (tmp_path / "adamw").mkdir()
    assert_passed(traced(worlds, tmp_path / "adamw", "gpt2", **adamw), capsys, *FINE)


def test_a_dealt_out_corpus_and_a_resumed_trace(worlds, tmp_path, capsys):
    dealt = {"data__partition": "iid", "data__partition_clients": 3, "strategy__preset": "hetlora"}
    whole = traced(worlds, tmp_path, "llama", rounds=3, **dealt)
    assert_passed(whole, capsys, *FINE)
    (tmp_path / "again").mkdir()
    folder = traced(worlds, tmp_path / "again", "llama", rounds=2, **dealt)
    settings = MIXED | EXACT | {"lora__targets": FAMILIES["llama"][0]} | dealt
    program.finished(*words(worlds("llama"), folder, 3, **settings), "--resume")
    assert_passed(folder, capsys, *FINE)
    with h5py.File(whole / "trace.h5") as one, h5py.File(folder / "trace.h5") as other:
        for name in one["heads"]:
            np.testing.assert_array_equal(one[f"heads/{name}"], other[f"heads/{name}"], err_msg=name)


@pytest.mark.parametrize(
    ("name", "change", "check"),
    [
        ("heads/sent", lambda x: x + 1e-5, "sent head, relative"),
        ("heads/n_samples", lambda x: x[::-1], "texts of the heads' average equal"),
        ("heads/global", lambda x: np.append(x[:-1], 1.001 * x[-1]), "head from traced heads, relative"),
    ],
)  # fmt: skip
def test_a_changed_trace_is_noticed(worlds, tmp_path, capsys, name, change, check):
    folder = traced(worlds, tmp_path, "llama")
    shutil.copytree(folder, tmp_path / "changed")
    with h5py.File(tmp_path / "changed" / "trace.h5", "r+") as file:
        file[name][...] = change(file[name][()])
    code, checks, table = audit(tmp_path / "changed", capsys, "--tolerance", "1e-9")
    assert code == 1 and not checks[check]["passed"], table
