"""`prepare jsonl` and `prepare msc`: fields, labels, splits, and an honest account of bad lines."""

import json
import lzma
import random

import pytest
from prepare_fixtures import (
    check_file,
    decode,
    read,
    run,
    sentence,
    sequences,
    shared_data,
    stretches,
    write_turn_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_turn_tokenizer(tmp_path_factory.mktemp("records") / "turns")


def lines(path, records):
    text = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records).encode()
    path.write_bytes(lzma.compress(text) if path.suffix == ".xz" else text)
    return path


def good(n=60):
    generator = random.Random(5)
    return [
        {"who": f"client {i % 6}", "q": sentence(generator), "a": sentence(generator), "kind": ["x", "y", "z"][i % 3]}
        for i in range(n)
    ]


PAIR = ("--client-field", "who", "--prompt-field", "q", "--response-field", "a")


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.xz"])
def test_pairs_mask_the_response_only(capsys, tokenizer, tmp_path, name):
    records = good()
    file = lines(tmp_path / name, records)
    code, text, err = run(
        capsys,
        "prepare",
        "jsonl",
        file,
        *PAIR,
        "--label-field",
        "kind",
        "--tokenizer",
        tokenizer,
        "--out",
        tmp_path / "o.h5",
    )
    assert code == 0, err
    data = read(tmp_path / "o.h5")
    check_file(data)
    assert [name.decode() for name in data["labels/name"]] == ["x", "y", "z"]
    assert [name.decode() for name in data["clients/name"]] == [f"client {i}" for i in range(6)]
    expected = {(r["q"], r["a"], "xyz".index(r["kind"])) for r in records}
    found = set()
    for (ids, mask), label in zip(sequences(data), data["sequences/label"], strict=True):
        (own,) = stretches(ids, mask)
        whole, own = decode(data, ids), decode(data, own)
        assert whole.endswith("<|me|>" + own) and own.endswith("<|end|>")
        found.add((whole.split("<|user|>")[1].split("<|end|>")[0], own.removesuffix("<|end|>"), int(label)))
    assert found == expected


def test_texts_are_trained_on_whole(capsys, tokenizer, tmp_path):
    file = lines(tmp_path / "t.jsonl", [{"who": i % 4, "t": r["a"]} for i, r in enumerate(good())])
    arguments = ["--client-field", "who", "--text-field", "t", "--tokenizer", tokenizer, "--out", tmp_path / "o.h5"]
    assert run(capsys, "prepare", "jsonl", file, *arguments)[0] == 0
    data = read(tmp_path / "o.h5")
    check_file(data)
    assert all(mask[1:].all() and not mask[0] for _, mask in sequences(data))
    assert "labels/name" not in data and (data["sequences/label"] == -1).all()


BAD = [
    "nonsense",
    "[1]",
    {"who": "a"},
    {"who": "a", "q": "", "a": "x"},
    {"who": "a", "q": 3, "a": "x"},
    {"who": None, "q": "x", "a": "x"},
    '{"who": "a", "q": "\\ud800", "a": "x"}',
    {"who": "a\0b", "q": "x", "a": "x"},
]


def test_bad_lines_are_counted_shown_and_refused(capsys, tokenizer, tmp_path):
    file = lines(tmp_path / "bad.jsonl", [*good(20), *BAD, "", *good(20)])
    out = tmp_path / "o.h5"
    code, _, err = run(capsys, "prepare", "jsonl", file, *PAIR, "--tokenizer", tokenizer, "--out", out)
    assert code == 3 and not out.exists()
    assert f"{len(BAD)} bad of {40 + len(BAD)} lines" in err and "bad.jsonl:21: not JSON" in err
    assert "and 3 more" in err and "--skip-bad" in err
    code, _, err = run(capsys, "prepare", "jsonl", file, *PAIR, "--tokenizer", tokenizer, "--out", out, "--skip-bad")
    assert code == 0 and f"skipped {len(BAD)} bad" in err
    assert len(read(out)["sequences/part"]) == 40


@pytest.mark.parametrize(
    "content, code, message",
    [(b"", 3, "is empty"), (b"\xff\xfe\n", 3, "not UTF-8"), (b'{"who": "a", "q": "x", "a": "y"}\n', 0, "")],
)
def test_odd_files(capsys, tokenizer, tmp_path, content, code, message):
    (tmp_path / "odd.jsonl").write_bytes(content)
    arguments = [*PAIR, "--held-out-fraction", "0", "--tokenizer", tokenizer, "--out", tmp_path / "o.h5"]
    found, _, err = run(capsys, "prepare", "jsonl", tmp_path / "odd.jsonl", *arguments)
    assert found == code and message in err


