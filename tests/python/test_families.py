"""Every family of the program's table through the whole program: check, a traced run, its audit, merged export.

The numbers against `transformers` and `peft` are in tests/model/families_test.cpp.
"""

from __future__ import annotations

import json
import re

import families
import micro
import numpy as np
import pytest
import torch
from hetlora.audit import main as audit
from hetlora.run_record import read_run
from program import needs_program, start, write_ini

ROPE = list(families.ROPE)
TOKENS = torch.tensor([[0, *range(5, 25)]])


def finished(*words):
    done = start(*words)
    assert done.returncode == 0, done.stderr
    return done


def logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).double()(TOKENS).logits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("families")
    micro.write_tokenizer(folder)
    return micro.build_corpus(folder / "micro.h5", 0, folder / "tokenizer.json")


@needs_program
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_run_is_audited_and_exported(family, data, tmp_path):
    """Each family with another rotary rule; the config of the base as transformers 4 wrote it."""
    rope = ROPE[families.FAMILIES.index(family) % len(ROPE)] if family not in families.OWN_KEYS else "default"
    model = families.build_family(tmp_path / "model", family, rope)
    five = finished("info", model).stdout
    positions = "learned positions" if family in families.OWN_KEYS else f"rotary rule {rope}"
    assert family in five and positions in five
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(families.as_transformers_4(config)))
    assert finished("info", model).stdout == five

    ini = write_ini(tmp_path / "run.ini", (model, data),
                    {"model": {"precision": "fp64"}, "lora": {"targets": "all-linear"}, "output": {"trace": True},
                     "strategy": {"preset": "zeropad", "prune_gamma": None, "prune_lambda": None},
                     "experiment": {"rounds": 1, "clients_per_round": 3}})  # fmt: skip
    assert "nothing was trained" in finished("check", "--config", ini).stdout
    finished("run", "--config", ini, "--output", tmp_path / "run")
    assert audit([str(tmp_path / "run")]) == 0

    finished("export", tmp_path / "run", "--merged", "--to", tmp_path / "merged")
    out = finished("evaluate", "--config", ini, f"model.path={tmp_path / 'merged'}")
    loss = float(re.search(r"loss (\S+)", out.stdout + out.stderr).group(1))
    assert loss == pytest.approx(read_run(tmp_path / "run").rounds["eval_loss"][-1], abs=2e-6)
    finished("export", tmp_path / "run", "--to", tmp_path / "adapter")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exported = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert exported["fan_in_fan_out"] == (family == "gpt2")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).double()
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").double()(TOKENS).logits
    np.testing.assert_allclose(logits(tmp_path / "merged"), adapted, atol=1e-5)
    assert (adapted - logits(model)).abs().max() > 1e-3
    # The exported adapter starts another run, which says the same before its first round.
    finished("run", "--config", ini, "--output", tmp_path / "next", f"model.adapter={tmp_path / 'adapter'}")
    again = read_run(tmp_path / "next").rounds["eval_loss"][0]
    assert again == pytest.approx(read_run(tmp_path / "run").rounds["eval_loss"][-1], abs=1e-9)


@needs_program
def test_targets_of_another_family_are_refused_with_the_names_of_this_one(data, tmp_path):
    model = families.build_family(tmp_path / "model", "gpt2")
    ini = write_ini(tmp_path / "run.ini", (model, data))
    done = start("check", "--config", ini)  # the default, q_proj and v_proj
    assert done.returncode == 2
    assert "family gpt2 has no matrix `q_proj`" in done.stderr
    assert "c_attn, attn.c_proj, c_fc, mlp.c_proj" in done.stderr
    for targets in ("c_attn", "c_attn,mlp.c_proj", "attn.c_proj,c_fc", "all-linear"):
        finished("check", "--config", ini, f"lora.targets={targets}")


@needs_program
def test_a_checkpoint_of_the_bare_body_is_the_same_model(data, tmp_path):
    """The hub's GPT-2 has no prefix before its names, and the causal masks as tensors."""
    from safetensors.torch import load_file, save_file

    model = families.build_family(tmp_path / "model", "gpt2")
    ini = write_ini(tmp_path / "run.ini", (model, data), {"lora": {"targets": "c_attn"}})
    losses = [re.search(r"loss (\S+)", finished("evaluate", "--config", ini).stdout).group(1)]
    weights = model / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(weights).items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 256, 256)}, weights, {"format": "pt"})
    losses.append(re.search(r"loss (\S+)", finished("evaluate", "--config", ini).stdout).group(1))
    assert losses[0] == losses[1]


@needs_program
@pytest.mark.parametrize("change, word", [
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"activation_function": "tanh"}, "activation_function"),
    ({"n_head": 5}, "n_head"),
])  # fmt: skip
def test_what_gpt2_may_not_say(data, tmp_path, change, word):
    model = families.build_family(tmp_path / "model", "gpt2")
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    done = start("check", "--config", write_ini(tmp_path / "run.ini", (model, data)))
    assert done.returncode == 3 and word in done.stderr


@needs_program
def test_a_window_narrower_than_the_sequences_is_refused(data, tmp_path):
    model = families.build_family(tmp_path / "model", "mistral", "linear")  # a window of 64
    ini = write_ini(tmp_path / "run.ini", (model, data),
                    {"data": {"sequence_length": 65}, "compute": {"pack_tokens": 128}})  # fmt: skip
    done = start("check", "--config", ini)
    assert done.returncode == 2
    assert "sequence_length = 65 is longer than the 64 positions of the sliding window" in done.stderr
    finished("check", "--config", ini, "data.sequence_length=64")


@needs_program
@pytest.mark.parametrize("change, words", [
    ({"model_type": "gpt_bigcode"}, ["model_type `gpt_bigcode` is not supported", *families.FAMILIES]),
    ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification", "LlamaForCausalLM"]),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
     ["rotary rule `yarn`", "default, linear and llama3", *families.FAMILIES]),
    ({"num_experts": 8}, ["num_experts", "docs/models.md"]),
])  # fmt: skip
def test_what_is_not_implemented_is_refused_before_a_run(data, tmp_path, change, words):
    model = families.build_family(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    done = start("check", "--config", write_ini(tmp_path / "run.ini", (model, data)))
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr, done.stderr


def test_the_audit_knows_every_family():
    from hetlora.audit_model import FAMILIES

    assert list(FAMILIES) == families.FAMILIES
