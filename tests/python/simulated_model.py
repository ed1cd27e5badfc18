"""A Llama forward pass written out in plain tensor operations: the third opinion of the audit's tests.

It shares nothing with transformers, peft or analysis/hetlora; it reads config.json and model.safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

SHORT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class PlainLlama:
    """Weights of a Hugging Face Llama folder and their forward pass with LoRA factors."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
        self.dtype = dtype

    def matrices(self, targets: str) -> list[tuple[str, int, int]]:
        """(name, d_out, d_in) by layer, then in the order of SHORT."""
        wanted = SHORT if targets == "all-linear" else targets.split(",")
        out = []
        for layer in range(self.config["num_hidden_layers"]):
            for short in SHORT:
                if short in wanted:
                    block = "self_attn" if short in SHORT[:4] else "mlp"
                    name = f"model.layers.{layer}.{block}.{short}"
                    out.append((name, *self.weights[name + ".weight"].shape))
        return out

    def logits(self, tokens: torch.Tensor, factors: dict, scale: float) -> torch.Tensor:
        """Logits [batch, n, vocab] of right-padded tokens [batch, n]; factors[name] = (A [r, d_in], Bt [r, d_out])."""
        config = self.config
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        batch, n = tokens.shape
        theta = config["rope_parameters"]["rope_theta"]
        angle = torch.arange(n, dtype=torch.float64)[:, None] * theta ** (
            -torch.arange(0, size, 2, dtype=torch.float64) / size
        )
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            y = x @ self.weights[name + ".weight"].T
            if name in factors:
                a, bt = factors[name]
                y = y + scale * ((x @ a.T) @ bt)
            return y

        def norm(name: str, x: torch.Tensor) -> torch.Tensor:
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * self.weights[name]

        def rotate(x: torch.Tensor) -> torch.Tensor:
            low, high = x[..., : size // 2], x[..., size // 2 :]
            return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

        def by_head(x: torch.Tensor, count: int) -> torch.Tensor:
            return x.view(batch, n, count, size).transpose(1, 2)

        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            h = norm(at + "input_layernorm.weight", x)
            q = rotate(by_head(linear(at + "self_attn.q_proj", h), heads))
            k = rotate(by_head(linear(at + "self_attn.k_proj", h), groups)).repeat_interleave(heads // groups, 1)
            v = by_head(linear(at + "self_attn.v_proj", h), groups).repeat_interleave(heads // groups, 1)
            scores = (q @ k.transpose(2, 3) / size**0.5).masked_fill(future, -torch.inf)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, heads * size)
            x = x + linear(at + "self_attn.o_proj", mixed)
            h = norm(at + "post_attention_layernorm.weight", x)
            gate = linear(at + "mlp.gate_proj", h)
            x = x + linear(at + "mlp.down_proj", gate * torch.sigmoid(gate) * linear(at + "mlp.up_proj", h))
        x = norm("model.norm.weight", x)
        head = "lm_head.weight" if "lm_head.weight" in self.weights else "model.embed_tokens.weight"
        return x @ self.weights[head].T
