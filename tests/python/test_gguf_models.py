"""`model.path` as a GGUF file: the same run, to the bit, as on a folder of the same weights; and what is refused.

Files are written with the `gguf` package, which also gives the float32 values of every quantised format; the Python
converter (`hetlora convert gguf`) is the other reader.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import families
import micro
import numpy as np
import pytest
import torch
from program import columns, needs_mpirun, needs_program, start, write_ini
from resumed_runs import CHANGES, assert_same, finish, launch, wait_for_round
from safetensors.numpy import load_file, save_file
from test_resume_kills import ranks_of

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

FORMATS = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
SMALL = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
LARGE = ("Q4_K", "Q5_K", "Q6_K")  # blocks of 256: the package reads them, but does not make them


def gguf_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}"
    layer, inner = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


def stored(array: np.ndarray, kind: FORMATS, rng: np.random.Generator) -> np.ndarray:
    """The array's bytes in this format; for LARGE random blocks with small scales, whatever the array holds."""
    if kind.name not in LARGE:
        return gguf.quantize(array, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(array.size // block, size), dtype=np.uint8)
    for at in (208,) if kind.name == "Q6_K" else (0, 2):
        blocks[:, at : at + 2] = rng.normal(0, 3e-5, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(array.shape[0], -1)


def add_rotary_rule(writer: gguf.GGUFWriter, rope: dict, head_dim: int) -> None:
    """A scaled rule as llama.cpp's converter writes it: linear as keys, llama3 as a tensor of factors."""
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] != "llama3":
        return
    frequency = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for wavelength in (2 * np.pi / frequency).tolist():
        if wavelength < high or wavelength > low:
            factors.append(1.0 if wavelength < high else rope["factor"])
            continue
        smooth = rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]
        smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    assert min(factors) == 1.0 and max(factors) == rope["factor"] and any(1 < f < max(factors) for f in factors)
    writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))


