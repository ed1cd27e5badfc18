"""`convert llama2c`: converted weights against an own forward pass with llama2.c's rotary embedding, and bad files."""

import json
import struct

import numpy as np
import pytest
from prepare_fixtures import run, shared_data

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = dict(dim=24, hidden=40, layers=2, heads=6, kv_heads=2, vocab=270, seq_len=32)


def weights(sizes, tied, seed=0):
    """Random arrays in the names and shapes of llama2.c."""
    rng = np.random.default_rng(seed)
    d, h, n, v = sizes["dim"], sizes["hidden"], sizes["layers"], sizes["vocab"]
    kv = d // sizes["heads"] * sizes["kv_heads"]
    shapes = dict(
        embed=(v, d),
        norm_1=(n, d),
        q=(n, d, d),
        k=(n, kv, d),
        v=(n, kv, d),
        o=(n, d, d),
        norm_2=(n, d),
        gate=(n, h, d),
        down=(n, d, h),
        up=(n, h, d),
        norm_end=(d,),
    )
    if not tied:
        shapes["head"] = (v, d)
    return {name: rng.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}


def write_checkpoint(path, sizes, arrays, version):
    ints = [sizes[name] for name in ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "seq_len")]
    tied = "head" not in arrays
    if version == 0:
        ints[5] *= 1 if tied else -1
        order = ["embed", "norm_1", "q", "k", "v", "o", "norm_2", "gate", "down", "up", "norm_end"]
        data = struct.pack("<7i", *ints) + b"".join(arrays[name].tobytes() for name in order)
        data += np.zeros(sizes["seq_len"] * sizes["dim"] // sizes["heads"], dtype="<f4").tobytes()
    else:
        order = ["norm_1", "norm_2", "norm_end", "embed", "q", "k", "v", "o", "gate", "down", "up"]
        data = (struct.pack("<Ii7iB", 0x616B3432, 1, *ints, tied)).ljust(256, b"\0")
        data += b"".join(arrays[name].tobytes() for name in order)
    path.write_bytes(data + (b"" if tied else arrays["head"].tobytes()))
    return path


def write_tokenizer(path, pieces=(" ", "a", "b", "ab", " a", "é", "c", "bc", "abc", "d", " d"), scores=None):
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    data = struct.pack("<i", max(len(token.encode()) for token in tokens))
    for index, token in enumerate(tokens):
        raw = token.encode()
        data += struct.pack("<fi", 0.0 if index < 259 else -(index - 259.0), len(raw)) + raw
    path.write_bytes(data)
    return path


def forward(sizes, arrays, ids):
    """Logits [n, vocab] in float64 by the formulas of llama2.c's run.c: adjacent-pair rotation, grouped heads."""

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    heads, kv_heads, n = sizes["heads"], sizes["kv_heads"], len(ids)
    size = sizes["dim"] // heads
    angle = np.arange(n)[:, None] / 10000 ** (np.arange(0, size, 2) / size)
    turn = np.exp(1j * angle)[:, None, :]

    def rotate(x):  # [n, heads, size], elements 2i and 2i+1 are one complex number
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = a["embed"][ids]
    for layer in range(sizes["layers"]):
        y = norm(x, a["norm_1"][layer])
        q = rotate((y @ a["q"][layer].T).reshape(n, heads, size))
        k = rotate((y @ a["k"][layer].T).reshape(n, kv_heads, size)).repeat(heads // kv_heads, axis=1)
        v = (y @ a["v"][layer].T).reshape(n, kv_heads, size).repeat(heads // kv_heads, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size) + np.triu(np.full((n, n), -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", p, v).reshape(n, -1) @ a["o"][layer].T
        y = norm(x, a["norm_2"][layer])
        gate = y @ a["gate"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ a["up"][layer].T)) @ a["down"][layer].T
    return norm(x, a["norm_end"]) @ a.get("head", a["embed"]).T


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_llama2c(capsys, tmp_path, version, tied):
    arrays = weights(SIZES, tied)
    file = write_checkpoint(tmp_path / "m.bin", SIZES, arrays, version)
    tokenizer = write_tokenizer(tmp_path / "t.bin")
    code, text, err = run(capsys, "convert", "llama2c", file, "--tokenizer", tokenizer, "--to", tmp_path / "out")
    assert code == 0 and "weights as float32" in text, err
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = np.random.default_rng(1).integers(0, SIZES["vocab"], 20)
    with torch.no_grad():
        found = model(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.abs(found - forward(SIZES, arrays, ids)).max() < 2e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] == tied


def llama2c_encode(pieces, scores, text):
    """run.c's encode(): characters, byte fallback, then merge the best-scoring adjacent pair until none is left."""
    vocab = {piece: index for index, piece in enumerate(pieces)}
    ids = []
    for character in " " + text:
        if character in vocab:
            ids.append(vocab[character])
        else:
            ids += [3 + byte for byte in character.encode()]
    while True:
        best = None
        for i in range(len(ids) - 1):
            joined = vocab.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if joined is not None and (best is None or scores[joined] > best[0]):
                best = (scores[joined], i, joined)
        if best is None:
            return ids
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.mark.parametrize("text", ["abc", "ab cab d d", "é x\n☃ abcabcabd", "a", "  a  ab"])
def test_tokenizer_encodes_as_llama2c(capsys, tmp_path, text):
    from hetlora.convert.llama2c_tokenizer import read_llama2c_tokenizer, tokenizer_folder_files

    vocabulary = read_llama2c_tokenizer(write_tokenizer(tmp_path / "t.bin"))
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_folder_files(vocabulary, 32)["tokenizer.json"].decode())
    ids = tokenizer.encode(text).ids
    assert ids == [1, *llama2c_encode(vocabulary.pieces, vocabulary.scores, text)]
    assert tokenizer.decode(ids) == text


def test_real_stories260k_tells_its_story(capsys, tmp_path):
    file = shared_data("stories260k", "stories260K.bin")
    tokenizer = shared_data("stories260k", "tok512.bin")
    assert run(capsys, "convert", "llama2c", file, "--tokenizer", tokenizer, "--to", tmp_path / "out")[0] == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    start = torch.tensor([[1]])
    ids = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=60, do_sample=False)[0]
    expected = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
        "a big, red ball."
    )
    text = words.decode(ids, skip_special_tokens=True)
    assert text.startswith(expected)
    assert words(expected).input_ids == ids[: len(words(expected).input_ids)].tolist()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda data: data[:20], "too few"),
        (lambda data: data[:-4], "its header promises"),
        (lambda data: data + b"\0\0\0\0", "its header promises"),
        (lambda data: b"GGUF" * 64, "not a llama2.c checkpoint"),
        (lambda data: struct.pack("<Ii", 0x616B3432, 2) + data[8:], "version 2"),
        (lambda data: data[:28] + struct.pack("<f", float("nan")) + data[32:], "not finite"),
        (lambda data: data[:20] + struct.pack("<i", 300) + data[24:], "its header promises"),
    ],
)
def test_bad_checkpoints_are_refused(capsys, tmp_path, spoil, message):
    file = write_checkpoint(tmp_path / "m.bin", SIZES, weights(SIZES, True), 0)
    file.write_bytes(spoil(file.read_bytes()))
    tokenizer = write_tokenizer(tmp_path / "t.bin")
    code, _, err = run(capsys, "convert", "llama2c", file, "--tokenizer", tokenizer, "--to", tmp_path / "out")
    assert code == 3 and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "t.bin"]


def test_tokenizer_of_another_model_is_refused(capsys, tmp_path):
    file = write_checkpoint(tmp_path / "m.bin", SIZES, weights(SIZES, True), 0)
    tokenizer = write_tokenizer(tmp_path / "t.bin", pieces=("a", "b"))
    code, _, err = run(capsys, "convert", "llama2c", file, "--tokenizer", tokenizer, "--to", tmp_path / "out")
    assert code == 3 and "has 261 tokens" in err and "trained with 270" in err


@pytest.mark.parametrize(
    "content, message",
    [(b"\1\0\0\0" + b"\xff" * 8, "has length"), (b"\1\0\0\0\0", "ends inside"), (b"", "holds 0 tokens")],
)
def test_bad_tokenizers_are_refused(capsys, tmp_path, content, message):
    file = write_checkpoint(tmp_path / "m.bin", SIZES, weights(SIZES, True), 0)
    (tmp_path / "t.bin").write_bytes(content)
    code, _, err = run(capsys, "convert", "llama2c", file, "--tokenizer", tmp_path / "t.bin", "--to", tmp_path / "out")
    assert code == 3 and message in err
