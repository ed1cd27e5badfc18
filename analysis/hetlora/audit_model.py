"""Base model of the audit: stock `transformers` in fp32, or a true fp64 version of the same computation.

`model.double()` alone isn't fp64: the code of these families computes three parts in float32 whatever the weights'
dtype (the RMSNorm statistics, the rotary angles, the attention softmax), which costs about 1e-6 in the loss.
`float64_parts` replaces those three, and only those, with the same formulas in fp64, for every family that the
program has.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import repeat_kv

#: model_type of a base that the program trains -> prefix of its classes in `transformers`
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

#: Canonical order of the adapted matrices within one transformer layer (short name -> sub-module).
TARGETS = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip


def _rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def _llama3(inverse: torch.Tensor, rope: dict) -> torch.Tensor:
    """Inverse frequencies of Llama 3.1: kept where they are high, divided where they are low, blended between."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)  # within the original positions
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * inverse / factor + blend * inverse


@torch.no_grad()
def _rotary(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config, rope = self.config, self.config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inverse = 1.0 / (float(rope["rope_theta"]) ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    if self.rope_type == "linear":
        inverse = inverse / rope["factor"]
    elif self.rope_type == "llama3":
        inverse = _llama3(inverse, rope)
    elif self.rope_type != "default":
        raise ValueError(f"rotary rule {self.rope_type!r} has no fp64 version here - audit a run with precision fp32")
    angles = position_ids[..., None].double() * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    keys = repeat_kv(key, module.num_key_value_groups)
    values = repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), weights


@contextlib.contextmanager
def float64_parts(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, the three float32 parts run in fp64 if `dtype` is float64; otherwise nothing changes."""
    if dtype != torch.float64:
        yield
        return
    with contextlib.ExitStack() as stack:
        for model_type, prefix in FAMILIES.items():
            module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
            _replace(stack, getattr(module, f"{prefix}RMSNorm"), "forward", _rms_norm)
            _replace(stack, getattr(module, f"{prefix}RotaryEmbedding"), "forward", _rotary)
            _replace(stack, module, "eager_attention_forward", _attention)
        yield


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def load_base(path: str | Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The base model of a Hugging Face folder, frozen, in evaluation mode, with eager attention.

    Weights stored in half precision are widened exactly. Nothing is downloaded.
    """
    config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    if dtype == torch.float64 and config.model_type not in FAMILIES:
        raise ValueError(
            f"precision fp64 can be audited for model_type {', '.join(FAMILIES)} only, this base is "
            f"{config.model_type!r} - {path} - audit a run with precision fp32"
        )
    model = AutoModelForCausalLM.from_pretrained(
        str(path), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    model = model.to(dtype).eval()
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def adapter_layout(model: torch.nn.Module, targets: str) -> list[tuple[str, int, int]]:
    """Adapted matrices as (name, d_out, d_in) in canonical order: by layer, then q, k, v, o, gate, up, down.

    `targets` is the config value: "all-linear" or short names separated by commas.
    """
    wanted = list(TARGETS) if targets.strip() == "all-linear" else [t.strip() for t in targets.split(",") if t.strip()]
    unknown = [t for t in wanted if t not in TARGETS]
    if unknown:
        raise ValueError(f"unknown LoRA target {unknown[0]!r} - lora.targets - known: {', '.join(TARGETS)}, all-linear")
    layout = []
    for layer in range(model.config.num_hidden_layers):
        for short, parent in TARGETS.items():
            if short in wanted:
                name = f"model.layers.{layer}.{parent}.{short}"
                d_out, d_in = model.get_submodule(name).weight.shape
                layout.append((name, int(d_out), int(d_in)))
    return layout