def write_twins(folder: Path, file: Path, formats: tuple[str, ...], spoil=None) -> Path:
    """Writes `file` from a model folder, its matrices in these formats by turns, and what they became to the folder.

    `spoil(writer, architecture)` may add to the metadata. Returns the file.
    """
    config = json.loads((folder / "config.json").read_text())
    family, rng = config["model_type"], np.random.default_rng(3)
    heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer = gguf.GGUFWriter(file, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(micro.BOS)
    writer.add_eos_token_id(micro.EOS)
    add_rotary_rule(writer, config["rope_parameters"], head_dim)
    if spoil:
        spoil(writer, family)
    weights, turn = load_file(folder / "model.safetensors"), 0
    for name, array in weights.items():
        target = gguf_name(name)
        pairs = next((n for end, n in heads.items() if family == "llama" and target.endswith(end)), None)
        if pairs:
            array = array.reshape(pairs, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = FORMATS.F32
        if array.ndim == 2:
            kind, turn = FORMATS[formats[turn % len(formats)]], turn + 1
            if array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
                kind = FORMATS.F16
        raw = stored(np.ascontiguousarray(array), kind, rng)
        writer.add_tensor(target, raw, raw_dtype=kind)
        back = gguf.dequantize(raw, kind).astype(np.float32).reshape(array.shape)
        if pairs:
            back = back.reshape(pairs, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        weights[name] = np.ascontiguousarray(back)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return file


def finished(*words):
    done = start(*words)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    return micro.build_corpus(tmp_path_factory.mktemp("gguf") / "micro.h5", 0)


def run_of(model: Path, data: Path, folder: Path, *words):
    """Runs two rounds, exports the adapter; returns (columns of the log, tensors, adapter_config.json)."""
    changes = {"experiment": {"rounds": 2, "clients_per_round": 3}, "lora": {"targets": "all-linear"}}
    ini = write_ini(folder / "run.ini", (model, data), changes)
    assert "nothing was trained" in finished("check", "--config", ini, *words).stdout
    finished("run", "--config", ini, "--output", folder / "run", *words)
    finished("export", folder / "run", "--to", folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    log = {name: value for name, value in columns(folder / "run" / "run.h5").items()}
    return log, load_file(folder / "adapter" / "adapter_model.safetensors"), config


def assert_twins(file: Path, folder: Path, data: Path, tmp_path: Path, *words):
    (folder / "tokenizer.json").unlink(missing_ok=True)  # the data's is another
    log, adapter, config = run_of(file, data, tmp_path / "one", *words)
    log_again, adapter_again, config_again = run_of(folder, data, tmp_path / "two", *words)
    assert config["base_model_name_or_path"] == str(file) and config_again["base_model_name_or_path"] == str(folder)
    assert adapter.keys() == adapter_again.keys() and len(adapter) > 0
    for name, tensor in adapter.items():
        assert tensor.tobytes() == adapter_again[name].tobytes(), name
        assert np.any(tensor)
    assert log.keys() == log_again.keys() and any(name.endswith("eval_loss") for name in log)
    different = [name for name in log if log[name] != log_again[name]]
    assert not different
    assert finished("info", file).stdout.splitlines()[1:] == finished("info", folder).stdout.splitlines()[1:]


# Llama 3.2's, with a theta at which heads of 10 have frequencies of all three kinds.
SCALED = {
    "llama3": {
        "rope_type": "llama3", "rope_theta": 100000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
}  # fmt: skip


@needs_program
@pytest.mark.parametrize("family, formats, rope, words", [
    ("llama", SMALL, "default", ()),
    ("llama", ("F32",), "tied", ("model.precision=fp64",)),
    ("qwen2", ("BF16", "Q8_0"), "default", ("model.precision=bf16",)),
    ("qwen3", ("F16", "Q4_0"), "default", ()),
    ("llama", ("F16",), "llama3", ()),
    ("qwen2", ("F32",), "linear", ()),
])  # fmt: skip
def test_a_run_on_the_file_is_the_run_on_a_folder_of_its_weights(family, formats, rope, words, data, tmp_path):
    folder = families.build_family(tmp_path / "model", family, "default")
    if rope in SCALED:
        config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": SCALED[rope]}
        (folder / "config.json").write_text(json.dumps(config))
    if rope == "tied":
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    file = write_twins(folder, tmp_path / "m.gguf", formats)
    assert_twins(file, folder, data, tmp_path, *words)


@needs_program
def test_formats_of_large_blocks(data, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(
        vocab_size=micro.VOCAB_SIZE, hidden_size=256, intermediate_size=512, num_hidden_layers=2, head_dim=32,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=256, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )).save_pretrained(tmp_path / "model")  # fmt: skip
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"bos_token_id": micro.BOS, "eos_token_id": micro.EOS})
    )
    file = write_twins(tmp_path / "model", tmp_path / "m.gguf", LARGE)
    # Wide enough for the path of the products to be chosen by a stopwatch, which must not differ between the two.
    assert_twins(file, tmp_path / "model", data, tmp_path, "compute.gemm=mkl")


def test_the_converter_reads_the_same_numbers(tmp_path):
    """The files of this test are those that the Python converter takes, and it undoes the same order of rows."""
    from hetlora.convert.gguf import load_weights

    folder = families.build_family(tmp_path / "model", "llama", "default")
    file = write_twins(folder, tmp_path / "m.gguf", SMALL, spoil=lambda w, _: w.add_token_list(["x"] * 96))
    read = load_weights(file)
    for name, array in load_file(folder / "model.safetensors").items():
        assert read[name].numpy().tobytes() == array.tobytes(), name


@needs_program
def test_a_converted_file_is_the_same_run(data, tmp_path):
    from hetlora.__main__ import main
    from test_convert_folders import write_gguf, write_turn_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = write_turn_tokenizer(tmp_path / "tok") / "tokenizer.json"
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=340, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0}, initializer_range=0.18,
    ))  # fmt: skip
    file = write_gguf(tmp_path / "m.gguf", model, tokenizer)
    assert main(["convert", "gguf", str(file), "--to", str(tmp_path / "folder")]) == 0
    assert_twins(file, tmp_path / "folder", data, tmp_path)


