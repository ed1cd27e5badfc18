"""Metrics on tasks through the program: answers by likelihood and generated replies, against `transformers`."""

import json
import re
import subprocess

import h5py
import micro
import numpy as np
import pytest
from program import environment, finished, needs_mpirun, needs_program, start, write_ini
from test_text_scores import TOOL

pytestmark = needs_program
SENTENCES = (
    "tea is warm",
    "rain and moss",
    "a pear",
    "Tuesday hill",
    "so it goes",
    "no sun?",
    "yes yes",
    "the sun sets",
)
WORDS = {"calm": "quiet", "glad": "happy day", "sour": "bad"}
TEMPLATE = "Say: {{ prompt }}\nMood: {{ response }}"


def records(n=90):
    labels = list(WORDS)
    return [
        {"id": i, "text": f"{SENTENCES[i % 8]} {SENTENCES[(3 * i) % 8]} {i}", "mood": labels[(i * i) % 3],
         "topic": ["food", "time"][i % 2], "who": f"p{i % 12}", "options": [f"yes {i % 4}", "no", f"so so {i % 3}"],
         "right": i % 3}
        for i in range(n)
    ]  # fmt: skip


def prepare(folder, model, name, *flags):
    """A prepared file of the records, made by `hetlora prepare jsonl`."""
    source, template = folder / "records.jsonl", folder / "mood.txt"
    source.write_text("".join(json.dumps(record) + "\n" for record in records()))
    template.write_text(TEMPLATE.replace("\n", " "))
    out = folder / f"{name}.h5"
    finished("prepare", "jsonl", source, "--model", model, "--prompt-field", "text", "--template", template,
             "--group-field", "topic", *flags, "--output", out)  # fmt: skip
    return out


BY_LABEL = ("--label-field", "mood", "--label-words", ",".join(f"{k}={v}" for k, v in WORDS.items()), "--label-choices")
OWN = ("--choices-field", "options", "--answer-field", "right")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    model = micro.build_model(folder / "model")
    by_record = ("--valid-fraction", "0.3", "--test-fraction", "0.1")
    return {
        "folder": folder,
        "model": model,
        "label": prepare(folder, model, "label", *BY_LABEL, "--client-field", "who", *by_record),
        "own": prepare(folder, model, "own", *OWN, "--client-field", "who", *by_record),
    }


def config(world, data, name, metrics, **more):
    """An .ini for one round of a few clients."""
    changes = {
        "experiment": {"rounds": 1, "clients_per_round": 4},
        "data": {"sequence_length": 96, "overlap": 8},
        "evaluation": {"metrics": metrics} | more.pop("evaluation", {}),
        "compute": {"pack_tokens": 256},
        "output": {"dir": world["folder"] / name},
    } | more
    return write_ini(world["folder"] / f"{name}.ini", (world["model"], world[data]), changes)


def questions(path):
    """(prompt ids, [answer ids], right one, group) of the valid sequences of a prepared file, read with h5py alone."""
    with h5py.File(path) as file:
        take = {name: file[name][()] for name in (
            "tokens/ids", "sequences/offset", "sequences/part", "sequences/label", "sequences/prompt_length",
            "sequences/group", "choices/ids", "choices/offset",
        )}  # fmt: skip
        own = file["choices/sequence_offset"][()] if "choices/sequence_offset" in file else None
        right = file["choices/answer"][()] if own is not None else take["sequences/label"]
    answers = np.split(take["choices/ids"], take["choices/offset"][1:-1])
    for s in np.flatnonzero(take["sequences/part"] == 1):
        begin = take["sequences/offset"][s]
        prompt = take["tokens/ids"][begin : begin + take["sequences/prompt_length"][s]]
        mine = answers if own is None else answers[own[s] : own[s + 1]]
        yield prompt, mine, int(right[s]), int(take["sequences/group"][s])


def likelihoods(model, prompt, answers):
    """Log-likelihood of every answer's tokens, one plain forward pass each."""
    import torch

    found = []
    for answer in answers:
        ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        found.append(logp[rows, ids[0, len(prompt) :]].double().numpy())
    return found


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def chosen(model, path, reduce):
    """(right answers, answers of the largest likelihood, groups) by transformers; close calls are a broken test."""
    truth, prediction, groups = [], [], []
    for prompt, answers, right, group in questions(path):
        scores = np.array([reduce(one) for one in likelihoods(model, prompt, answers)])
        first, second = np.sort(scores)[::-1][:2]
        assert first - second > 1e-4, "two answers are equally likely: choose other words"
        truth.append(right)
        prediction.append(int(scores.argmax()))
        groups.append(group)
    return np.array(truth), np.array(prediction), np.array(groups)


