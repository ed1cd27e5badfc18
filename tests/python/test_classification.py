"""Runs of `model.task = classification`: a head beside the adapters, trained by the clients and averaged by samples.

The oracle is the ForSequenceClassification class of each family in transformers with peft, trained here with its own
federated loop.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import labelled
import micro
import numpy as np
import program
import pytest
import torch
from classifying import FAMILIES, MIXED, SETTINGS, adapter, build_world, logged, logits_of, peft_model, run, words
from hetlora.__main__ import main as analysis

pytestmark = pytest.mark.filterwarnings("ignore")

HEAD_VALUES = {  # 3 labels over 32 values: weights, biases, and the dense part
    "llama": 96, "gpt2": 96, "bert": 96 + 3, "distilbert": 99 + 32 * 33, "roberta": 99 + 32 * 33,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Of a decoder."""
    return build_world(tmp_path_factory.mktemp("labelled"), "llama")


def mean_loss(model, examples) -> torch.Tensor:
    """Mean cross-entropy, one text at a time: nothing is padded."""
    losses = []
    for ids, label in examples:
        logits = logits_of(model, ids)
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])))
    return torch.stack(losses).mean()


def trained_by_peft(model: Path, data: Path, start: Path, rounds: int) -> torch.nn.Module:
    """FedAvg by samples over all clients, in peft."""
    server = peft_model(model, start)
    server.eval()
    trainable = [name for name, p in server.named_parameters() if p.requires_grad]
    assert any("modules_to_save" in name for name in trainable)
    for _ in range(rounds):
        before = copy.deepcopy(server.state_dict())
        total = {name: torch.zeros_like(before[name]) for name in trainable}
        for client, n in enumerate(labelled.TRAIN_COUNTS):
            server.load_state_dict(before)
            examples = labelled.texts(data, 0, client)
            assert len(examples) == n
            parameters = dict(server.named_parameters())
            for _step in range(SETTINGS["local.steps"]):
                server.zero_grad()
                mean_loss(server, examples).backward()
                with torch.no_grad():
                    for name in trainable:
                        head = "modules_to_save" in name
                        rate = SETTINGS["local.head_learning_rate" if head else "local.learning_rate"]
                        parameters[name] -= rate * parameters[name].grad
            for name in trainable:
                total[name] += n * parameters[name].detach()
        for name in trainable:
            before[name] = total[name] / sum(labelled.TRAIN_COUNTS)
        server.load_state_dict(before)
    return server


@dataclass
class ThreeRounds:
    """A run, and what peft makes of the same start."""

    family: str
    data: Path
    folder: Path
    oracle: torch.nn.Module


@pytest.fixture(scope="module", params=FAMILIES)
def three_rounds(request, tmp_path_factory) -> ThreeRounds:
    folder = tmp_path_factory.mktemp("classification")
    own = build_world(folder, request.param)
    targets = FAMILIES[request.param][0]
    start = run(own, folder / "start", 0, lora__targets=targets)
    oracle = trained_by_peft(*own, start / "adapter", 3)
    return ThreeRounds(request.param, own[1], run(own, folder / "run", 3, lora__targets=targets), oracle)


def saved_name(name: str) -> str:
    """base_model.model.score.weight -> base_model.model.score.modules_to_save.default.weight"""
    words_ = name.split(".")
    return ".".join([*words_[:3], "modules_to_save", "default", *words_[3:]])


def test_three_rounds_equal_peft(three_rounds):
    ours, oracle = adapter(three_rounds.folder), three_rounds.oracle
    theirs = {name: p.detach().numpy() for name, p in oracle.named_parameters() if p.requires_grad}
    assert len(ours) == len(theirs)
    for name, values in ours.items():
        key = name.replace(".weight", ".default.weight") if "lora_" in name else saved_name(name)
        np.testing.assert_allclose(values, theirs[key], rtol=0, atol=1e-10, err_msg=name)


def test_evaluation_equals_peft(three_rounds):
    folder, oracle = three_rounds.folder, three_rounds.oracle
    for part, prefix in ((1, "eval_"), (2, "eval_test_")):
        examples = labelled.texts(three_rounds.data, part, held_out=True)
        with torch.no_grad():
            predicted = [int(logits_of(oracle, ids).argmax()) for ids, _ in examples]
            loss = float(mean_loss(oracle, examples))
        truth = [label for _, label in examples]
        scores = []
        for k in sorted({*truth, *predicted}):
            hits = sum(p == t == k for p, t in zip(predicted, truth, strict=True))
            scores.append(2 * hits / (predicted.count(k) + truth.count(k)))
        assert logged(folder, f"rounds/{prefix}loss")[-1] == pytest.approx(loss, abs=1e-9)
        assert logged(folder, f"rounds/{prefix}macro_f1")[-1] == pytest.approx(np.mean(scores), abs=1e-12)
        right = np.mean([p == t for p, t in zip(predicted, truth, strict=True)])
        assert logged(folder, f"rounds/{prefix}accuracy")[-1] == pytest.approx(right)


