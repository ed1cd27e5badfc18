"""`prepare chitchat`: masks, splits, held-out people and bad input, on synthetic conversations and on the real ones."""

import importlib.util
import re

import numpy as np
import pytest
from hetlora.prepare import splits
from prepare_fixtures import (
    check_file,
    chitchat_json,
    decode,
    read,
    run,
    sequences,
    skip_loudly,
    stretches,
    write_chatml_tokenizer,
    write_turn_tokenizer,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, dataset, turn tokenizer, ChatML tokenizer)."""
    folder = tmp_path_factory.mktemp("chitchat")
    turns = write_turn_tokenizer(folder / "turns")
    return folder, chitchat_json(folder / "dataset.json"), turns, write_chatml_tokenizer(turns, folder / "chatml")


def prepare(capsys, made, name, *more, tokenizer=2):
    folder = made[0]
    out = folder / name
    common = ["--input", folder / "dataset.json", "--tokenizer", made[tokenizer], "--out", out, "--min-words", "0"]
    code, text, err = run(capsys, "prepare", "chitchat", *common, "--held-out-fraction", "0.3", *more)
    assert code == 0, err
    return read(out), text


def words_of(dataset, conversation, person):
    """The turns of one person, as the file should hold them."""
    messages = [m for group in dataset[f"conversation-{conversation}"]["messages"] for m in group if m["text"].strip()]
    turns = []
    for message in messages:
        if turns and turns[-1][0] == message["sender"]:
            turns[-1][1].append(message["text"].strip())
        else:
            turns.append((message["sender"], [message["text"].strip()]))
    return ["\n".join(texts) for sender, texts in turns if sender == person]


def keys(data):
    """(conversation number, person) of every sequence, read back from its text."""
    result = []
    for (ids, _), client in zip(sequences(data), data["sequences/client"], strict=True):
        conversations = set(re.findall(r"\bc(\d+) p\d+ ", decode(data, ids)))
        assert len(conversations) == 1
        result.append((int(conversations.pop()), data["clients/name"][client].decode()))
    return result


@pytest.mark.parametrize("tokenizer, end", [(2, "<|end|>"), (3, "<|im_end|>")])
def test_mask_covers_exactly_own_words_and_their_end(capsys, made, tokenizer, end):
    data, _ = prepare(capsys, made, f"mask{tokenizer}.h5", tokenizer=tokenizer)
    check_file(data)
    for (ids, mask), (conversation, person) in zip(sequences(data), keys(data), strict=True):
        expected = [text + end for text in words_of(made[1], conversation, person)]
        assert [decode(data, part) for part in stretches(ids, mask)] == expected


@pytest.mark.parametrize("tokenizer, own", [(2, ["<|me|>"]), (3, ["<|im_start|>"])])
def test_a_message_cannot_write_turn_tokens(capsys, made, tokenizer, own):
    data, _ = prepare(capsys, made, f"inject{tokenizer}.h5", tokenizer=tokenizer)
    special = [data["vocab"].index(token.encode()) for token in own][0]
    for (ids, mask), (conversation, person) in zip(sequences(data), keys(data), strict=True):
        assert "<|me|> <|im_end|>" not in person
        inside = ids[mask == 1]
        assert not (inside == special).any()
        if tokenizer == 2:
            assert (ids == special).sum() == len(words_of(made[1], conversation, person))


def test_each_two_person_conversation_serves_both_people(capsys, made):
    data, _ = prepare(capsys, made, "both.h5", "--held-out-fraction", "0")
    expected = set()
    for number, conversation in enumerate(made[1].values()):
        people = {m["sender"] for group in conversation["messages"] for m in group if m["text"].strip()}
        if len(people) == 2:
            expected |= {(number, person) for person in people}
    assert set(keys(data)) == expected and len(keys(data)) == len(expected)


def test_held_out_people_never_appear_in_training(capsys, made):
    data, _ = prepare(capsys, made, "held.h5")
    held = {name.decode() for name, flag in zip(data["clients/name"], data["clients/held_out"], strict=True) if flag}
    assert held
    by_part = {0: set(), 1: set(), 2: set()}
    for (ids, _), part, (conversation, person) in zip(sequences(data), data["sequences/part"], keys(data), strict=True):
        people = set(re.findall(r"\bc\d+ (p\d+) ", decode(data, ids)))
        if person in held:
            by_part[int(part)].add(conversation)
        else:
            assert not people & held
    assert not by_part[0] and by_part[1] and by_part[2]
    assert not by_part[1] & by_part[2]


def test_parts_follow_time_and_single_conversations_train(capsys, made):
    data, _ = prepare(capsys, made, "time.h5")
    numbers = np.array([conversation for conversation, _ in keys(data)])
    for client, held in enumerate(data["clients/held_out"]):
        own = data["sequences/client"] == client
        parts = data["sequences/part"][own]
        if held:
            assert len(set(parts)) == 1 and parts[0] in (1, 2)
        else:
            assert (np.diff(numbers[own]) > 0).all()  # conversations are numbered in time order
            assert list(parts) == splits.time_split(len(parts)) and (len(parts) > 1 or parts[0] == 0)


@pytest.mark.parametrize("n, parts", [(1, [0]), (2, [0, 1]), (5, [0] * 4 + [1]), (10, [0] * 8 + [1, 2])])
def test_time_split(n, parts):
    assert splits.time_split(n) == parts


def test_held_out_share_is_near_the_fraction_and_ignores_everything_but_the_name():
    parts = [splits.held_out_part(f"name{i}", 0.1, 0) for i in range(20000)]
    assert abs(parts.count(splits.VALID) / 20000 - 0.05) < 0.006
    assert abs(parts.count(splits.TEST) / 20000 - 0.05) < 0.006


def test_options_select_clients_and_keep_the_others_unchanged(capsys, made):
    everyone, _ = prepare(capsys, made, "all.h5")
    few, _ = prepare(capsys, made, "few.h5", "--max-clients", "9")
    wordy, _ = prepare(capsys, made, "wordy.h5", "--min-words", "150")
    assert len(few["clients/name"]) == 9 and set(few["clients/name"]) <= set(everyone["clients/name"])
    assert 0 < len(wordy["clients/name"]) < len(everyone["clients/name"])
    held = dict(zip(everyone["clients/name"], everyone["clients/held_out"], strict=True))
    assert all(held[name] == flag for name, flag in zip(few["clients/name"], few["clients/held_out"], strict=True))


def test_same_options_same_content(capsys, made, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    first, _ = prepare(capsys, made, "a.h5")
    again, _ = prepare(capsys, made, "b.h5")
    other, _ = prepare(capsys, made, "c.h5", "--seed", "1")
    assert first["attrs"] == again["attrs"] and first["attrs"]["created_utc"] == "2026-01-01T00:00:00Z"
    assert (made[0] / "a.h5").read_bytes() == (made[0] / "b.h5").read_bytes()
    assert first["attrs"]["content_sha256"] != other["attrs"]["content_sha256"]


def test_show_makes_the_mask_visible(capsys, made):
    _, text = prepare(capsys, made, "show.h5", "--show", "2")
    assert text.count("--- client") == 2 and "<|me|>[[c" in text and "<|end|>]]" in text


@pytest.mark.parametrize("length, overlap", [(16, 0), (16, 5), (64, 63), (4096, 7)])
def test_every_loss_token_falls_into_exactly_one_window(capsys, made, length, overlap):
    data, _ = prepare(capsys, made, "windows.h5")
    for _, mask in sequences(data):
        n, counted = len(mask), np.zeros(len(mask), dtype=int)
        start, previous_end = 0, -1
        while start + 1 < n:
            end = min(n - 1, start + length)  # index of the last target token
            for p in range(start + 1, end + 1):
                counted[p] += bool(mask[p]) and p > previous_end
            previous_end, start = end, start + length - overlap
        assert (counted == mask).all()


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ('{"a": {"turns": []}}', "not the chitchat format"),
        ("[1, 2]", "not the chitchat format"),
        ('{"a": {"messages": [[{"text": "hi", "timestamp": "1", "sender": "x"}]]}}', "none of its 1 conversations"),
    ],
)
def test_bad_datasets_are_refused_in_one_message(capsys, made, tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    out = tmp_path / "out.h5"
    code, _, err = run(
        capsys, "prepare", "chitchat", "--input", tmp_path / "bad.json", "--tokenizer", made[2], "--out", out
    )
    assert code == 3 and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_real_conversations(capsys, made, tmp_path):
    if importlib.util.find_spec("chitchat_dataset") is None:
        skip_loudly("the Python package chitchat-dataset is missing (pip install chitchat-dataset)")
    out = tmp_path / "real.h5"
    code, text, _ = run(
        capsys, "prepare", "chitchat", "--tokenizer", made[2], "--out", out, "--max-clients", "60", "--min-words", "200"
    )
    data = read(out)
    check_file(data)
    assert code == 0 and "7168 conversations, 4017 of two people" in text
    assert len(data["clients/name"]) == 60 and 0.3 < data["tokens/mask"].mean() < 0.7
