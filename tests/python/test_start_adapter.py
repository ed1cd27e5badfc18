"""`model.adapter`: a run that starts from a PEFT adapter; export -> adapter, and through peft, the same to the bit."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import micro
import numpy as np
import pytest
import torch
from hetlora.audit import main as audit
from hetlora.run_record import read_run
from program import needs_program, start, write_ini
from safetensors.numpy import load_file

pytestmark = needs_program
PLAIN = {"strategy": {"preset": "zeropad", "prune_gamma": None, "prune_lambda": None}}


def finished(*words):
    done = start(*words)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The micro world, one run of two rounds, and its exported adapter (lora_rank 8, scale 2)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("start")
    world = micro.build(folder)
    ini = write_ini(folder / "run.ini", world, PLAIN | {"experiment": {"rounds": 2}})
    finished("run", "--config", ini, "--output", folder / "run")
    finished("export", folder / "run", "--to", folder / "adapter")
    return SimpleNamespace(folder=folder, world=world, ini=ini, run=folder / "run", adapter=folder / "adapter")


def exported(home, tmp_path, name, *overrides):
    """Tensors of the adapter of a run of no rounds that starts from another one."""
    finished("run", "--config", home.ini, "--output", tmp_path / name, "experiment.rounds=0", *overrides)
    finished("export", tmp_path / name, "--to", tmp_path / f"{name}-adapter")
    return load_file(tmp_path / f"{name}-adapter" / "adapter_model.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def test_export_and_back_is_the_same_to_the_last_bit(home, tmp_path):
    same(exported(home, tmp_path, "again", f"model.adapter={home.adapter}"),
         load_file(home.adapter / "adapter_model.safetensors"))  # fmt: skip
    losses = read_run(home.run).rounds["eval_loss"]
    assert read_run(tmp_path / "again").rounds["eval_loss"][0] == losses[-1]
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("scale", [["lora.scale=0.3"], ["lora.scale_rule=rslora", "lora.lora_alpha=3"]])
def test_scales_that_are_no_round_numbers(home, tmp_path, scale):
    first = exported(home, tmp_path, "first", f"model.adapter={home.adapter}", *scale)
    adapter = f"model.adapter={tmp_path / 'first-adapter'}"
    same(exported(home, tmp_path, "second", adapter, *scale), first)
    loss = read_run(tmp_path / "second").rounds["eval_loss"][0]
    assert loss == pytest.approx(read_run(home.run).rounds["eval_loss"][-1], abs=1e-5)  # the scale is brought to ours


def test_through_peft_and_back(home, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(home.world[0], dtype=torch.float32)
    PeftModel.from_pretrained(base, home.adapter).save_pretrained(tmp_path / "peft")
    same(exported(home, tmp_path, "again", f"model.adapter={tmp_path / 'peft'}"),
         load_file(home.adapter / "adapter_model.safetensors"))  # fmt: skip


def test_a_smaller_lora_rank_fills_the_first_slots_and_the_audit_agrees(home, tmp_path):
    out = finished("run", "--config", home.ini, "--output", tmp_path / "run", f"model.adapter={home.adapter}",
                   "lora.rank_max=16", "experiment.rounds=1", "output.trace=true")  # fmt: skip
    assert f"from the adapter in {home.adapter}" in out.stdout + out.stderr
    assert audit([str(tmp_path / "run")]) == 0
    start_loss = read_run(tmp_path / "run").rounds["eval_loss"][0]
    assert start_loss == pytest.approx(read_run(home.run).rounds["eval_loss"][-1], abs=1e-6)
    tensors = exported(home, tmp_path, "wide", f"model.adapter={home.adapter}", "lora.rank_max=16")
    given = load_file(home.adapter / "adapter_model.safetensors")
    for name, values in tensors.items():
        a = values if "lora_A" in name else values.T
        known = given[name] if "lora_A" in name else given[name].T
        np.testing.assert_array_equal(a[:8], known)
        assert (a[8:] != 0).all() if "lora_A" in name else not a[8:].any()  # fresh slots can learn


def test_the_adapter_is_part_of_the_identity(home, tmp_path):
    def identity(name, *words):
        finished("run", "--config", home.ini, "--output", tmp_path / name, "experiment.rounds=0", *words)
        return json.loads((tmp_path / name / "status.json").read_text())["run_id"]

    shutil.copytree(home.adapter, tmp_path / "moved")
    one = identity("one", f"model.adapter={home.adapter}")
    assert one == identity("two", f"model.adapter={tmp_path / 'moved'}") != identity("none")


@pytest.mark.parametrize("change, overrides, code, words", [
    ({"use_dora": True}, [], 3, ["use_dora", "plain LoRA"]),
    ({"rank_pattern": {"q_proj": 4}}, [], 3, ["rank_pattern"]),
    ({"peft_type": "IA3"}, [], 3, ["peft_type", "IA3"]),
    ({"r": 0}, [], 3, ["`r` = 0"]),
    ({}, ["lora.rank_max=4"], 3, ["lora_rank 8", "lora.rank_max = 4"]),
    ({}, ["lora.targets=q_proj"], 3, ["lora.targets"]),
    ({}, ["lora.targets=all-linear"], 3, ["k_proj", "missing"]),
    ({}, ["strategy.preset=flora"], 2, ["model.adapter", "flora", "afresh"]),
    (None, [], 3, ["adapter_config.json"]),
])  # fmt: skip
def test_what_cannot_be_a_start_is_refused_before_a_run(home, tmp_path, change, overrides, code, words):
    adapter = tmp_path / "adapter"
    if change is not None:
        shutil.copytree(home.adapter, adapter)
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    done = start("check", "--config", home.ini, f"model.adapter={adapter}", *overrides)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
