"""`hetlora export`: the adapter, and the whole merged model, as other programs read them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import micro
import numpy as np
import pytest
import torch
from hetlora.run_record import read_run
from program import finished, needs_program, start, write_ini

pytestmark = needs_program

METHODS = ("zeropad", "flora", "fedex")
TOKENS = torch.tensor([[0, *range(5, 45)]])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The micro world and one run per method, with the settings of program.CONFIG but for the pruning."""
    folder = tmp_path_factory.mktemp("export")
    world = micro.build(folder)
    ini = write_ini(folder / "run.ini", world, {"strategy": {"prune_gamma": None, "prune_lambda": None}})
    runs = {}
    for method in METHODS:
        equal = ["lora.rank_distribution=fixed"] if method == "fedex" else []
        runs[method] = folder / method
        finished("run", "--config", ini, "--output", runs[method], f"strategy.preset={method}", *equal)
    return SimpleNamespace(folder=folder, model=world[0], ini=ini, runs=runs)


def logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_model_has_the_loss_that_the_run_logged(home, tmp_path, method):
    text = finished("export", home.runs[method], "--merged", "--to", tmp_path / "merged").stdout
    assert "after round 3" in text
    out = finished("evaluate", "--config", home.ini, f"model.path={tmp_path / 'merged'}")
    loss = float(re.search(r"loss (\S+)", out.stdout + out.stderr).group(1))
    logged = read_run(home.runs[method]).rounds["eval_loss"]
    assert loss == pytest.approx(logged[-1], abs=2e-5)
    assert abs(loss - logged[0]) > 1e-3  # it is not the base


def test_transformers_and_peft_agree_on_adapter_and_merged_model(home, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    finished("export", home.runs["zeropad"], "--merged", "--to", tmp_path / "merged")
    finished("export", home.runs["zeropad"], "--to", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(home.model, dtype=torch.float32)
    with torch.no_grad():
        with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")(TOKENS).logits
    merged = logits(tmp_path / "merged")
    np.testing.assert_allclose(merged, with_adapter, atol=2e-5)
    assert (merged - logits(home.model)).abs().max() > 1e-2
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (home.model / "tokenizer.json").read_bytes()


def test_an_earlier_round(home, tmp_path):
    finished("run", "--config", home.ini, "--output", tmp_path / "run", "strategy.preset=zeropad", "checkpoint.keep=9",
             "experiment.rounds=2")  # fmt: skip
    kept = sorted(int(one.name[6:]) for one in (tmp_path / "run" / "checkpoint").iterdir())
    finished("export", tmp_path / "run", "--round", kept[0], "--to", tmp_path / "adapter")
    wrong = start("export", tmp_path / "run", "--round", 77, "--to", tmp_path / "other")
    assert wrong.returncode == 2 and f"rounds {', '.join(map(str, kept))} only" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_exported_is_refused(home, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    cases = {
        ("export", home.runs["flora"], "--to", tmp_path / "a"): (2, "take --merged"),
        ("export", home.runs["zeropad"]): (2, "--to DIR"),
        ("export", home.runs["zeropad"], "--to", tmp_path / "full"): (2, "something is there already"),
        ("export", tmp_path, "--to", tmp_path / "b"): (3, "no config.ini"),
    }
    for words, (code, text) in cases.items():
        done = start(*words)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert (tmp_path / "full" / "file").read_text() == "mine"
