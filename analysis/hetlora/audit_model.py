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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.llama.modeling_llama import repeat_kv
from transformers.pytorch_utils import Conv1D

from hetlora.audit_config import AuditError

#: model_type of a base that the program trains -> prefix of its classes in `transformers`
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}

#: Families whose code computes in the weights' dtype throughout
PLAIN = {"gpt2"}
#: Of those the ones that classify only
ENCODERS = ("bert", "distilbert", "roberta")

#: Canonical order of the adapted matrices within one transformer layer: name in lora.targets -> module of the layer.
TARGETS = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj", "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj",
}  # fmt: skip

#: The same of families with other names, and where their layers are
OWN_TARGETS = {
    "gpt2": {
        "c_attn": "attn.c_attn", "attn.c_proj": "attn.c_proj", "c_fc": "mlp.c_fc", "mlp.c_proj": "mlp.c_proj",
    },
    "distilbert": {
        "q_lin": "attention.q_lin", "k_lin": "attention.k_lin", "v_lin": "attention.v_lin",
        "out_lin": "attention.out_lin", "lin1": "ffn.lin1", "lin2": "ffn.lin2",
    },
    "bert": {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "attention.output.dense": "attention.output.dense", "intermediate.dense": "intermediate.dense",
        "output.dense": "output.dense",
    },
}  # fmt: skip
OWN_TARGETS["roberta"] = OWN_TARGETS["bert"]
OWN_LAYERS = {
    "gpt2": "transformer.h", "distilbert": "distilbert.transformer.layer", "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
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
            if model_type in PLAIN:
                continue
            module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
            _replace(stack, getattr(module, f"{prefix}RMSNorm"), "forward", _rms_norm)
            _replace(stack, getattr(module, f"{prefix}RotaryEmbedding"), "forward", _rotary)
            _replace(stack, module, "eager_attention_forward", _attention)
        yield


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def base_folder(path: str | Path) -> Path:
    """The folder of the base model, or an AuditError that says how to come by one."""
    path = Path(path)
    if not (path / "config.json").is_file():
        made = f" (`hetlora convert gguf {path} --to DIR` makes one)" if path.is_file() else ""
        raise AuditError(f"no base model folder - {path} (model.path) - give one with --model DIR{made}")
    return path


def load_base(path: str | Path, dtype: torch.dtype = torch.float32, labels: int = 0) -> torch.nn.Module:
    """The base model of a Hugging Face folder, frozen, in evaluation mode, with eager attention.

    Weights stored in half precision are widened exactly. Nothing is downloaded. `labels` > 0: under a classification
    head of so many labels, whose values are not the folder's.
    """
    config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    if dtype == torch.float64 and config.model_type not in (*FAMILIES, *ENCODERS):
        raise ValueError(
            f"precision fp64 can be audited for model_type {', '.join(FAMILIES)} only, this base is "
            f"{config.model_type!r} - {path} - audit a run with precision fp32"
        )
    kind, more = (AutoModelForSequenceClassification, {"num_labels": labels}) if labels else (AutoModelForCausalLM, {})
    model = kind.from_pretrained(
        str(path), dtype=torch.float32, attn_implementation="eager", local_files_only=True, **more
    )
    model = model.to(dtype).eval()
    model.config.use_cache = False
    if labels and config.model_type in FAMILIES:
        model.config.pad_token_id = None  # one text at a time: its last token is the last one
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def adapter_layout(model: torch.nn.Module, targets: str) -> list[tuple[str, int, int]]:
    """Adapted matrices as (name, d_out, d_in) in canonical order: by layer, then q, k, v, o, gate, up, down.

    `targets` is the config value: "all-linear" or the family's short names separated by commas.
    """
    modules = OWN_TARGETS.get(model.config.model_type, TARGETS)
    layers = OWN_LAYERS.get(model.config.model_type, "model.layers")
    wanted = list(modules) if targets.strip() == "all-linear" else [t.strip() for t in targets.split(",") if t.strip()]
    unknown = [t for t in wanted if t not in modules]
    if unknown:
        raise ValueError(f"unknown LoRA target {unknown[0]!r} - lora.targets - known: {', '.join(modules)}, all-linear")
    layout = []
    for layer in range(model.config.num_hidden_layers):
        for short, module in modules.items():
            if short in wanted:
                name = f"{layers}.{layer}.{module}"
                d_out, d_in = out_in(model.get_submodule(name)).shape
                layout.append((name, int(d_out), int(d_in)))
    return layout


def out_in(module: torch.nn.Module) -> torch.Tensor:
    """The weight as [d_out, d_in], a view; GPT-2's Conv1D holds its transpose."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def is_transposed(model: torch.nn.Module) -> bool:
    """Whether the model's matrices are stored as [d_in, d_out] (peft's fan_in_fan_out)."""
    return any(isinstance(module, Conv1D) for module in model.modules())
