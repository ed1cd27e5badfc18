"""Small synthetic inputs for the tests of `prepare` and `convert`, and readers of what they write."""

import json
import os
import random
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hetlora.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = (
    "hello what are you doing today the big red ball is in my house and we like to play naïve 😀 café it's 2018".split()
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def shared_data(*parts: str) -> Path:
    """A file of the optional data folder, or a skip that says on the terminal what is missing."""
    root = Path(os.environ.get("HETLORA_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        skip_loudly(f"{path} is missing (set HETLORA_SHARED_DATA to the folder that holds {parts[0]}/)")
    return path


def skip_loudly(reason: str) -> None:
    """Skip the test and print why even when pytest captures output and hides skip reasons."""
    print(f"\nSKIPPED: {reason}", file=sys.__stderr__, flush=True)
    pytest.skip(reason)


def run(capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `hetlora ARGUMENTS` in this process."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return code, output.out, output.err


def sentence(generator: random.Random, low: int = 2, high: int = 9) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(low, high)))


def write_turn_tokenizer(folder: Path, capsys=None) -> Path:
    """A real byte-level BPE tokenizer with the turn tokens, trained on synthetic text."""
    generator = random.Random(1)
    source = folder.parent / "tokenizer-text.txt"
    source.write_text("\n".join(sentence(generator) for _ in range(400)), encoding="utf-8")
    assert main(["prepare", "tokenizer", str(source), "--vocab-size", "330", "--out", str(folder)]) == 0
    return folder


def write_chatml_tokenizer(turn_tokenizer: Path, folder: Path) -> Path:
    """The same tokenizer with ChatML special tokens and a chat template that adds a default system text."""
    spec = json.loads((turn_tokenizer / "tokenizer.json").read_text())
    names = {"<|bos|>": "<|im_start|>", "<|end|>": "<|im_end|>"}
    for entry in spec["added_tokens"]:
        entry["content"] = names.get(entry["content"], entry["content"])
    spec["model"]["vocab"] = {names.get(token, token): i for token, i in spec["model"]["vocab"].items()}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chitchat_json(path: Path, n_people: int = 40, n_conversations: int = 150, seed: int = 3) -> dict:
    """A synthetic dataset.json; the first words of every message name its conversation and sender ("c7 p3 ...")."""
    generator = random.Random(seed)
    data = {}
    for c in range(n_conversations):
        people = generator.sample(range(min(n_people, 4 + c)), 1 if c % 7 == 0 else 2)
        groups, clock = [], 0
        for _ in range(generator.randint(2, 8)):
            group, who = [], generator.choice(people)
            for _ in range(generator.randint(1, 3)):
                clock += 1
                text = f"c{c} p{who} {sentence(generator)}"
                if clock % 11 == 0:
                    text += " <|end|><|me|> <|im_end|>"  # nobody may end a turn by writing its token
                group.append(
                    {
                        "text": text,
                        "timestamp": f"2018-05-{c // 10 + 1:02}T{c % 10:02}:00:{clock:02}Z",
                        "sender": f"p{who}",
                    }
                )
            groups.append(group)
        if c % 5 == 0:
            groups.append(
                [
                    {
                        "text": "   ",
                        "timestamp": f"2018-05-{c // 10 + 1:02}T{c % 10:02}:01:00Z",
                        "sender": f"p{people[0]}",
                    }
                ]
            )
        data[f"conversation-{c}"] = {"messages": groups, "start": ""}
    path.write_text(json.dumps(data))
    return data


def read(path: Path) -> dict:
    """All datasets of a prepared file by name, attributes under 'attrs', and 'vocab' as a list of bytes."""
    with h5py.File(path) as file:
        data: dict = {}
        file.visititems(lambda name, item: data.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        data["attrs"] = {k: v.decode() if isinstance(v, bytes) else v for k, v in file.attrs.items()}
    offset, raw = data["vocab/offset"], data["vocab/bytes"].tobytes()
    data["vocab"] = [raw[offset[i] : offset[i + 1]] for i in range(len(offset) - 1)]
    return data


def sequences(data: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, mask) of every sequence."""
    offset = data["sequences/offset"]
    ids, mask = data["tokens/ids"], data["tokens/mask"]
    return [(ids[a:b], mask[a:b]) for a, b in zip(offset[:-1], offset[1:], strict=True)]


def decode(data: dict, ids: np.ndarray) -> str:
    """Text of ids through the vocabulary stored in the file."""
    return b"".join(data["vocab"][i] for i in ids).decode("utf-8")


def stretches(ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The ids of every run of ones in the mask."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [ids[a:b] for a, b in edges.reshape(-1, 2)]


def check_file(data: dict) -> None:
    """The rules that every prepared file obeys."""
    n_tokens, offset = len(data["tokens/ids"]), data["sequences/offset"]
    assert data["attrs"]["schema_name"] == "hetlora-data" and data["attrs"]["schema_version"] == 1
    types = {
        "tokens/ids": "i4",
        "tokens/mask": "u1",
        "sequences/offset": "i8",
        "sequences/client": "i4",
        "sequences/part": "u1",
        "sequences/label": "i4",
        "sequences/prompt_length": "i4",
        "clients/offset": "i8",
        "clients/held_out": "u1",
        "vocab/bytes": "u1",
        "vocab/offset": "i8",
    }
    for name, kind in types.items():
        assert data[name].dtype == np.dtype(kind), name
    assert offset[0] == 0 and offset[-1] == n_tokens == len(data["tokens/mask"]) and (np.diff(offset) >= 2).all()
    assert not data["tokens/mask"][offset[:-1]].any()
    assert set(np.unique(data["tokens/mask"])) <= {0, 1}
    assert 0 <= data["tokens/ids"].min() and data["tokens/ids"].max() < data["attrs"]["vocab_size"] == len(
        data["vocab"]
    )
    order = list(zip(data["sequences/client"], data["sequences/part"], strict=True))
    assert order == sorted(order)
    counts = np.bincount(data["sequences/client"], minlength=len(data["clients/name"]))
    assert (np.diff(data["clients/offset"]) == counts).all() and data["clients/offset"][0] == 0 and (counts > 0).all()
    held = data["clients/held_out"][data["sequences/client"]].astype(bool)
    assert (data["sequences/part"][held] > 0).all()
    for (ids, mask), prompt in zip(sequences(data), data["sequences/prompt_length"], strict=True):
        assert mask.any()
        last = len(mask) - 1 - int(np.argmax(mask[::-1]))
        assert mask[prompt : last + 1].all() and (prompt == 0 or not mask[prompt - 1])
        assert len(ids) == len(mask)
