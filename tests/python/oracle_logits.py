"""Logits, loss and LoRA gradients of stock `transformers` + `peft`, for the C++ tests to compare with.

    python oracle_logits.py MODEL_DIR OUT.safetensors [--dtype float32|float64] [--lora-rank R] [--scale 2.0]
                            [--targets q_proj,v_proj] [--b-std 0.1] [--seed 0] [--lengths 5,17,32,2]

Keys of OUT.safetensors (T = the dtype asked for, i = 0, 1, ... one sequence each; a sequence has n tokens):

    tokens_i       int32 [n]         token ids
    mask_i         uint8 [n]         1 = loss target, predicted from the tokens before it; position 0 never is
    logits_i       T [n, vocab]      logits of base + scale * B A after each token (row p predicts token p + 1)
    loss           T [1]             mean over all masked targets of all sequences together (token-weighted), nats
    n_targets      int64 [1]         number of masked targets
    A/<name>       T [R, d_in]       factors (random, both non-zero); <name> like model.layers.0.self_attn.q_proj
    B/<name>       T [d_out, R]      (not transposed)
    grad_A/<name>  T [R, d_in]       gradients of `loss`
    grad_B/<name>  T [d_out, R]

With --lora-rank 0 the model is the bare base and the A, B and grad keys are absent. The metadata of the file hold
lora_rank, scale, targets, dtype and seed as text. float64 is fp64 throughout (see analysis/hetlora/audit_model.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "analysis"))
from hetlora.audit_model import adapter_layout, float64_parts, is_transposed, load_base  # noqa: E402


def make_sequences(vocab_size: int, lengths: list[int], generator: torch.Generator) -> list[tuple]:
    """Random (tokens, mask) pairs; about half of the positions are targets, the last one always is."""
    sequences = []
    for n in lengths:
        tokens = torch.randint(0, vocab_size, (n,), generator=generator)
        mask = (torch.rand(n, generator=generator) < 0.5).to(torch.uint8)
        mask[0], mask[-1] = 0, 1
        sequences.append((tokens, mask))
    return sequences


def compute(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The tensors to write; keys as documented in the file header."""
    dtype = getattr(torch, arguments.dtype)
    model = load_base(arguments.model_dir, dtype)
    generator = torch.Generator().manual_seed(arguments.seed)
    lengths = [int(n) for n in arguments.lengths.split(",")]
    sequences = make_sequences(model.config.vocab_size, lengths, generator)
    layout = adapter_layout(model, arguments.targets)
    factors = {}
    if arguments.lora_rank > 0:
        config = LoraConfig(
            r=arguments.lora_rank, lora_alpha=arguments.scale * arguments.lora_rank, lora_dropout=0.0, bias="none",
            target_modules=[name for name, _, _ in layout], fan_in_fan_out=is_transposed(model),
        )  # fmt: skip
        model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
        with torch.no_grad():
            for name, _, d_in in layout:
                module = model.base_model.model.get_submodule(name)
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                a.copy_(torch.randn(a.shape, generator=generator, dtype=torch.float64) / d_in**0.5)
                b.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64) * arguments.b_std)
                factors[name] = (a, b)
    out: dict[str, torch.Tensor] = {}
    total, count = torch.zeros((), dtype=dtype), 0
    with float64_parts(dtype):
        for i, (tokens, mask) in enumerate(sequences):
            logits = model(input_ids=tokens[None]).logits[0]
            keep = mask[1:].bool()
            log_probability = torch.log_softmax(logits[:-1], dim=-1).gather(1, tokens[1:, None])[:, 0]
            total = total - log_probability[keep].sum()
            count += int(keep.sum())
            out |= {f"tokens_{i}": tokens.int(), f"mask_{i}": mask, f"logits_{i}": logits.detach()}
        loss = total / count
        if factors:
            loss.backward()
    out |= {"loss": loss.detach().reshape(1), "n_targets": torch.tensor([count])}
    for name, (a, b) in factors.items():
        out |= {f"A/{name}": a.detach(), f"B/{name}": b.detach(), f"grad_A/{name}": a.grad, f"grad_B/{name}": b.grad}
    return {key: value.contiguous().clone() for key, value in out.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; see the file header."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--lora-rank", type=int, default=4)
    parser.add_argument("--targets", default="q_proj,v_proj", help='short names separated by commas, or "all-linear"')
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--b-std", type=float, default=0.1, help="standard deviation of the random B")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lengths", default="5,17,32,2", help="tokens of each sequence")
    arguments = parser.parse_args(argv)
    tensors = compute(arguments)
    metadata = {k: str(getattr(arguments, k)) for k in ("lora_rank", "scale", "targets", "dtype", "seed")}
    save_file(tensors, arguments.out, metadata=metadata)
    print(f"{arguments.out}: {len(tensors)} tensors, loss {float(tensors['loss']):.9f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
