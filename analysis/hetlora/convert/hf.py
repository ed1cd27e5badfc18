"""A Hugging Face folder of a Llama-architecture model to one checked model folder (one file, one number format)."""

import json
from pathlib import Path

from hetlora.convert.model_folder import llama_config, write_model_folder
from hetlora.errors import InputError, need
from hetlora.files import existing_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.json",
)


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files of a folder: the one, or those that model.safetensors.index.json lists."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise InputError(f"{index} is not a safetensors index: {error}") from error
        return [existing_file(folder / name, f"a part listed in {index.name}") for name in names]
    raise InputError(f"{folder} has neither model.safetensors nor its index; older .bin weights are not read")


def read_config(folder: Path, dtype: str) -> dict:
    """The folder's config.json reduced to what this project reads; other architectures are an InputError."""
    path = existing_file(folder / "config.json", "the model's config.json")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if raw.get("model_type") != "llama":
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}; only 'llama' is supported")
    if raw.get("quantization_config"):
        raise InputError(f"{path}: the model is quantised; convert the full-precision original or its GGUF instead")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unsupported = [f"rope type {kind!r}"] if kind != "default" else []
    unsupported += [key for key in ("attention_bias", "mlp_bias") if raw.get(key)]
    unsupported += [f"hidden_act {raw['hidden_act']!r}"] if raw.get("hidden_act", "silu") != "silu" else []
    if unsupported:
        raise InputError(f"{path}: not supported: {', '.join(unsupported)}")
    try:
        return llama_config(
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim"),
            vocab_size=raw["vocab_size"],
            max_positions=raw.get("max_position_embeddings", 2048),
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
            rms_eps=raw.get("rms_norm_eps", 1e-6),
            tied=bool(raw.get("tie_word_embeddings", False)),
            bos_id=raw.get("bos_token_id"),
            eos_id=raw.get("eos_token_id"),
            dtype=dtype,
        )
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}; is it a Llama config.json?") from error


def convert_hf(source: str, target: str, dtype: str) -> str:
    """Write the model folder `target` from the Hugging Face folder `source`; returns a summary line."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder} (a Hugging Face model folder); check the path")
    if folder.resolve() == Path(target).expanduser().resolve():
        raise InputError(f"--to {target} is the folder to be read; choose another one")
    config = read_config(folder, dtype)
    need("torch", "convert")
    safetensors_torch = need("safetensors.torch", "convert")
    tensors = {}
    for file in weight_files(folder):
        try:
            tensors |= safetensors_torch.load_file(str(file))
        except Exception as error:  # safetensors raises its own type on any malformed file
            raise InputError(f"{file} cannot be read as safetensors: {error}") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    return write_model_folder(target, config, tensors, files, str(folder))
