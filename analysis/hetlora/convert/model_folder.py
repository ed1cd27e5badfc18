"""The model folder that the program reads: which tensors it holds, and writing it whole and checked.

A folder is config.json (LlamaForCausalLM), model.safetensors (one file) and the tokenizer's files. Linear weights are
[d_out, d_in]; a tied output projection is not stored (`tie_word_embeddings`).
"""

import json
from pathlib import Path

from hetlora.errors import InputError, need
from hetlora.files import atomic_folder

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def llama_config(
    *,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab_size: int,
    max_positions: int,
    rope_theta: float,
    rms_eps: float,
    tied: bool,
    bos_id: int | None,
    eos_id: int | None,
    dtype: str,
    head_dim: int | None = None,
) -> dict:
    """config.json of a Llama-architecture model, in the keys that every transformers release reads.

    `rope_theta` is written at top level (older releases) and inside `rope_parameters` (version 5).
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden_size // heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_positions,
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "rms_norm_eps": rms_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a Llama model of this configuration has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (q, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, q),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def check_tensors(found: dict[str, tuple[int, ...]], config: dict, source: str) -> None:
    """InputError that lists every missing, unexpected or wrongly shaped tensor of `found` (name -> shape)."""
    expected = expected_shapes(config)
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"unexpected {name} {list(shape)}" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        more = f" (and {len(problems) - 8} more)" if len(problems) > 8 else ""
        raise InputError(
            f"{source} does not hold the tensors of a plain Llama model: "
            + "; ".join(problems[:8])
            + more
            + "; only the Llama architecture without biases or adapters is supported"
        )


def write_model_folder(target: str, config: dict, tensors: dict, extra_files: dict[str, bytes], source: str) -> str:
    """Check `tensors` (name -> torch tensor, any float dtype), cast them to config['dtype'] and write the folder.

    `extra_files` (name -> content) are the tokenizer's files. The written file is opened again and its header compared
    with what was meant before the folder gets its name. Returns a one-line summary. Errors: InputError.
    """
    torch = need("torch", "convert")
    safetensors_torch = need("safetensors.torch", "convert")
    check_tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, source)
    dtype = getattr(torch, config["dtype"])
    cast = {}
    for name, tensor in tensors.items():
        cast[name] = tensor.detach().to(dtype).contiguous()
        if not bool(torch.isfinite(cast[name]).all()):
            hint = "; --dtype float16 overflows above 65504, try bfloat16" if config["dtype"] == "float16" else ""
            raise InputError(f"{source}: {name} holds values that are not finite as {config['dtype']}{hint}")
    with atomic_folder(Path(target), marker="config.json") as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, content in extra_files.items():
            (folder / name).write_bytes(content)
        safetensors_torch.save_file(cast, str(folder / "model.safetensors"), metadata={"format": "pt"})
        _check_written(folder / "model.safetensors", config)
    n_weights = sum(tensor.numel() for tensor in cast.values())
    return f"wrote {target}: {len(cast)} tensors, {n_weights:,} weights as {config['dtype']}, from {source}"


def _check_written(path: Path, config: dict) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}
    check_tensors(found, config, str(path))
    if kinds != {DTYPES[config["dtype"]]}:
        raise InputError(
            f"{path}: wrote number formats {sorted(kinds)}, meant {DTYPES[config['dtype']]}; disk problem?"
        )
