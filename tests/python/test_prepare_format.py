"""Chat templates, turn tokens and vocabularies: what is written around the words, compared with transformers' own."""

import json
import random

import numpy as np
import pytest
from hetlora.errors import UserError
from hetlora.prepare.chat_format import choose_format
from hetlora.prepare.tokenizer import load_tokenizer
from prepare_fixtures import sentence, write_chatml_tokenizer, write_turn_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("format")
    turns = write_turn_tokenizer(folder / "turns")
    return turns, write_chatml_tokenizer(turns, folder / "chatml")


def with_template(folder, target, template):
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_text((folder / name).read_text())
    (target / "chat_template.jinja").write_text(template)
    return load_tokenizer(str(target))


def random_chat(seed):
    generator = random.Random(seed)
    own = generator.random() < 0.5
    chat = []
    for _ in range(generator.randint(1, 7)):
        chat.append((own, sentence(generator)))
        own = not own
    return chat


def assemble(tokenizer, chat, format_, system=None):
    words = tokenizer.encode([text for _, text in chat])
    system_ids = None if system is None else tokenizer.encode([system])[0]
    return format_.assemble([(own, ids, True) for (own, _), ids in zip(chat, words, strict=True)], system_ids)


@pytest.mark.parametrize("seed", range(8))
def test_template_gives_the_ids_of_transformers(folders, seed):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.AutoTokenizer.from_pretrained(folders[1])
    tokenizer = load_tokenizer(str(folders[1]))
    chat = random_chat(seed)
    messages = [{"role": "assistant" if own else "user", "content": text} for own, text in chat]
    ids, _ = assemble(tokenizer, chat, choose_format(tokenizer, default_system=True))
    assert reference.apply_chat_template(messages, tokenize=False) == reference.decode(ids)
    assert list(ids) == reference.apply_chat_template(messages, return_dict=False)
    ids, _ = assemble(tokenizer, chat, choose_format(tokenizer), system="I like cats.")
    system = [{"role": "system", "content": "I like cats."}]
    assert list(ids) == reference.apply_chat_template(system + messages, return_dict=False)


def test_default_system_text_is_left_out_unless_asked_for(folders):
    tokenizer = load_tokenizer(str(folders[1]))
    chat = [(False, "hello"), (True, "hello you")]
    without, _ = assemble(tokenizer, chat, choose_format(tokenizer))
    kept, mask = assemble(tokenizer, chat, choose_format(tokenizer, default_system=True))
    vocabulary = tokenizer.vocabulary()
    assert b"Be helpful." in b"".join(vocabulary[i] for i in kept)
    assert b"".join(vocabulary[i] for i in without) == (
        b"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello you<|im_end|>\n"
    )
    assert mask.sum() == len(tokenizer.encode(["hello you"])[0]) + 1


def test_template_with_bos_and_no_system_role(folders, tmp_path):
    template = (
        "{{ '<|bos|>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|end|>' }}"
        "{% else %}{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}"
    )
    tokenizer = with_template(folders[0], tmp_path / "bos", template)
    ids, mask = assemble(
        tokenizer, [(False, "hi"), (True, "you"), (False, "what"), (True, "ok")], choose_format(tokenizer)
    )
    vocabulary = tokenizer.vocabulary()
    assert b"".join(vocabulary[i] for i in ids) == b"<|bos|>[hi] you<|end|>[what] ok<|end|>"
    assert b"".join(vocabulary[i] for i in ids[mask == 1]) == b"you<|end|>ok<|end|>"


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('no roles') }}", "no roles"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor", "fails"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "does not write the words"),
        ("{% for m in messages %}{{ loop.index0 ~ m['content'] ~ '!' }}{% endfor %}", "differently by position"),
        ("{{ messages.__class__.__mro__ }}", "fails"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(folders, tmp_path, template, message):
    tokenizer = with_template(folders[0], tmp_path / "bad", template)
    with pytest.raises(UserError, match=message):
        choose_format(tokenizer)


def test_style_must_fit_the_tokenizer(folders):
    turns, chatml = (load_tokenizer(str(folder)) for folder in folders)
    assert choose_format(turns).style == "turns" and choose_format(chatml).style == "template"
    with pytest.raises(UserError, match="no chat template"):
        choose_format(turns, "template")
    with pytest.raises(UserError, match="lacks"):
        choose_format(chatml, "turns")


def test_plain_style_for_tokenizers_without_turn_tokens(folders):
    tokenizer = load_tokenizer(str(folders[0]))
    ids, mask = assemble(tokenizer, [(False, "hello"), (True, "you")], choose_format(tokenizer, "plain"))
    vocabulary = tokenizer.vocabulary()
    assert b"".join(vocabulary[i] for i in ids) == b"<|bos|>Other:hello\nMe:you\n"
    assert b"".join(vocabulary[i] for i in ids[mask == 1]) == b"you\n"


def test_vocabulary_holds_the_raw_bytes(folders):
    tokenizer = load_tokenizer(str(folders[0]))
    vocabulary = tokenizer.vocabulary()
    text = "Any text: naïve café 😀\t\x01 2018 <|end|>\n"
    assert b"".join(vocabulary[i] for i in tokenizer.encode([text])[0]).decode() == text
    assert vocabulary[:4] == [b"<|bos|>", b"<|user|>", b"<|me|>", b"<|end|>"]
    assert set(range(256)) <= {token[0] for token in vocabulary if len(token) == 1}


def test_batches_do_not_change_the_encoding(folders, monkeypatch):
    tokenizer = load_tokenizer(str(folders[0]))
    texts = [sentence(random.Random(i)) for i in range(50)]
    whole = tokenizer.encode(texts)
    monkeypatch.setattr("hetlora.prepare.tokenizer.BATCH", 7)
    assert all(np.array_equal(a, b) for a, b in zip(whole, tokenizer.encode(texts), strict=True))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no such file"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer"),
        ({"tokenizer.json": None, "tokenizer_config.json": "["}, "is not JSON"),
        ({"tokenizer.json": None, "tokenizer_config.json": json.dumps({"bos_token": "<none>"})}, "has no id"),
    ],
)
def test_bad_tokenizer_folders(folders, tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text((folders[0] / name).read_text() if content is None else content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))