@needs_program
@needs_mpirun
def test_two_mpi_ranks_and_a_killed_and_resumed_run_are_the_same_run(data, tmp_path):
    folder = families.build_family(tmp_path / "model", "llama", "default")
    file = write_twins(folder, tmp_path / "m.gguf", ("Q8_0", "F16"))
    ini = write_ini(tmp_path / "run.ini", (file, data), CHANGES)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished("run", "--config", ini, "--output", whole)
    process = launch("run", "--config", ini, "--output", killed, mpi_ranks=2)
    wait_for_round(killed, 2, process)
    os.kill(ranks_of(process.pid)[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (killed / "COMPLETE").exists(), "the run was over before the test could touch it"
    finish(ini, killed, mpi_ranks=2)
    assert_same(killed, whole)


@needs_program
@pytest.mark.parametrize("spoil, words", [
    (lambda w, a: w.add_expert_count(8), ["expert_count` = 8"]),
    (lambda w, a: w.add_uint32(f"{a}.attention.sliding_window", 64), ["llama.attention.sliding_window"]),
    (lambda w, a: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), ["rope.scaling.type` = yarn"]),
    (lambda w, a: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), ["factors in the tensor rope_freqs"]),
    (lambda w, a: w.add_tensor("rope_freqs.weight", np.array([1, 1, 3.9, 8], np.float32)), ["not those of Llama 3.1"]),
    (lambda w, a: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), ["rope_parameters.factor` is 0"]),
    (lambda w, a: w.add_tensor("blk.0.attn_q.bias", np.ones(40, np.float32)), ["blk.0.attn_q.bias", "not used"]),
    (lambda w, a: w.add_token_list(["x"] * 95), ["95 tokens, but 96 rows"]),
    (lambda w, a: w.kv_data[0].pop(f"{a}.context_length"), ["llama.context_length` is missing"]),
    (lambda w, a: w.kv_data[0].update({f"{a}.block_count": gguf.GGUFValue(3, gguf.GGUFValueType.UINT32)}),
     ["blk.2.attn_norm.weight", "is missing"]),
    (lambda w, a: w.kv_data[0].update({f"{a}.embedding_length": gguf.GGUFValue(1 << 30, gguf.GGUFValueType.UINT32)}),
     ["token_embd.weight has the shape [96, 32]"]),
    (lambda w, a: w.kv_data[0].update({"general.architecture": gguf.GGUFValue("gemma3", gguf.GGUFValueType.STRING)}),
     ["general.architecture is `gemma3`", "llama (Mistral 7B among them), qwen2 and qwen3"]),
])  # fmt: skip
def test_what_is_not_implemented_is_refused(spoil, words, data, tmp_path):
    folder = families.build_family(tmp_path / "model", "llama", "default")
    file = write_twins(folder, tmp_path / "m.gguf", ("F32",), spoil)
    done = start("check", "--config", write_ini(tmp_path / "run.ini", (file, data)))
    assert done.returncode == 3, done.stderr
    for word in [str(file), *words]:
        assert word in done.stderr, done.stderr


@needs_program
def test_what_is_no_whole_file_and_what_needs_a_folder(data, tmp_path):
    folder = families.build_family(tmp_path / "model", "llama", "default")
    file = write_twins(folder, tmp_path / "m.gguf", ("Q8_0",))
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-100])
    done = start("check", "--config", write_ini(tmp_path / "cut.ini", (tmp_path / "cut.gguf", data)))
    assert done.returncode == 3 and "cut off" in done.stderr and "cut.gguf" in done.stderr
    done = start("check", "--config", write_ini(tmp_path / "data.ini", (data, data)))
    assert done.returncode == 3 and "is not a GGUF file" in done.stderr
    done = start("info", tmp_path / "cut.gguf")
    assert done.returncode == 3 and "cut off" in done.stderr

    ini = write_ini(tmp_path / "run.ini", (file, data), {"experiment": {"rounds": 1, "clients_per_round": 2}})
    finished("run", "--config", ini, "--output", tmp_path / "run")
    done = finished("export", tmp_path / "run", "--merged", "--to", tmp_path / "merged")
    assert f"hetlora convert gguf {file} --to DIR" in done.stdout
    finished("evaluate", "--config", ini, f"model.path={tmp_path / 'merged'}")
    done = start("prepare", "text", "x.txt", "--tokenizer", file, "--out", tmp_path / "x.h5")
    assert done.returncode in (2, 3) and "hetlora convert gguf" in done.stderr, done.stderr
