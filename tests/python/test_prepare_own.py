"""`prepare jsonl|csv|parquet` of own data: fields, templates, lengths, splits, statistics, the page, and bad input."""

import csv
import html
import json
import random
import re

import numpy as np
import pytest
from prepare_fixtures import (
    check_file,
    decode,
    read,
    run,
    sentence,
    sequences,
    stretches,
    write_chatml_tokenizer,
    write_turn_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    turns = write_turn_tokenizer(folder / "turns")
    return {"turns": turns, "chat": write_chatml_tokenizer(turns, folder / "chat")}


def records(n=80):
    generator = random.Random(11)
    return [
        {
            "who": f"c{i % 5}",
            "ask": f"number {i} {sentence(generator)}",
            "more": sentence(generator) if i % 2 else "",
            "reply": f"reply {i} {sentence(generator)}",
            "kind": "xyz"[i % 3],
            "task": "pq"[i % 2],
            "set": ["train", "train", "train", "dev", "test"][i % 5],
        }
        for i in range(n)
    ]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


PAIR = ("--prompt-field", "ask", "--response-field", "reply")


def prepare(capsys, tmp_path, tokenizer, *arguments, rows=None, verb="jsonl"):
    """(data of the file, stdout) of a preparation that succeeds."""
    file = lines(tmp_path / "own.jsonl", rows or records())
    out = tmp_path / "own.h5"
    words = ["prepare", verb, file, *arguments, "--tokenizer", tokenizer, "--output", out]
    code, text, err = run(capsys, *words)
    assert code == 0, err
    data = read(out)
    check_file(data)
    return data, text


def refused(capsys, tmp_path, tokenizer, *arguments, file=None, verb="jsonl"):
    """(exit code, message) of a preparation that writes nothing."""
    out = tmp_path / "no.h5"
    file = file or lines(tmp_path / "own.jsonl", records())
    code, _, err = run(capsys, "prepare", verb, file, *arguments, "--tokenizer", tokenizer, "--output", out)
    assert not out.exists()
    return code, err


def test_alpaca_writes_the_input_only_where_there_is_one(capsys, tmp_path, tokenizers):
    data, _ = prepare(
        capsys, tmp_path, tokenizers["turns"], *PAIR, "--context-field", "more", "--template", "alpaca",
        "--group-field", "task",
    )  # fmt: skip
    rows = {row["reply"]: row for row in records()}
    for (ids, mask), group in zip(sequences(data), data["sequences/group"], strict=True):
        (own,) = stretches(ids, mask)
        assert own[-1] == data["attrs"]["eos_id"]
        row = rows.pop(decode(data, own[:-1]))
        text = decode(data, ids)
        assert f"### Instruction:\n{row['ask']}\n\n" in text and text.endswith(decode(data, own))
        assert ("### Input:\n" in text) == bool(row["more"]) and row["more"] in text
        assert data["groups/name"][group].decode() == row["task"]
    assert not rows


def test_template_file_uses_any_field_and_no_record_writes_markup(capsys, tmp_path, tokenizers):
    template = tmp_path / "mine.txt"
    template.write_text("<|user|>{{ kind }} {{ prompt }}<|end|>answer: {{ response }}")
    rows = records(40)
    rows[0]["ask"] = "I write <|end|> and {{ response }} myself"
    data, _ = prepare(capsys, tmp_path, tokenizers["turns"], *PAIR, "--template", template, rows=rows)
    end = data["vocab"].index(b"<|end|>")
    found = [(ids, mask) for ids, mask in sequences(data) if "I write" in decode(data, ids)]
    assert len(found) == 1 and decode(data, found[0][0]).startswith("<|bos|><|user|>x I write <|end|> and {{ response")
    for ids, mask in sequences(data):
        assert (ids == end).sum() == 1 + int(data["attrs"]["eos_id"] == end)
        (own,) = stretches(ids, mask)
        assert decode(data, own).startswith(" reply ")


def test_chat_template_has_loss_on_every_turn_of_the_assistant(capsys, tmp_path, tokenizers):
    rows = [
        {
            "who": f"c{i % 4}",
            "talk": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": f"hello {i}"},
                {"role": "assistant", "content": "first"},
                {"role": "assistant", "content": "second"},
                {"from": "human", "value": "and"},
                {"from": "gpt", "value": "third"},
            ],
        }
        for i in range(40)
    ]
    data, _ = prepare(
        capsys, tmp_path, tokenizers["chat"], "--messages-field", "talk", "--client-field", "who",
        "--template", "chat", rows=rows,
    )  # fmt: skip
    for ids, mask in sequences(data):
        own = [decode(data, piece) for piece in stretches(ids, mask)]
        assert own == ["first\nsecond<|im_end|>", "third<|im_end|>"]
        assert decode(data, ids).startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello ")
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *PAIR, "--template", "chat")
    assert code == 2 and "has no chat template" in err