def test_broken_xz_and_missing_file(capsys, tokenizer, tmp_path):
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(b'{"who": 1}\n' * 5000)[:40])
    arguments = [*PAIR, "--tokenizer", tokenizer, "--out", tmp_path / "o.h5"]
    for name, message in (("x.jsonl.xz", "cannot be unpacked"), ("none.jsonl", "no such file"), ("", "is a folder")):
        code, _, err = run(capsys, "prepare", "jsonl", tmp_path / name, *arguments)
        assert code == 3 and message in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--client-field", "who"], "give either --text-field"),
        (["--client-field", "who", "--text-field", "a", "--prompt-field", "q"], "give either --text-field"),
        (["--client-field", "who", "--prompt-field", "q"], "give either --text-field"),
        ([*PAIR, "--held-out-fraction", "1"], "not in [0, 1)"),
        ([*PAIR, "--held-out-fraction", "nan"], "not in [0, 1)"),
        ([*PAIR, "--seed", "-1"], "negative"),
    ],
)
def test_usage_errors(capsys, tokenizer, tmp_path, arguments, message):
    file = lines(tmp_path / "data.jsonl", good(6))
    code, _, err = run(
        capsys, "prepare", "jsonl", file, *arguments, "--tokenizer", tokenizer, "--out", tmp_path / "o.h5"
    )
    assert code == 2 and message in err


def episodes(n=30):
    generator = random.Random(9)
    result = []
    for e in range(n):
        sessions = []
        for s in range(3):
            turns = [f"e{e}s{s}t{t} {sentence(generator)}" for t in range(7)]
            personas = [[f"e{e} persona0.", "I play."], [f"e{e} persona1."]]
            sessions.append({"personas": personas, "turns": turns, "speaker": [t % 2 for t in range(7)]})
        result.append({"episode": f"ep{e}", "sessions": sessions})
    return result


def test_msc_sessions_and_held_out_episodes(capsys, tokenizer, tmp_path):
    file = lines(tmp_path / "msc.jsonl.xz", episodes())
    arguments = ["--tokenizer", tokenizer, "--out", tmp_path / "o.h5", "--held-out-fraction", "0.4"]
    assert run(capsys, "prepare", "msc", file, *arguments)[0] == 0
    data = read(tmp_path / "o.h5")
    check_file(data)
    assert len(data["clients/name"]) == 60 and 0 < data["clients/held_out"].sum() < 60
    held_by_episode = {}
    targets = {}
    for (ids, mask), part, client in zip(
        sequences(data), data["sequences/part"], data["sequences/client"], strict=True
    ):
        name, held = data["clients/name"][client].decode(), bool(data["clients/held_out"][client])
        episode, speaker = name.removeprefix("ep").split(":")
        assert held_by_episode.setdefault(episode, (held, part if held else 0)) == (held, part if held else 0)
        text = decode(data, ids)
        assert f"e{episode} persona{speaker}." in text and f"persona{1 - int(speaker)}" not in text
        own = [decode(data, piece).split()[0] for piece in stretches(ids, mask)]
        assert all(turn.startswith(f"e{episode}s") and int(turn[-1]) % 2 == int(speaker) for turn in own)
        if not held:
            assert all((turn.split("s")[1][0] == "2") == (part > 0) for turn in own)
            if part == 1:  # what is a test target is not even context of the valid part
                later = {f"e{episode}s2t{t}" for t in range(7) if t > int(own[-1][-1])}
                assert not any(turn in text for turn in later)
        for turn in own:
            assert turn not in targets, "a turn is a target once only"
            targets[turn] = part
    assert len(targets) == 30 * 3 * 7


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e.pop("sessions"), "'sessions'"),
        (lambda e: e.update(episode=3), "'episode'"),
        (lambda e: e["sessions"][1].update(speaker=[0]), "session 2: 'speaker'"),
        (lambda e: e["sessions"][0].update(personas=[["a"]]), "session 1: 'personas'"),
        (lambda e: e["sessions"][2].update(turns=[1]), "session 3: 'turns'"),
        (lambda e: e.update(episode="ep1"), "occurs twice"),
    ],
)
def test_msc_refuses_bad_episodes(capsys, tokenizer, tmp_path, change, message):
    records = episodes(4)
    change(records[2])
    file = lines(tmp_path / "msc.jsonl", records)
    code, _, err = run(capsys, "prepare", "msc", file, "--tokenizer", tokenizer, "--out", tmp_path / "o.h5")
    assert code == 3 and message in err


def test_msc_real_episodes(capsys, tokenizer, tmp_path):
    file = shared_data("msc", "msc_valid_s1to3.jsonl.xz")
    code, _, err = run(
        capsys, "prepare", "msc", file, "--tokenizer", tokenizer, "--out", tmp_path / "o.h5", "--max-clients", "100"
    )
    assert code == 0, err
    data = read(tmp_path / "o.h5")
    check_file(data)
    assert len(data["clients/name"]) == 100
