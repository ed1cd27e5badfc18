"""Batched Python: many clients in one pass, their adapters stacked, one autograd backward for all of them.

A functional Llama in plain torch ops: frozen q, k, v are one matrix and gate, up another; the LoRA terms are batched
matmuls over clients; the head runs on rows with loss only, in chunks. The sum of the clients' mean losses keeps their
gradients apart. `--onednn` sends the frozen matrices through oneDNN on packed weights (frozen_linear.py), the fastest
that Python reached. bf16: frozen weights and activations bf16; residual stream, norms, adapters and loss fp32.

Shapes: C clients of a pack, B windows each, L tokens, N = C B L rows, D width, r LoRA rank.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from peers import recorder as rec
from peers.frozen_linear import HeadLoss, PackedLinear, PlainLinear
from peers.schedule import IGNORED, Schedule


@dataclass
class Layer:
    """Frozen parts of one transformer layer."""

    norm_in: torch.Tensor
    norm_mlp: torch.Tensor
    qkv: PlainLinear | PackedLinear
    out: PlainLinear | PackedLinear
    gate_up: PlainLinear | PackedLinear
    down: PlainLinear | PackedLinear


def sdpa(q, k, v):
    """Causal attention by torch's fused kernel."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_fp32(q, k, v):
    """The same in fp32: faster on CPUs where the bf16 kernel is slow."""
    return sdpa(q.float(), k.float(), v.float()).to(q.dtype)


def eager(q, k, v):
    """Causal attention by two batched matmuls."""
    length = q.shape[-2]
    mask = torch.full((length, length), float("-inf")).triu(1)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).float() + mask
    return torch.matmul(scores.softmax(-1).to(q.dtype), v)


ATTENTIONS = {"sdpa": sdpa, "sdpa_fp32": sdpa_fp32, "eager": eager}


