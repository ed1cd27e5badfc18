"""llama2.c checkpoints (legacy header and version 1) and its tokenizer file to a model folder.

llama2.c rotates adjacent elements (2i, 2i+1) of a head, Hugging Face's Llama rotates (i, i + head_dim/2). The rows of
q_proj and k_proj are reordered within each head, after which both compute the same attention scores.
"""

import json
import struct
from pathlib import Path

import numpy as np

from hetlora.convert.llama2c_tokenizer import read_llama2c_tokenizer, tokenizer_folder_files
from hetlora.convert.model_folder import llama_config, write_model_folder
from hetlora.errors import InputError, need
from hetlora.files import existing_file

MAGIC_V1 = 0x616B3432  # "ak42"
V1_HEADER_BYTES = 256
INTS = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "seq_len")


def read_header(data: bytes, path: Path) -> tuple[dict, int, int]:
    """(sizes by name with 'tied', byte offset of the weights, header version 0 or 1)."""
    if len(data) < 28:
        raise InputError(f"{path} has {len(data)} bytes, too few for a llama2.c header (28)")
    magic, version = struct.unpack_from("<Ii", data)
    if magic == MAGIC_V1:
        if version != 1:
            raise InputError(f"{path} has llama2.c version {version}; legacy and version 1 (float32) are supported")
        if len(data) < V1_HEADER_BYTES:
            raise InputError(f"{path} has {len(data)} bytes, too few for a version 1 header ({V1_HEADER_BYTES})")
        sizes = dict(zip(INTS, struct.unpack_from("<7i", data, 8), strict=True))
        sizes["tied"] = data[8 + 28] != 0
        offset, kind = V1_HEADER_BYTES, 1
    else:
        sizes = dict(zip(INTS, struct.unpack_from("<7i", data), strict=True))
        sizes["tied"] = sizes["vocab"] > 0  # a negative vocabulary size is how the legacy header says "not tied"
        sizes["vocab"] = abs(sizes["vocab"])
        offset, kind = 28, 0
    positive = all(0 < sizes[name] < 1 << 24 for name in INTS)
    if not positive or sizes["dim"] % sizes["heads"] or sizes["heads"] % sizes["kv_heads"]:
        raise InputError(f"{path} is not a llama2.c checkpoint: its header reads { ({n: sizes[n] for n in INTS}) }")
    return sizes, offset, kind


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix [heads * head_dim, dim] from adjacent pairs to the half-split order, head by head.

    New row i of a head is old row 2i, new row head_dim/2 + i is old row 2i + 1.
    """
    rows, columns = weight.shape
    head_dim = rows // heads
    return weight.reshape(heads, head_dim // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


def layout(sizes: dict, kind: int) -> list[tuple[str, tuple[int, ...]]]:
    """Order and shape of the float32 arrays in the file. Names starting with '-' are not used."""
    dim, hidden, layers, vocab = sizes["dim"], sizes["hidden"], sizes["layers"], sizes["vocab"]
    head_dim = dim // sizes["heads"]
    kv = sizes["kv_heads"] * head_dim
    embedding = [("embed", (vocab, dim))]
    attention = [
        ("q", (layers, dim, dim)),
        ("k", (layers, kv, dim)),
        ("v", (layers, kv, dim)),
        ("o", (layers, dim, dim)),
    ]
    mlp = [("gate", (layers, hidden, dim)), ("down", (layers, dim, hidden)), ("up", (layers, hidden, dim))]
    norm_1, norm_2, norm_end = [("norm_1", (layers, dim))], [("norm_2", (layers, dim))], [("norm_end", (dim,))]
    if kind == 1:
        parts = norm_1 + norm_2 + norm_end + embedding + attention + mlp
    else:
        rope = [("-rope", (2, sizes["seq_len"], head_dim // 2))]
        parts = embedding + norm_1 + attention + norm_2 + mlp + norm_end + rope
    return parts + ([] if sizes["tied"] else [("head", (vocab, dim))])


def read_arrays(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(sizes, arrays by short name) of a checkpoint; the file's length must fit its header exactly."""
    data = path.read_bytes()
    sizes, offset, kind = read_header(data, path)
    parts = layout(sizes, kind)
    expected = offset + 4 * sum(int(np.prod(shape)) for _, shape in parts)
    if len(data) != expected:
        raise InputError(f"{path} has {len(data)} bytes, its header promises {expected}; is the file complete?")
    arrays = {}
    for name, shape in parts:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype="<f4", count=count, offset=offset).reshape(shape)
        offset += 4 * count
    return sizes, arrays


def hf_tensors(sizes: dict, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face tensor names to float32 arrays, q and k reordered."""
    tensors = {"model.embed_tokens.weight": arrays["embed"], "model.norm.weight": arrays["norm_end"]}
    for layer in range(sizes["layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": arrays["norm_1"][layer],
            prefix + "post_attention_layernorm.weight": arrays["norm_2"][layer],
            prefix + "self_attn.q_proj.weight": half_split_rows(arrays["q"][layer], sizes["heads"]),
            prefix + "self_attn.k_proj.weight": half_split_rows(arrays["k"][layer], sizes["kv_heads"]),
            prefix + "self_attn.v_proj.weight": arrays["v"][layer],
            prefix + "self_attn.o_proj.weight": arrays["o"][layer],
            prefix + "mlp.gate_proj.weight": arrays["gate"][layer],
            prefix + "mlp.up_proj.weight": arrays["up"][layer],
            prefix + "mlp.down_proj.weight": arrays["down"][layer],
        }
    if not sizes["tied"]:
        tensors["lm_head.weight"] = arrays["head"]
    return tensors


def convert_llama2c(path: str, tokenizer: str, target: str, dtype: str) -> str:
    """Write the model folder `target` from a llama2.c checkpoint and tokenizer; returns a summary line."""
    file = existing_file(path, "a llama2.c checkpoint")
    vocabulary = read_llama2c_tokenizer(existing_file(tokenizer, "a llama2.c tokenizer"))
    sizes, arrays = read_arrays(file)
    if len(vocabulary.pieces) != sizes["vocab"]:
        raise InputError(
            f"{tokenizer} has {len(vocabulary.pieces)} tokens, but {file} was trained with {sizes['vocab']}; "
            "give the tokenizer that belongs to the checkpoint"
        )
    torch = need("torch", "convert")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in hf_tensors(sizes, arrays).items()}
    config = llama_config(
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        vocab_size=sizes["vocab"],
        max_positions=sizes["seq_len"],
        rope_theta=10000.0,
        rms_eps=1e-5,
        tied=sizes["tied"],
        bos_id=1,
        eos_id=2,
        dtype=dtype,
    )
    files = tokenizer_folder_files(vocabulary, sizes["seq_len"])
    files["vocab.json"] = (json.dumps(vocabulary.as_vocab(), ensure_ascii=False, indent=0) + "\n").encode()
    return write_model_folder(target, config, tensors, files, str(file))
