"""What a classification run leaves: `evaluate` gives its rows again to the bit, `export` what transformers loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import families
import labelled
import numpy as np
import program
import pytest
import torch
from classifying import FAMILIES, MIXED, adapter, build_world, logged, logits_of, peft_model, run
from safetensors.torch import load_file, save_file

pytestmark = [program.needs_program, pytest.mark.filterwarnings("ignore")]

ROUNDS = 2


@dataclass
class Finished:
    """A run that has ended."""

    family: str
    model: Path
    data: Path
    folder: Path


def finished(folder: Path, family: str, rounds: int = ROUNDS, **changes: object) -> Finished:
    model, data = build_world(folder, family)
    settings = MIXED | {"lora__targets": FAMILIES[family][0], "evaluation__clients": "none"} | changes
    return Finished(family, model, data, run((model, data), folder / "run", rounds, **settings))


@pytest.fixture(scope="module", params=FAMILIES)
def ended(request, tmp_path_factory) -> Finished:
    return finished(tmp_path_factory.mktemp("ended"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Finished:
    return finished(tmp_path_factory.mktemp("llama"), "llama")


def evaluated(ended: Finished, out: Path, *words: object, mpi_ranks: int = 0) -> dict:
    """The figures of `evaluate --json`."""
    config = ["--config", ended.folder / "config.ini"]
    program.finished("evaluate", *config, "--json", out, *words, mpi_ranks=mpi_ranks)
    return json.loads(out.read_text())


def row(folder: Path, number: int, prefix: str = "eval_") -> dict[str, float]:
    """What the run logged of one part after a round."""
    return {name: logged(folder, f"rounds/{prefix}{name}")[number] for name in ("loss", "accuracy", "macro_f1")}


def without_count(part: dict) -> dict[str, float]:
    return {name: value for name, value in part.items() if name != "texts"}


# --- evaluate ---


def test_evaluate_gives_the_last_row_to_the_bit(ended, tmp_path):
    program.finished("export", ended.folder, "--to", tmp_path / "exported")
    newest = ended.folder / "checkpoint" / f"round_{ROUNDS:06d}"
    for where in (ended.folder, ended.folder / "adapter", tmp_path / "exported", newest):
        parts = evaluated(ended, tmp_path / "figures.json", "--adapter", where)
        assert list(parts) == ["valid", "test"]
        assert without_count(parts["valid"]) == row(ended.folder, -1), where
        assert without_count(parts["test"]) == row(ended.folder, -1, "eval_test_"), where
        assert (parts["valid"]["texts"], parts["test"]["texts"]) == (9, 4)
    assert row(ended.folder, -1) != row(ended.folder, 0)


def test_evaluate_of_an_earlier_round_and_of_the_base(llama, tmp_path):
    earlier = finished(tmp_path, "llama", rounds=1).folder / "checkpoint" / "round_000001"
    first = evaluated(llama, tmp_path / "a.json", "--adapter", earlier)
    assert without_count(first["valid"]) == row(llama.folder, 1)
    assert without_count(evaluated(llama, tmp_path / "b.json")["valid"]) == row(llama.folder, 0)


def test_evaluate_on_more_mpi_ranks_and_of_one_part(llama, tmp_path):
    words = ["--adapter", llama.folder]
    both = evaluated(llama, tmp_path / "two.json", *words, mpi_ranks=2)
    assert without_count(both["test"]) == row(llama.folder, -1, "eval_test_")
    only = ["evaluation.part=test", "evaluation.test=none", "evaluation.metrics=accuracy"]
    parts = evaluated(llama, tmp_path / "part.json", *words, *only)
    assert parts == {"test": both["test"]}  # macro F1 unasked


def test_evaluate_prints_labels_words(llama):
    done = program.finished("evaluate", "--config", llama.folder / "config.ini", "--adapter", llama.folder)
    last = row(llama.folder, -1)
    assert f"valid: loss {last['loss']:.6f}  accuracy {last['accuracy']:.4f}  over 9 texts" in done.stdout
    assert f"macro_f1        {last['macro_f1']:.6f}" in done.stdout
    assert "perplexity" not in done.stdout and "test: loss" in done.stdout


def changed_adapter(source: Path, to: Path, modules: object, shape: slice | None) -> Path:
    """A copy with other modules_to_save, and the head cut (None: without it)."""
    shutil.copytree(source, to)
    config = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": modules}))
    name = "base_model.model.score.weight"
    tensors = load_file(to / "adapter_model.safetensors")
    head = tensors.pop(name)
    if shape is not None:
        tensors[name] = head[shape].contiguous()
    save_file(tensors, to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize(
    ("modules", "shape", "text"),
    [
        (None, None, "has no classification head"),
        (["score", "lm_head"], slice(None), "belongs to another model"),
        (["score"], slice(0, 2), "data with other than 3 labels"),
        (["score"], None, "score.weight of the classification head is missing"),
    ],
)
def test_adapters_without_a_fitting_head_are_refused(llama, tmp_path, modules, shape, text):
    folder = changed_adapter(llama.folder / "adapter", tmp_path / "changed", modules, shape)
    done = program.start("evaluate", "--config", llama.folder / "config.ini", "--adapter", folder)
    assert (done.returncode, text in done.stderr) == (3, True), done.stderr


def test_runs_whose_result_is_no_adapter_are_refused(tmp_path):
    for preset, text in (("flora", "export it with --merged"), ("fedsa", "every client keeps its own B")):
        equal = {"lora__rank_list": "8,8,8", "evaluation__metrics": "accuracy"} if preset == "fedsa" else {}
        own = finished(tmp_path / preset, "llama", strategy__preset=preset, **equal)
        done = program.start("evaluate", "--config", own.folder / "config.ini", "--adapter", own.folder)
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr


# --- export ---


def test_export_carries_the_head(ended, tmp_path):
    program.finished("export", ended.folder, "--to", tmp_path / "out")
    exported = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, values in adapter(ended.folder).items():
        np.testing.assert_array_equal(values, exported[name])


def merged_model(folder: Path) -> torch.nn.Module:
    """As transformers loads it, every tensor used; in float64."""
    from transformers import AutoModelForSequenceClassification

    model, notes = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    return model.double().eval()


def test_merged_is_the_classifier_that_peft_makes(ended, tmp_path):
    done = program.finished("export", ended.folder, "--merged", "--to", tmp_path / "merged")
    assert f"after round {ROUNDS}" in done.stdout
    merged, peft = merged_model(tmp_path / "merged"), peft_model(ended.model, ended.folder / "adapter").eval()
    config = merged.config
    assert (config.num_labels, list(config.id2label.values())) == (3, list(labelled.LABELS))
    assert config.label2id == {name: k for k, name in enumerate(labelled.LABELS)}
    assert config.problem_type == "single_label_classification"
    assert config.architectures == [type(merged).__name__]
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    texts = [ids for ids, _ in labelled.texts(ended.data, 1, held_out=True)]
    with torch.no_grad():
        alone = torch.cat([logits_of(merged, ids) for ids in texts])
        theirs = torch.cat([logits_of(peft, ids) for ids in texts])
        assert (alone - theirs).abs().max() < 1e-5
        assert (alone - alone[0]).abs().max() > 1e-3  # RoBERTa here hardly tells texts apart
        longest = max(map(len, texts))
        padded = torch.tensor([ids + [config.pad_token_id] * (longest - len(ids)) for ids in texts])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
        together = merged(input_ids=padded, attention_mask=mask).logits
    assert (together - alone).abs().max() < 1e-5


def test_a_merged_encoder_is_a_base_again_and_a_decoder_says_that_it_is_none(ended, tmp_path):
    program.finished("export", ended.folder, "--merged", "--to", tmp_path / "merged")
    words = ["evaluate", "--config", ended.folder / "config.ini", f"model.path={tmp_path / 'merged'}"]
    done = program.start(*words)
    if ended.family in families.ENCODERS:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 3 and "ForSequenceClassification" in done.stderr and "is not supported" in done.stderr


def loss_of(model: torch.nn.Module, data: Path, part: int) -> float:
    losses = []
    with torch.no_grad():
        for ids, label in labelled.texts(data, part, held_out=True):
            losses.append(torch.nn.functional.cross_entropy(logits_of(model, ids), torch.tensor([label])))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_merged_of_a_method_that_changes_the_base(family, tmp_path):
    own = finished(tmp_path, family, strategy__preset="flora", model__precision="fp64")
    data = own.data.rename(tmp_path / "elsewhere.h5")  # the labels' names are gone, the model is not
    program.finished("export", own.folder, "--merged", "--to", tmp_path / "merged")
    merged = merged_model(tmp_path / "merged")
    assert list(merged.config.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    for part, name in ((1, "eval_loss"), (2, "eval_test_loss")):
        assert loss_of(merged, data, part) == pytest.approx(logged(own.folder, f"rounds/{name}")[-1], abs=1e-9)