def test_label_words_are_the_response(capsys, tmp_path, tokenizers):
    arguments = ["--prompt-field", "ask", "--label-field", "kind", "--label-words", "x=good,z=fair,y=bad"]
    data, _ = prepare(capsys, tmp_path, tokenizers["turns"], *arguments, "--template", "plain")
    assert [name.decode() for name in data["labels/name"]] == ["good", "fair", "bad"]
    for (ids, mask), label in zip(sequences(data), data["sequences/label"], strict=True):
        (own,) = stretches(ids, mask)
        assert decode(data, own).startswith(data["labels/name"][label].decode())


@pytest.mark.parametrize("side", ["prompt", "left", "right"])
def test_truncation_keeps_what_it_says(capsys, tmp_path, tokenizers, side):
    whole, _ = prepare(capsys, tmp_path, tokenizers["turns"], *PAIR, "--template", "plain")
    lengths = np.diff(whole["sequences/offset"])
    limit = int(np.median(lengths))
    data, text = prepare(
        capsys, tmp_path, tokenizers["turns"], *PAIR, "--template", "plain", "--max-length", str(limit),
        "--truncation-side", side,
    )  # fmt: skip
    assert f"truncated: {(lengths > limit).sum()} of {len(lengths)}" in text
    checked = 0
    by_response = {decode(whole, ids): (ids, mask) for ids, mask in sequences(whole)}
    for ids, _ in sequences(data):
        assert len(ids) <= limit
        if side == "right":
            candidates = [pair for pair in by_response.values() if np.array_equal(pair[0][: len(ids)], ids)]
        elif side == "left":
            candidates = [pair for pair in by_response.values() if np.array_equal(pair[0][-len(ids) :], ids)]
        else:
            candidates = [pair for pair in by_response.values() if np.array_equal(pair[0][-len(ids) + 1 :], ids[1:])]
            assert ids[0] == data["attrs"]["bos_id"]
        assert candidates
        checked += 1
    assert checked


def test_length_policies_drop_and_error(capsys, tmp_path, tokenizers):
    rows = records(40)
    rows[16]["reply"] = "long " * 200
    data, text = prepare(
        capsys, tmp_path, tokenizers["turns"], *PAIR, "--max-length", "300", "--length-policy", "drop", rows=rows
    )
    assert len(data["sequences/part"]) == 39 and "1 too long" in text
    file = lines(tmp_path / "long.jsonl", rows)
    arguments = [*PAIR, "--max-length", "300", "--length-policy", "error"]
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments, file=file)
    assert code == 3 and "long.jsonl:17" in err and "more than --max-length 300" in err


def test_truncation_that_cuts_the_answers_away_says_so(capsys, tmp_path, tokenizers):
    rows = records(40)
    for row in rows[:10]:
        row["ask"] = "long " * 60
    arguments = [*PAIR, "--template", "plain", "--max-length", "60", "--truncation-side", "right"]
    data, text = prepare(capsys, tmp_path, tokenizers["turns"], *arguments, rows=rows)
    assert "10 records lost every loss token" in text and "--truncation-side prompt" in text
    assert len(data["sequences/part"]) == 30


def test_records_without_clients_are_split_by_content(capsys, tmp_path, tokenizers):
    rows = records(200)
    twins = [*rows, *rows[:60]]
    fractions = ("--valid-fraction", "0.2", "--test-fraction", "0.2")
    data, text = prepare(capsys, tmp_path, tokenizers["turns"], *PAIR, *fractions, rows=twins)
    assert [name.decode() for name in data["clients/name"]] == ["(all)", "(held out)"]
    assert list(data["clients/held_out"]) == [0, 1]
    share = np.bincount(data["sequences/part"], minlength=3) / len(twins)
    assert share[0] == pytest.approx(0.6, abs=0.12) and min(share[1:]) > 0.08
    part_of = {}
    for (ids, _), part in zip(sequences(data), data["sequences/part"], strict=True):
        assert part_of.setdefault(ids.tobytes(), part) == part
    assert "duplicates: 60 within a split, 0 texts in more than one split" in text