def measured(text, name):
    return float(re.search(rf"^{name}\s+([\d.]+)$", text, re.MULTILINE).group(1))


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_answers_by_label_agree_with_transformers_and_scikit_learn(world, score):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, prediction, _ = chosen(load(world["model"]), world["label"], getattr(np, score))
    ini = config(world, "label", f"label-{score}", "choice_accuracy,macro_f1", evaluation={"choice_score": score})
    done = finished("evaluate", "--config", ini)
    assert len(truth) > 15
    assert measured(done.stdout + done.stderr, "choice_accuracy") == pytest.approx(
        (truth == prediction).mean(), abs=1e-6
    )
    expected = metrics.f1_score(truth, prediction, average="macro")
    assert measured(done.stdout + done.stderr, "macro_f1") == pytest.approx(expected, abs=1e-6)


def test_answers_of_each_record_agree_with_transformers(world):
    truth, prediction, _ = chosen(load(world["model"]), world["own"], np.sum)
    done = finished("evaluate", "--config", config(world, "own", "own", "choice_accuracy"))
    assert measured(done.stdout + done.stderr, "choice_accuracy") == pytest.approx(
        (truth == prediction).mean(), abs=1e-6
    )


def greedy(model, prompt, most):
    """Tokens of a plain greedy continuation, without a cache."""
    import torch

    ids = torch.tensor(prompt[None].astype(np.int64))
    for _ in range(most):
        with torch.no_grad():
            token = model(ids).logits[0, -1].argmax()
        if int(token) == micro.EOS:
            break
        ids = torch.cat([ids, token.reshape(1, 1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def replies(world):
    """(data file, [(real, generated)] of its valid records): some real replies are what the model will say, some parts
    of it, some something else."""
    folder, most = world["folder"], 24
    source, out = folder / "replies.jsonl", folder / "replies.h5"
    rows = [
        {"ask": f"{SENTENCES[i % 8]} {i}" + " and so on" * (i % 4), "say": "x", "set": ["train", "valid"][i % 2]}
        for i in range(48)
    ]

    def write():
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        finished("prepare", "jsonl", source, "--model", world["model"], "--prompt-field", "ask", "--response-field",
                 "say", "--split-field", "set", "--test-fraction", "0", "--output", out)  # fmt: skip
        with h5py.File(out) as file:
            names = ("offset", "part", "prompt_length")
            offset, part, length = (file[f"sequences/{name}"][()] for name in names)
            return [file["tokens/ids"][offset[s] : offset[s] + length[s]] for s in np.flatnonzero(part == 1)]

    model = load(world["model"])
    pieces = ["<bos>", "<eos>", *micro.ALPHABET]
    said = ["".join(pieces[token] for token in greedy(model, prompt, most)) for prompt in write()]
    valid = [row for row in rows if row["set"] == "valid"]
    for i, (row, text) in enumerate(zip(valid, said, strict=True)):
        row["say"] = [text.strip(), text[len(text) // 3 :].strip(), "something else"][i % 3] or "nothing"
    write()
    return out, [(row["say"], text) for row, text in zip(valid, said, strict=True)]


@pytest.mark.skipif(not TOOL.exists(), reason=f"{TOOL} is not built")
@pytest.mark.parametrize("pack_tokens", [160, 4096])
def test_generated_replies_agree_with_transformers(world, replies, pack_tokens):
    """Replies generated one by one and all at once, scored by the tool that test_text_scores.py checks."""
    data, pairs = replies
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    scored = subprocess.run([TOOL], input=lines, capture_output=True, text=True, check=True, env=environment())
    expected = np.mean([json.loads(line) for line in scored.stdout.splitlines()], 0)
    assert (expected > 0.2).all() and (expected < 0.9).all()
    ini = write_ini(
        world["folder"] / "text.ini", (world["model"], data),
        {"data": {"sequence_length": 160}, "experiment": {"clients_per_round": 1},
         "evaluation": {"metrics": "rouge1,rougeL,exact_match", "text_tokens": 24},
         "compute": {"pack_tokens": pack_tokens}, "output": {"dir": world["folder"] / "text"}},
    )  # fmt: skip
    done = finished("evaluate", "--config", ini)
    for name, value in zip(("rouge1", "rougeL", "exact_match"), expected, strict=True):
        assert measured(done.stdout + done.stderr, name) == pytest.approx(value, abs=1e-6)


ALL = "perplexity,accuracy,choice_accuracy,macro_f1,rouge1,rougeL,exact_match"


def whole_run(world, name, mpi_ranks=0):
    more = {"evaluation": {"text_sequences": 12, "text_tokens": 6, "groups": "final", "test": "last"}}
    finished("run", "--config", config(world, "label", name, ALL, **more), mpi_ranks=mpi_ranks)
    return world["folder"] / name


def test_a_run_logs_every_metric_and_its_groups(world):
    folder = whole_run(world, "run")
    truth, prediction, groups = chosen(load(world["model"]), world["label"], np.sum)
    with h5py.File(folder / "run.h5") as file:
        rounds, by_group = file["rounds"], file["groups"]
        for name in ("choice_accuracy", "macro_f1", "rouge1", "rougeL", "exact_match"):
            assert np.isfinite(rounds[f"eval_{name}"][()]).all(), name
            assert np.isnan(rounds[f"eval_test_{name}"][0]) and np.isfinite(rounds[f"eval_test_{name}"][1]), name
        # Row 0 is the base: the new adapter's B is 0.
        assert rounds["eval_choice_accuracy"][0] == pytest.approx((truth == prediction).mean(), abs=1e-12)
        assert [name.decode() for name in by_group["name"]] == ["food", "time"]
        tokens = by_group["tokens"][()]
        assert by_group["eval_loss"][()] @ tokens / tokens.sum() == pytest.approx(rounds["eval_loss"][1], rel=1e-9)
        sizes = np.bincount(groups)
        shares = by_group["eval_choice_accuracy"][()]
        assert shares @ sizes / sizes.sum() == pytest.approx(rounds["eval_choice_accuracy"][1], abs=1e-12)
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert lines[1]["eval_rougeL"] is not None and lines[0]["eval_test_rouge1"] is None


def test_evaluate_prints_the_groups(world):
    ini = config(world, "label", "groups", "choice_accuracy", evaluation={"groups": "final"})
    done = finished("evaluate", "--config", ini)
    truth, prediction, groups = chosen(load(world["model"]), world["label"], np.sum)
    for group, name in enumerate(("food", "time")):
        line = re.search(rf"^  {name} .*$", done.stdout + done.stderr, re.MULTILINE).group(0)
        share = (truth == prediction)[groups == group].mean()
        assert float(line.split()[-1]) == pytest.approx(share, abs=1e-4)


@needs_mpirun
def test_metrics_are_the_same_bits_for_three_mpi_ranks(world):
    from program import columns

    one, three = whole_run(world, "one", 1), whole_run(world, "three", 3)
    assert columns(one / "run.h5") == columns(three / "run.h5")


def test_open_runs_and_compare_find_a_metric_by_name(world):
    import hetlora

    if not (world["folder"] / "run" / "run.h5").exists():
        whole_run(world, "run")
    runs = hetlora.open_runs(world["folder"] / "run")
    assert np.isfinite(runs["eval_rougeL"].values).all()
    done = finished("compare", world["folder"] / "run", "--metric", "eval_rougeL")
    assert "rougeL" in done.stdout


def test_a_run_that_is_continued_logs_the_same_as_one_that_is_not(world):
    from program import columns

    more = {"evaluation": {"text_sequences": 8, "text_tokens": 4, "groups": "final", "clients": "none"}}
    for name, rounds in (("whole", (2,)), ("parts", (1, 2))):
        ini = config(world, "label", name, ALL, **{key: dict(value) for key, value in more.items()})
        for i, last in enumerate(rounds):
            resume = ("--resume",) if i else ()
            finished("run", "--config", ini, "--set", f"experiment.rounds={last}", *resume)
    one, other = world["folder"] / "whole", world["folder"] / "parts"
    assert columns(one / "run.h5") == columns(other / "run.h5")
    names = ("eval_choice_accuracy", "eval_macro_f1", "eval_rouge1", "eval_rougeL", "eval_exact_match")
    read = [
        [[line[key] for key in names] for line in map(json.loads, (folder / "progress.jsonl").read_text().splitlines())]
        for folder in (one, other)
    ]
    assert len(read[0]) == 3 and read[0] == read[1]


def test_clients_accuracy_stands_beside_their_loss_and_record_splits_are_refused(world):
    data = prepare(world["folder"], world["model"], "by-time", *BY_LABEL, "--client-field", "who",
                   "--held-out-fraction", "0.4")  # fmt: skip
    final = {"evaluation": {"clients": "final", "sequences": 20}}
    world["time"] = data
    ranks = {"lora": {"rank_distribution": "list", "rank_list": "2,8", "rank_min": 2, "rank_max": 8}}
    trained = {"experiment": {"rounds": 3, "clients_per_round": 6},
               "local": {"steps": 10, "optimizer": "adamw", "learning_rate": 0.02}}  # fmt: skip
    ini = config(world, "time", "clients", "accuracy", strategy={"prune_gamma": 1.0}, **ranks, **trained, **final)
    finished("run", "--config", ini)
    with h5py.File(world["folder"] / "clients" / "run.h5") as file:
        loss, accuracy = file["clients/eval_loss_final"][()], file["clients/eval_accuracy_final"][()]
        own, rank = file["clients/eval_loss_own_rank"][()], file["clients/initial_lora_rank"][()]
    assert np.isfinite(loss).sum() >= 5
    np.testing.assert_array_equal(np.isfinite(loss), np.isfinite(accuracy))
    assert np.nanmin(accuracy) >= 0 and 0 < np.nanmax(accuracy) <= 1
    # At rank_max the first slots are all slots; clients below it see less.
    at_most = rank == 8
    np.testing.assert_array_equal(own[at_most], loss[at_most])
    assert at_most.any() and (np.isfinite(own) == np.isfinite(loss)).all()
    lower = np.isfinite(loss) & ~at_most
    assert lower.any() and (own[lower] != loss[lower]).any()
    final = {"evaluation": {"clients": "final"}}
    done = start("run", "--config", config(world, "label", "refused", "accuracy", **final))
    assert done.returncode == 3 and "split by record" in done.stderr


@pytest.mark.parametrize(
    ("data", "metrics", "more", "expected"),
    [
        ("own", "macro_f1", {}, "take choice_accuracy"),
        ("plain", "choice_accuracy", {}, "--label-choices"),
        ("label", "choice_accuracy", {"strategy": {"preset": "fedsa"}}, "keep a factor"),
        ("label", "rougeL", {"evaluation": {"text_tokens": 256}}, "leaves none of the model's 256 positions"),
        ("label", "accuracy", {"evaluation": {"choice_score": "mean"}}, "it is used with choice_accuracy"),
        ("plain", "accuracy", {"evaluation": {"groups": "final"}}, "has no groups"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(world, data, metrics, more, expected):
    if data == "plain" and "plain" not in world:
        world["plain"] = micro.build_corpus(world["folder"] / "plain.h5", 0, world["model"] / "tokenizer.json")
    ini = config(world, data, "refused", metrics, **more)
    done = start("run", "--config", ini)
    assert done.returncode in (2, 3), done.stderr
    assert expected in done.stderr
    assert not (world["folder"] / "refused").exists()


def test_a_plan_counts_the_metrics_and_the_test_part(world):
    """The same run with and without metrics and test: both are in the predicted total."""

    def plan(name, metrics, **evaluation):
        goal = world["folder"] / f"{name}.json"
        done = start("plan", "--config", config(world, "label", name, metrics, evaluation=evaluation), "--json", goal)
        assert done.returncode == 0, done.stderr
        return json.loads(goal.read_text())

    plain = plan("plan_plain", "perplexity")
    full = plan("plan_full", "perplexity, choice_accuracy, rougeL", text_tokens=48, test="last")
    assert plain["seconds_per_test"] == 0.0
    assert 0.0 < full["seconds_per_test"] < full["seconds_per_evaluation"]  # a third of the people of valid
    rounds = full["seconds_train"] + full["seconds_overhead"]
    total = full["seconds_start"] + rounds + 2 * full["seconds_per_evaluation"] + full["seconds_per_test"]
    assert full["seconds_total"] == pytest.approx(total)
    # 48 tokens of some twenty replies, one after another, beside one pass over their rows: far from equal.
    assert full["seconds_per_evaluation"] > plain["seconds_per_evaluation"]