def test_bytes_count_the_head(three_rounds):
    values = 2 * 4 * FAMILIES[three_rounds.family][1] + HEAD_VALUES[three_rounds.family]  # two layers, lora_rank 4
    for name in ("rounds/bytes_up_true", "rounds/bytes_down_true"):
        assert list(logged(three_rounds.folder, name)[1:]) == [4 * 8 * values] * 3


# One of every kind: weights, products, stacks into the base, own factors, alternating factors, scores, pulls.
PRESETS = ("hetlora", "zeropad", "flexlora", "flora", "fedsa", "rolora", "lora-a2", "fedprox")
SAME_RANKS = ("fedsa", "rolora")


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_same_bits_on_more_mpi_ranks_batched_or_alone_and_after_a_resume(family, tmp_path):
    world = build_world(tmp_path, family)
    mixed = MIXED | {"lora__targets": FAMILIES[family][0]}
    one = run(world, tmp_path / "one", 4, **mixed)
    others = [run(world, tmp_path / f"ranks{n}", 4, mpi_ranks=n, **mixed) for n in (2, 3)]
    others.append(run(world, tmp_path / "alone", 4, **(mixed | {"compute__pack_tokens": 64})))
    short = run(world, tmp_path / "resumed", 2, **mixed)
    program.finished(*words(world, short, 4, **mixed), "--resume")
    for other in (*others, short):
        theirs = adapter(other)
        for name, values in adapter(one).items():
            np.testing.assert_array_equal(values, theirs[name], err_msg=f"{other.name} {name}")
    names = ("rounds/eval_loss", "rounds/eval_macro_f1", "participation/loss_last", "clients/eval_loss_final")
    for other in (*others[:2], short):
        for name in names:
            np.testing.assert_array_equal(logged(one, name), logged(other, name), err_msg=f"{other.name} {name}")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_head_learns_with_every_kind_of_method(world, tmp_path, preset):
    changes = MIXED | {"strategy__preset": preset, "lora__rank_list": "8,8,8" if preset in SAME_RANKS else "2,8,3"}
    if preset == "fedsa":  # everybody keeps a factor: there is no one model to judge labels with
        changes["evaluation__metrics"] = "accuracy"
    folder = run(world, tmp_path / preset, 3, **changes)
    loss = logged(folder, "rounds/eval_loss")
    assert loss[-1] < loss[0]


def test_wrong_uses_are_refused(world, tmp_path):
    model, data = world
    causal = micro.build_corpus(tmp_path / "causal.h5", tokenizer_file=model / "tokenizer.json")
    encoder, _ = build_world(tmp_path / "encoder", "bert")
    next_tokens = {"model__task": "causal", "evaluation__metrics": "perplexity", "local__head_learning_rate": 0}
    cases = [
        ((encoder, causal), next_tokens | {"lora__targets": "query"}, "encoder"),
        ((model, causal), {}, "was not prepared for model.task = classification"),
        (
            world,
            next_tokens,
            "was prepared with --task classification",
        ),
        (world, {"data__sequence_length": 5}, "more than data.sequence_length = 5"),
        (world, {"evaluation__metrics": "rouge1"}, "has rouge1, which needs next tokens"),
        (world, {"evaluation__samples": 2}, "needs next tokens"),
    ]
    for files, changes, text in cases:
        folder = tmp_path / "refused"
        done = program.start(*words(files, folder, 1, **changes))
        assert done.returncode in (2, 3), done.stderr
        assert text in done.stderr
        assert not folder.exists()


def test_unlabelled_sequence_is_named(world, tmp_path):
    model, data = world
    broken = tmp_path / "broken.h5"
    shutil.copy(data, broken)
    with h5py.File(broken, "r+") as file:
        file["sequences/label"][1] = -1
    done = program.start(*words((model, broken), tmp_path / "run", 1))
    assert done.returncode != 0
    assert "sequence 1 has no label" in done.stderr


def test_table_and_report_speak_of_accuracy(three_rounds, tmp_path, capsys):
    if three_rounds.family != "llama":
        pytest.skip("once is enough")
    assert analysis(["table", str(three_rounds.folder)]) == 0
    heading, _, line = capsys.readouterr().out.splitlines()
    assert "acc after" in heading and "ppl" not in heading
    assert f"{logged(three_rounds.folder, 'rounds/eval_accuracy')[-1]:.4f}" in line
    assert analysis(["report", str(three_rounds.folder), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Accuracy on held-out clients" in page and "Perplexity" not in page
