"""`prepare jsonl --label-choices` and `--choices-field`: answers as tokens of the reply, and what is refused."""

import json

import numpy as np
import pytest
from prepare_fixtures import decode, read, run, write_turn_tokenizer

ROWS = [
    {"ask": f"is {i} big?", "mood": ["good", "bad"][i % 2], "options": ["yes", "no", f"perhaps {i}"], "right": i % 3}
    for i in range(40)
]
LABELS = ("--prompt-field", "ask", "--label-field", "mood", "--label-words", "good=a good one,bad=poor")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_turn_tokenizer(tmp_path_factory.mktemp("choices") / "turns")


def prepare(capsys, tmp_path, tokenizer, *flags, rows=None):
    """(exit code, data or None, message)"""
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.h5"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    code, _, err = run(capsys, "prepare", "jsonl", source, "--tokenizer", tokenizer, *flags, "--output", out)
    return code, read(out) if code == 0 else None, err


def answers(data):
    offset = data["choices/offset"]
    return [data["choices/ids"][a:b] for a, b in zip(offset[:-1], offset[1:], strict=True)]


def replies(data):
    """The loss tokens of every sequence."""
    offset = data["sequences/offset"]
    for a, b in zip(offset[:-1], offset[1:], strict=True):
        yield data["tokens/ids"][a:b][data["tokens/mask"][a:b] == 1]


@pytest.mark.parametrize("way", [("--template", "alpaca"), ("--template", "plain"), ()])
def test_the_answer_of_a_label_is_its_reply_token_for_token(capsys, tmp_path, tokenizer, way):
    _, data, err = prepare(capsys, tmp_path, tokenizer, *LABELS, "--label-choices", *way)
    assert data is not None, err
    found = answers(data)
    assert len(found) == 2 and "choices/answer" not in data
    assert "a good one" in decode(data, found[0]) and "poor" in decode(data, found[1])
    for reply, label in zip(replies(data), data["sequences/label"], strict=True):
        np.testing.assert_array_equal(reply, found[label])


def test_answers_of_each_record_hold_the_reply_at_the_right_place(capsys, tmp_path, tokenizer):
    flags = ("--prompt-field", "ask", "--choices-field", "options", "--answer-field", "right", "--template", "plain")
    _, data, err = prepare(capsys, tmp_path, tokenizer, *flags)
    assert data is not None, err
    found, first = answers(data), data["choices/sequence_offset"]
    assert len(found) == 3 * len(ROWS) and first[-1] == len(found)
    for s, reply in enumerate(replies(data)):
        np.testing.assert_array_equal(reply, found[first[s] + data["choices/answer"][s]])
    assert set(data["choices/answer"]) == {0, 1, 2}


def test_the_right_answer_may_be_named_by_its_text(capsys, tmp_path, tokenizer):
    flags = ("--prompt-field", "ask", "--choices-field", "options", "--answer-field", "right", "--template", "plain")
    rows = [row | {"right": row["options"][row["right"]]} for row in ROWS]
    _, by_place, _ = prepare(capsys, tmp_path, tokenizer, *flags)
    _, by_text, _ = prepare(capsys, tmp_path, tokenizer, *flags, rows=rows)
    for name in ("choices/ids", "choices/answer"):
        np.testing.assert_array_equal(by_place[name], by_text[name])


def test_data_without_the_flags_have_no_answers(capsys, tmp_path, tokenizer):
    _, data, _ = prepare(capsys, tmp_path, tokenizer, *LABELS, "--template", "plain")
    assert not [name for name in data if name.startswith("choices/")]


OWN = ("--prompt-field", "ask", "--choices-field", "options", "--answer-field", "right")


@pytest.mark.parametrize(
    ("flags", "row", "code", "expected"),
    [
        (("--prompt-field", "ask", "--choices-field", "options"), {}, 2, "go together"),
        ((*OWN, "--response-field", "mood"), {}, 2, "neither --response-field"),
        ((*LABELS[:2], "--response-field", "mood", "--label-choices"), {}, 2, "needs --prompt-field and --label-field"),
        (OWN, {"right": 3}, 3, "neither one of the answers nor its place"),
        (OWN, {"right": True}, 3, "neither one of the answers nor its place"),
        (OWN, {"options": ["yes"]}, 3, "no list of two or more texts"),
        (OWN, {"options": ["yes", " yes"]}, 3, "blank answer, or one twice"),
        (OWN, {"options": ["yes", " "]}, 3, "blank answer, or one twice"),
    ],
)
def test_bad_answers_are_refused(capsys, tmp_path, tokenizer, flags, row, code, expected):
    got, _, err = prepare(capsys, tmp_path, tokenizer, *flags, rows=[*ROWS, ROWS[0] | row])
    assert got == code and expected in err, err
