"""`prepare text` and `prepare tokenizer`: paragraphs, pieces, conversations and the validation tail."""

import json
import random
import textwrap

import numpy as np
import pytest
from hetlora.errors import UserError
from hetlora.prepare import documents
from prepare_fixtures import check_file, decode, read, run, sentence, sequences, write_turn_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_turn_tokenizer(tmp_path_factory.mktemp("text") / "turns")


def novel(blank_lines=True):
    generator = random.Random(2)
    parts = [" ".join(sentence(generator, 6, 12).replace("'", "") + "." for _ in range(6)) for _ in range(60)]
    separator = "\n\n" if blank_lines else "\n"
    return parts, separator.join("\n".join(textwrap.wrap(part, 72)) for part in parts)


def test_wrapped_text_is_unwrapped():
    parts, text = novel()
    assert documents.paragraphs(text) == parts


def test_paragraphs_are_found_without_blank_lines():
    parts, text = novel(blank_lines=False)
    found = documents.paragraphs(text)
    # A last line that happens to be full hides its end; most ends are found and no word is lost.
    assert " ".join(found) == " ".join(parts) and len(set(found) & set(parts)) > 0.7 * len(parts)


def test_text_with_one_paragraph_a_line_is_kept():
    lines = ["short.", "x" * 300, "another."]
    assert documents.paragraphs("\n".join(lines)) == lines


@pytest.mark.parametrize("longest", [10, 50, 400])
def test_pieces_keep_every_word_and_the_limit(longest):
    parts = ["one two three", "y" * 120, "four " * 60, "", "five"]
    found = documents.pieces(parts, longest)
    assert max(map(len, found)) <= longest
    assert "".join("".join(found).split()) == "".join("".join(parts).split())


def test_quoted_speech_becomes_turns():
    parts = [
        "He came in.",
        '"Hello," said he.',
        '"Good day!" she cried. "Sit down."',
        '"Thanks."',
        "They sat.",
        '"Alone."',
    ]
    (found,) = documents.quoted_conversations(parts, 2000)
    assert found.turns == [(False, "Hello."), (True, "Good day! Sit down."), (False, "Thanks.")]
    single = ["'Don't go,' he said, 'I can't bear it.'", "'I won't.'", "'You're kind.'"]
    (found,) = documents.quoted_conversations(single, 2000)
    assert [words for _, words in found.turns] == ["Don't go, I can't bear it.", "I won't.", "You're kind."]


def test_speeches_become_two_sided_conversations():
    scene = [("A", "one"), ("B", "two"), ("C", "three"), ("A", "four"), ("A", "five")]
    assert documents.conversation(scene).turns == [(True, "one"), (False, "two\nthree"), (True, "four\nfive")]
    assert len(documents.cut_speeches(scene * 10, 30)) > 5


def test_text_file_masks_everything_and_keeps_a_tail_for_validation(capsys, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(novel()[1] + '\n\n"Hello."\n\n"You <|end|> too."\n\n"Bye."\n')
    plays = [{"act": i // 8, "who": "AB"[i % 2], "text": f"speech {i}"} for i in range(200)]
    (tmp_path / "plays.jsonl").write_text("\n".join(json.dumps(play) for play in plays))
    dialogue = f"{tmp_path / 'plays.jsonl'}:who:act"
    arguments = ["--tokenizer", tokenizer, "--out", tmp_path / "o.h5", "--piece-chars", "300", "--quoted"]
    code, _, err = run(capsys, "prepare", "text", tmp_path / "a.txt", *arguments, "--dialogue", dialogue)
    assert code == 0, err
    data = read(tmp_path / "o.h5")
    check_file(data)
    assert len(data["clients/name"]) == 1 and not data["clients/held_out"].any()
    assert all(mask[1:].all() and not mask[0] for _, mask in sequences(data))
    parts = data["sequences/part"]
    assert (parts == 1).sum() == max(1, round(0.01 * len(parts))) and parts[-1] == 1
    texts = [decode(data, ids) for ids, _ in sequences(data)]
    assert all(text.startswith("<|bos|>") for text in texts)
    assert "<|bos|><|user|>Hello.<|end|><|me|>You <|end|> too.<|end|><|user|>Bye.<|end|>" in texts
    ids = next(
        ids for (ids, _), text in zip(sequences(data), texts, strict=True) if "Bye." in text and "Hello." in text
    )
    assert (ids == data["vocab"].index(b"<|end|>")).sum() == 3  # the one inside the words is plain text
    assert sum(text.count("<|me|>speech") for text in texts) == 100


def test_limit_takes_a_share_of_each_file(capsys, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(novel()[1])
    arguments = [tmp_path / "a.txt", "--tokenizer", tokenizer, "--out", tmp_path / "o.h5", "--piece-chars", "300"]
    assert run(capsys, "prepare", "text", *arguments, "--max-megabytes", "0.004")[0] == 0
    data = read(tmp_path / "o.h5")
    assert 2000 < sum(len(decode(data, ids).encode()) - len("<|bos|>") for ids, _ in sequences(data)) <= 4000


def test_documents_are_shuffled_the_same_way_each_time(capsys, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(novel()[1])
    tokens = []
    for seed in (0, 0, 1):
        arguments = ["--tokenizer", tokenizer, "--out", tmp_path / "o.h5", "--piece-chars", "300", "--seed", seed]
        assert run(capsys, "prepare", "text", tmp_path / "a.txt", *arguments)[0] == 0
        tokens.append(read(tmp_path / "o.h5")["tokens/ids"])
    assert np.array_equal(tokens[0], tokens[1]) and not np.array_equal(tokens[0], tokens[2])


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 2, "no input"),
        (["--dialogue", "x.jsonl"], 2, "was expected"),
        (["{}/empty.txt"], 3, "hold no text"),
        (["{}/one.txt"], 3, "one document only"),
        (["{}/x.pdf"], 3, ".txt and .jsonl"),
        (["{}/latin.txt"], 3, "not UTF-8"),
        (["{}/one.txt", "--max-megabytes", "0"], 2, "positive"),
    ],
)
def test_bad_input(capsys, tokenizer, tmp_path, arguments, code, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "one.txt").write_text("just this")
    (tmp_path / "x.pdf").write_text("text")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    arguments = [argument.format(tmp_path) for argument in arguments]
    found, _, err = run(capsys, "prepare", "text", *arguments, "--tokenizer", tokenizer, "--out", tmp_path / "o.h5")
    assert found == code and message in err


def test_tokenizer_folder(capsys, tmp_path):
    (tmp_path / "a.txt").write_text(novel()[1])
    common = ["prepare", "tokenizer", tmp_path / "a.txt", "--vocab-size"]
    assert run(capsys, *common, "300", "--out", tmp_path / "tok")[0] == 0
    config = json.loads((tmp_path / "tok" / "tokenizer_config.json").read_text())
    assert config["bos_token"] == "<|bos|>" and config["eos_token"] == "<|end|>"
    code, _, err = run(capsys, *common, "100", "--out", tmp_path / "small")
    assert code == 2 and "at least 260" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("do not delete")
    code, _, err = run(capsys, *common, "300", "--out", tmp_path / "mine")
    assert code == 3 and "not replaced" in err and (tmp_path / "mine" / "letter.txt").exists()


def test_dialogue_specification():
    assert documents.parse_dialogue("C:/a.jsonl:who:x,y") == ("C:/a.jsonl", "who", ["x", "y"])
    with pytest.raises(UserError, match="was expected"):
        documents.parse_dialogue("a.jsonl::x")
