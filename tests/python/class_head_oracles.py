"""Classifiers and what `transformers` and `peft` make of them, for tests/model/class_head_test.cpp.

    python class_head_oracles.py OUT_DIR FAMILY...

For every family writes OUT_DIR/<family>/: a model folder (of an encoder the ForSequenceClassification checkpoint,
of a decoder the causal model under the head), float32.safetensors and float64.safetensors. Of an encoder also
OUT_DIR/<family>-body, -masked and -old: the same base as the bare body, under the heads it was pretrained with, and
with the names of old checkpoints. Keys of the .safetensors (T = the dtype, i = 0, 1, ... one sequence each):

    tokens_i                 int32 [n]   token ids, without padding
    labels                   int32 [S]
    logits                   T [S, K]    of base + scale * B A, all sequences at once, padded, with an attention mask
    loss                     T [1]       mean cross-entropy
    A/, B/, grad_A/, grad_B/<module>     as in oracle_logits.py
    head/<name>, grad_head/<name>        the head's tensors, by their names in the family's own checkpoints
    hidden_i                 T [n, D]    last hidden state of the body
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from families import ENCODERS, build_encoder, build_family
from oracle_logits import float64_parts
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification

LABELS, LORA_RANK, SCALE, LENGTHS = 5, 5, 2.0, (7, 33, 18, 1)

#: model_type -> (what all adapted modules of a layer end in, the layers' path, modules of the head)
BERT_ENDS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
LLAMA_ENDS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
MODULES = {
    "bert": (BERT_ENDS, "bert.encoder.layer", ["classifier"]),
    "roberta": (BERT_ENDS, "roberta.encoder.layer", ["classifier"]),
    "distilbert": (
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
        "distilbert.transformer.layer", ["pre_classifier", "classifier"],
    ),
    "llama": (LLAMA_ENDS, "model.layers", ["score"]),
    "gpt2": (("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), "transformer.h", ["score"]),
}  # fmt: skip


def load(folder: Path, dtype: torch.dtype):
    """The classifier of a folder, with a head that shows in everything."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=LABELS, dtype=torch.float32, attn_implementation="eager"
    ).to(dtype)
    model.config.pad_token_id = model.config.pad_token_id or 0
    return model.eval()


def adapted(model, family: str, generator: torch.Generator):
    """The model under peft: random factors on all matrices of all layers, a trained copy of the head."""
    ends, layers, head = MODULES[family]
    names = [f"{layers}.{layer}.{end}" for layer in range(model.config.num_hidden_layers) for end in ends]
    config = LoraConfig(
        task_type="SEQ_CLS", r=LORA_RANK, lora_alpha=SCALE * LORA_RANK, lora_dropout=0.0, target_modules=names,
        modules_to_save=head, fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    factors, parts = {}, {}
    with torch.no_grad():
        for name in names:
            module = model.base_model.model.get_submodule(name)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.copy_(torch.randn(a.shape, generator=generator, dtype=torch.float64) / a.shape[1] ** 0.5)
            b.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64) * 0.1)
            factors[name] = (a, b)
        for name, parameter in model.base_model.model.named_parameters():
            if ".modules_to_save.default" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
                parts[name.replace(".modules_to_save.default", "")] = parameter
    return model, factors, parts


def compute(folder: Path, family: str, dtype: torch.dtype, b_lengths=LENGTHS) -> dict[str, torch.Tensor]:
    """The tensors to write; keys as in the file header."""
    generator = torch.Generator().manual_seed(7)
    base = load(folder, dtype)
    out = {}
    tokens = [torch.randint(3, base.config.vocab_size, (n,), generator=generator) for n in b_lengths]
    labels = torch.tensor([3, 0, 4, 1][: len(tokens)])
    with torch.no_grad(), float64_parts(dtype):
        for i, one in enumerate(tokens):
            out[f"hidden_{i}"] = base.base_model(input_ids=one[None]).last_hidden_state[0]
    model, factors, parts = adapted(base, family, generator)
    longest = max(map(len, tokens))
    ids = torch.full((len(tokens), longest), base.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, one in enumerate(tokens):
        ids[i, : len(one)], mask[i, : len(one)] = one, 1
        out[f"tokens_{i}"] = one.int()
    with float64_parts(dtype):
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
    out |= {"labels": labels.int(), "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for name, (a, b) in factors.items():
        out |= {f"A/{name}": a.detach(), f"B/{name}": b.detach(), f"grad_A/{name}": a.grad, f"grad_B/{name}": b.grad}
    for name, value in parts.items():
        out |= {f"head/{name}": value.detach(), f"grad_head/{name}": value.grad}
    return {key: value.contiguous().clone() for key, value in out.items()}


def write_other_checkpoints(folder: Path, family: str) -> None:
    """The encoder of the folder as other classes save it, and as checkpoints of old versions name it."""
    AutoModel.from_pretrained(folder).save_pretrained(f"{folder}-body")
    # BertForMaskedLM has no pooler; the class that BERT was pretrained with has.
    pretraining = AutoModelForPreTraining if family == "bert" else AutoModelForMaskedLM
    pretraining.from_pretrained(folder).save_pretrained(f"{folder}-masked")
    old = Path(f"{folder}-old")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(old)
    tensors = {}
    for name, value in load_file(old / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = value
    tensors[f"{family}.embeddings.position_ids"] = torch.arange(4)[None]
    save_file(tensors, old / "model.safetensors", {"format": "pt"})


def main(argv: list[str]) -> int:
    """Command line; see the file header. A folder in place of OUT_DIR/<family> is read as it is: FAMILY=FOLDER."""
    out, families = Path(argv[0]), argv[1:]
    for family in families:
        family, _, given = family.partition("=")
        folder = out / family
        if given:
            folder.mkdir(parents=True, exist_ok=True)
        elif family in ENCODERS:
            build_encoder(folder, family, LABELS)
            write_other_checkpoints(folder, family)
        else:
            build_family(folder, family)
        for dtype in ("float32", "float64"):
            save_file(
                compute(Path(given) if given else folder, family, getattr(torch, dtype)),
                folder / f"{dtype}.safetensors",
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