class FrozenLlama:
    """Llama with LoRA on q_proj and v_proj of every layer, a different adapter for each client of the pack."""

    def __init__(self, folder: str, dtype: torch.dtype, onednn: bool, scale: float) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        config = self.config = model.config
        self.dtype, self.scale, self.eps = dtype, scale, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.attention = sdpa
        inner = model.model

        def frozen(*modules: torch.nn.Linear) -> PlainLinear | PackedLinear:
            weight = torch.cat([m.weight.detach() for m in modules]).to(dtype)
            return (PackedLinear if onednn else PlainLinear)(weight)

        self.layers = []
        for i in range(len(inner.layers)):
            layer, inner.layers[i] = inner.layers[i], None  # the originals go as soon as they are copied
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                Layer(
                    norm_in=layer.input_layernorm.weight.detach(),
                    norm_mlp=layer.post_attention_layernorm.weight.detach(),
                    qkv=frozen(attention.q_proj, attention.k_proj, attention.v_proj),
                    out=frozen(attention.o_proj),
                    gate_up=frozen(mlp.gate_proj, mlp.up_proj),
                    down=frozen(mlp.down_proj),
                )
            )
        self.embedding = inner.embed_tokens.weight.detach()
        self.norm = inner.norm.weight.detach()
        self.head = frozen(model.lm_head)
        self.rotary = inner.rotary_emb
        self._angles: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def angles(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [L, 1, head_dim / 2] of the rotary embedding."""
        if length not in self._angles:
            cos, sin = self.rotary(self.embedding[:1], torch.arange(length)[None])
            half = self.head_dim // 2
            self._angles[length] = tuple(x[0, :, None, :half].to(self.dtype).contiguous() for x in (cos, sin))
        return self._angles[length]

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, L, heads, head_dim] with rotary embedding."""
        cos, sin = self.angles(x.shape[1])
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """[rows, L, heads or kv_heads, head_dim] -> [N, heads head_dim]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.heads != self.kv_heads:
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        return self.attention(q, k, v).transpose(1, 2).reshape(-1, self.heads * self.head_dim)

    def hidden(self, ids: torch.Tensor, adapters: list[torch.Tensor]) -> torch.Tensor:
        """Normed last hidden rows [N, D] of ids [C B, L]; adapters as `Stack.tensors`."""
        rows, length = ids.shape
        width = self.config.hidden_size
        d_q, d_kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h = F.embedding(ids.flatten(), self.embedding)
        for i, layer in enumerate(self.layers):
            a, b_q, b_v = (x.to(self.dtype) for x in adapters[3 * i : 3 * i + 3])
            clients, rank = len(a), a.shape[1] // 2
            x = F.rms_norm(h, (width,), layer.norm_in, self.eps).to(self.dtype)
            q, k, v = layer.qkv(x).split((d_q, d_kv, d_kv), dim=-1)
            z = torch.bmm(x.view(clients, -1, width), a.transpose(1, 2))
            q, v = (
                torch.baddbmm(y.view(clients, -1, d), z_part, b.transpose(1, 2), alpha=self.scale)
                for y, d, z_part, b in ((q, d_q, z[..., :rank], b_q), (v, d_kv, z[..., rank:], b_v))
            )
            q, k, v = (y.view(rows, length, -1, self.head_dim) for y in (q, k, v))
            h = h + layer.out(self.attend(self.rotate(q), self.rotate(k), v))
            x = F.rms_norm(h, (width,), layer.norm_mlp, self.eps).to(self.dtype)
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            h = h + layer.down(F.silu(gate) * up)
        return F.rms_norm(h, (width,), self.norm, self.eps)

    def loss(self, ids, targets, row_weights, adapters) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weighted losses, sum of losses) of ids and targets [C B, L], weights [C B L]."""
        hidden, targets = self.hidden(ids, adapters), targets.flatten()
        rows = (targets != IGNORED).nonzero().squeeze(1)
        if len(rows) < len(targets):
            hidden, targets, row_weights = hidden[rows], targets[rows], row_weights[rows]
        return HeadLoss.apply(hidden.to(self.dtype), self.head, targets, row_weights, self.config.vocab_size)


class Stack:
    """Adapters of C clients: per layer A [C, 2r, D] (q above v), B of q [C, d_q, r], B of v [C, d_v, r]."""

    def __init__(self, schedule: Schedule) -> None:
        order = [name.rsplit(".", 1)[1] for name in schedule.matrices]
        if order != ["q_proj", "v_proj"] * (len(order) // 2):
            raise SystemExit("batched: the adapted matrices must be q_proj and v_proj of every layer")
        self.rank = schedule.lora_rank
        self.globals = self.pack([torch.from_numpy(values) for values in schedule.initial])
        self.tensors: list[torch.Tensor] = []

    @staticmethod
    def pack(flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """From A_q, B_q, A_v, B_v of each layer to A, B_q, B_v."""
        layers = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        return [x for a_q, b_q, a_v, b_v in layers for x in (torch.cat((a_q, a_v)), b_q.clone(), b_v.clone())]

    def unpack(self) -> list[torch.Tensor]:
        """The global adapter as A and B of each matrix in turn."""
        layers = [self.globals[i : i + 3] for i in range(0, len(self.globals), 3)]
        return [x for a, b_q, b_v in layers for x in (a[: self.rank], b_q, a[self.rank :], b_v)]

    def hand_out(self, clients: int) -> None:
        """Every client starts from the global adapter."""
        if not self.tensors or len(self.tensors[0]) != clients:
            self.tensors = [x.new_empty(clients, *x.shape).requires_grad_() for x in self.globals]
        with torch.no_grad():
            for mine, given in zip(self.tensors, self.globals, strict=True):
                mine.copy_(given.expand_as(mine))

    def weighted_sum(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Sum over clients of weight times adapter."""
        return [torch.tensordot(weights, mine.detach(), 1) for mine in self.tensors]


class Batched:
    """FedAvg, all clients of a pack at once."""

    def __init__(self, arguments: argparse.Namespace, schedule: Schedule, recorder: rec.Recorder) -> None:
        self.schedule = schedule
        dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
        self.model = FrozenLlama(str(arguments.model), dtype, arguments.onednn, schedule.scale)
        self.stack = Stack(schedule)
        _, n_clients, _, n_windows = schedule.windows.shape
        tokens = n_windows * int(schedule.lengths.max())
        self.clients = min(n_clients, max(1, arguments.pack_tokens // tokens))
        recorder.facts["clients of a pack"] = self.clients
        if arguments.attention == "auto":
            self._choose_attention(recorder, self.clients * n_windows, int(schedule.lengths.max()))
        else:
            self.model.attention = ATTENTIONS[arguments.attention]
            recorder.facts["attention"] = arguments.attention

    def _choose_attention(self, recorder: rec.Recorder, rows: int, length: int) -> None:
        model = self.model
        shape = (rows, model.heads, length, model.head_dim)
        q, k, v = (torch.randn(shape).to(model.dtype).requires_grad_() for _ in range(3))
        names = [name for name in ATTENTIONS if model.dtype != torch.float32 or name != "sdpa_fp32"]
        tries = {name: lambda n=name: ATTENTIONS[n](q, k, v).sum().backward() for name in names}
        model.attention = ATTENTIONS[rec.fastest(tries, recorder, "attention")]

    def step(self, rows) -> tuple[torch.Tensor, int]:
        """One step of all clients of the pack on rows [C, B]; returns (sum of losses, loss tokens)."""
        ids, targets = (torch.from_numpy(x) for x in self.schedule.batch(rows.reshape(-1)))
        per_client = (targets != IGNORED).view(len(rows), -1).sum(1)
        row_weights = (1.0 / per_client).repeat_interleave(targets.numel() // len(rows))
        loss, nll = self.model.loss(ids, targets, row_weights, self.stack.tensors)
        gradients = torch.autograd.grad(loss, self.stack.tensors)
        with torch.no_grad():
            torch._foreach_add_(self.stack.tensors, gradients, alpha=-self.schedule.learning_rate)
        return nll, int(per_client.sum())

    def train_round(self, number: int) -> float:
        """Mean loss per token of the round's local steps."""
        windows = self.schedule.windows[number]
        weights = torch.from_numpy(self.schedule.weights[number]).float()
        total, count, mean = torch.zeros((), dtype=torch.float64), 0, None
        for begin in range(0, len(windows), self.clients):
            pack = windows[begin : begin + self.clients]
            self.stack.hand_out(len(pack))
            for step in range(pack.shape[1]):
                nll, n = self.step(pack[:, step])
                total += nll
                count += n
            part = self.stack.weighted_sum(weights[begin : begin + len(pack)])
            mean = part if mean is None else [x + y for x, y in zip(mean, part, strict=True)]
        self.stack.globals = mean
        return float(total) / count

    def adapter(self) -> list[torch.Tensor]:
        """The global adapter."""
        return self.stack.unpack()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = rec.parser("many clients in one pass, adapters stacked")
    out.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    out.add_argument("--onednn", action="store_true", help="frozen matrices through oneDNN on packed weights")
    out.add_argument("--pack-tokens", type=int, default=2048, help="tokens of a pass at most")
    return out


if __name__ == "__main__":
    rec.run(parser().parse_args(), Batched)