def test_given_splits_and_duplicates_across_them(capsys, tmp_path, tokenizers):
    rows = records(50)
    rows[3] = {**rows[0], "set": "dev"}
    data, text = prepare(
        capsys, tmp_path, tokenizers["turns"], *PAIR, "--split-field", "set", "--client-field", "who", rows=rows
    )
    assert list(np.bincount(data["sequences/part"])) == [30, 10, 10]
    names = [name.decode() for name in data["clients/name"]]
    assert set(names) == {"c0", "c1", "c2", "(held out)"}
    assert "1 texts in more than one split" in text and "look better than it is" in text


def test_mapping_file_csv_and_parquet_give_the_same(capsys, tmp_path, tokenizers):
    rows = records(60)
    mapping = tmp_path / "fields.json"
    mapping.write_text(json.dumps({"client": "who", "prompt": "ask", "response": "reply", "template": "plain"}))
    first, _ = prepare(capsys, tmp_path, tokenizers["turns"], "--mapping", mapping, rows=rows)
    parquet = pytest.importorskip("pyarrow.parquet")

    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "own.parquet", row_group_size=7)
    with open(tmp_path / "own.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for kind in ("csv", "parquet"):
        out = tmp_path / f"{kind}.h5"
        words = [tmp_path / f"own.{kind}", "--mapping", mapping, "--tokenizer", tokenizers["turns"], "--output", out]
        code, _, err = run(capsys, "prepare", kind, *words)
        assert code == 0, err
        assert np.array_equal(read(out)["tokens/ids"], first["tokens/ids"])


def test_samples_page_marks_loss_and_escapes(capsys, tmp_path, tokenizers):
    rows = records(30)
    for row in rows:
        row["ask"] = "<script>alert(1)</script> naïve 😀"
    page = tmp_path / "samples.html"
    prepare(capsys, tmp_path, tokenizers["turns"], *PAIR, "--samples-page", page, rows=rows)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;" in text and "prefers-color-scheme: dark" in text
    assert "http://" not in text and "https://" not in text and "src=" not in text
    plain = html.unescape(re.sub(r"<[^>]*>", "", text))
    marked = re.findall(r'<i class="l"[^>]*>([^<]*)</i>', text)
    assert "<script>alert(1)</script> naïve 😀" in plain
    assert "reply" in "".join(marked) and "alert" not in "".join(marked)


def test_a_missing_field_names_the_line(capsys, tmp_path, tokenizers):
    rows = records(30)
    del rows[16]["reply"]
    file = lines(tmp_path / "own.jsonl", rows)
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *PAIR, file=file)
    assert code == 3 and "own.jsonl:17: no field 'reply'" in err and "--skip-bad" in err


def test_another_encoding_names_line_and_cure(capsys, tmp_path, tokenizers):
    for verb, header in (("jsonl", ""), ("csv", "ask,reply\n")):
        row = '{"ask": "caf\xe9", "reply": "oui"}\n' if verb == "jsonl" else "caf\xe9,oui\n"
        good = '{"ask": "a", "reply": "b"}\n' if verb == "jsonl" else "a,b\n"
        file = tmp_path / f"latin.{verb}"
        file.write_bytes((header + good * 3 + row).encode("latin-1"))
        code, err = refused(capsys, tmp_path, tokenizers["turns"], *PAIR, file=file, verb=verb)
        line = 4 if verb == "jsonl" else 5
        assert code == 3 and f"latin.{verb}:{line}" in err and "not UTF-8" in err and "iconv" in err


def test_an_empty_client_is_refused_or_left_out(capsys, tmp_path, tokenizers):
    rows = records(40)
    for row in rows:
        if row["who"] == "c2":
            row["reply"] = "word " * 300
    file = lines(tmp_path / "own.jsonl", rows)
    arguments = [*PAIR, "--client-field", "who", "--max-length", "200", "--length-policy", "drop"]
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments, file=file)
    assert code == 3 and "client 'c2' would be empty" in err and "own.jsonl:3" in err
    data, _ = prepare(capsys, tmp_path, tokenizers["turns"], *arguments, "--skip-bad", rows=rows)
    assert len(data["clients/name"]) == 4


