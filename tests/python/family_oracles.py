"""Checkpoints of model families and what `transformers` and `peft` make of them, for tests/model/families_test.cpp.

    python family_oracles.py OUT_DIR FAMILY...

For every family and rotary rule (families with learned positions: "default") writes OUT_DIR/<family>-<rule>/: a model
folder, float32.safetensors and float64.safetensors as oracle_logits.py writes them (all matrices adapted, lora_rank 5,
scale 2), and generated.safetensors with `prompt` and `generated`, int32: greedy tokens of the bare base.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import oracle_logits
import torch
from families import OWN_KEYS, ROPE, build_family
from safetensors.torch import save_file

NEW_TOKENS = 12


def generated(folder: Path) -> dict[str, torch.Tensor]:
    """Greedy continuation of a fixed prompt, with the key-value cache of `transformers`."""
    model = oracle_logits.load_base(folder)
    model.config.use_cache = True
    prompt = torch.arange(3, 10)[None]
    with torch.no_grad():
        out = model.generate(
            prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
    return {"prompt": prompt[0].int(), "generated": out[0, prompt.shape[1] :].int()}


def main(argv: list[str]) -> int:
    """Command line; see the file header."""
    out, families = Path(argv[0]), argv[1:]
    for family in families:
        for rope in ("default",) if family in OWN_KEYS else ROPE:
            folder = build_family(out / f"{family}-{rope}", family, rope)
            for dtype in ("float32", "float64"):
                arguments = Namespace(
                    model_dir=folder, dtype=dtype, lora_rank=5, targets="all-linear", scale=2.0, b_std=0.1, seed=0,
                    lengths="7,33,18",
                )  # fmt: skip
                save_file(oracle_logits.compute(arguments), folder / f"{dtype}.safetensors")
            save_file(generated(folder), folder / "generated.safetensors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