def test_a_label_unseen_in_training(capsys, tmp_path, tokenizers):
    rows = records(40)
    rows[4]["kind"] = "strange"  # a test record
    file = lines(tmp_path / "own.jsonl", rows)
    arguments = [*PAIR, "--split-field", "set", "--label-field", "kind"]
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments, file=file)
    assert code == 3 and "label 'strange'" in err and "never in training" in err and "own.jsonl:5" in err
    data, _ = prepare(capsys, tmp_path, tokenizers["turns"], *arguments, "--skip-bad", rows=rows)
    assert len(data["sequences/part"]) == 39 and b"strange" not in list(data["labels/name"])


def test_longer_than_the_positions_and_a_foreign_model(capsys, tmp_path, tokenizers):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 330, "max_position_embeddings": 64}))
    arguments = [*PAIR, "--model", model]
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments, "--max-length", "65")
    assert code == 2 and "--max-length 65 is more than the 64 positions" in err
    rows = records(40)
    rows[0]["ask"] = "long " * 200
    _, text = prepare(capsys, tmp_path, tokenizers["turns"], *arguments, rows=rows)
    assert "longer than the model's 64 positions" in text and "windows of data.sequence_length" in text
    (model / "config.json").write_text(json.dumps({"vocab_size": 100}))
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments)
    assert code == 3 and "330 tokens, but the model" in err and "only 100" in err
    (model / "config.json").write_text(json.dumps({"vocab_size": 330}))
    (model / "tokenizer.json").write_text((tokenizers["chat"] / "tokenizer.json").read_text())
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments)
    assert code == 3 and "another one than" in err and "--tokenizer" in err


@pytest.mark.parametrize(
    "text, code, message",
    [
        ("{{ prompt }} only", 3, "has no {{ response }}"),
        ("{{ response }} {{ response }}", 3, "writes the response 2 times"),
        ("{% if context %}{{ response }}{% endif %}", 3, "writes the response 0 times"),
        ("{{ nothing }} {{ response }}", 3, "'nothing' is undefined"),
        ("{% if %}{{ response }}", 3, "is not Jinja text"),
        (None, 2, "no such file"),
    ],
)
def test_bad_templates(capsys, tmp_path, tokenizers, text, code, message):
    template = tmp_path / "t.txt"
    if text is not None:
        template.write_text(text)
    found, err = refused(capsys, tmp_path, tokenizers["turns"], *PAIR, "--template", template)
    assert found == code and message in err


@pytest.mark.parametrize(
    "talk, message",
    [
        ("text", "is str, a list of"),
        ([{"role": "user", "content": "a"}], "no turn of the assistant"),
        ([{"role": "wizard", "content": "a"}], "the role 'wizard'"),
        ([{"role": "user", "content": 3}], "no text in 'content'"),
        ([{"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}], "after the start"),
    ],
)
def test_bad_messages(capsys, tmp_path, tokenizers, talk, message):
    file = lines(tmp_path / "talk.jsonl", [{"talk": talk}])
    code, err = refused(capsys, tmp_path, tokenizers["turns"], "--messages-field", "talk", file=file)
    assert code == 3 and message in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either --text-field"),
        ([*PAIR, "--messages-field", "m"], "give either --text-field"),
        (["--text-field", "ask", "--template", "alpaca"], "a template is for --prompt-field"),
        ([*PAIR, "--label-words", "a=b"], "--label-words is used with"),
        (["--prompt-field", "ask", "--label-field", "kind", "--label-words", "x"], "is not LABEL=WORD"),
        (["--prompt-field", "ask", "--label-field", "kind", "--label-words", "x=a,y=a"], "occurs twice"),
        ([*PAIR, "--valid-fraction", "0.6", "--test-fraction", "0.5"], "nothing would train"),
    ],
)
def test_usage_errors(capsys, tmp_path, tokenizers, arguments, message):
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments)
    assert code == 2 and message in err


def test_label_without_a_word_and_no_tokenizer(capsys, tmp_path, tokenizers):
    arguments = ["--prompt-field", "ask", "--label-field", "kind", "--label-words", "x=good,y=bad"]
    code, err = refused(capsys, tmp_path, tokenizers["turns"], *arguments)
    assert code == 3 and "label 'z' has no word in --label-words (x, y)" in err
    file = lines(tmp_path / "own.jsonl", records())
    code, _, err = run(capsys, "prepare", "jsonl", file, *PAIR, "--output", tmp_path / "x.h5")
    assert code == 2 and "give --tokenizer DIR, or --model DIR" in err
