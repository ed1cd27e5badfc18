"""Small random checkpoints of every model family that the program's table has (src/model/families.cpp), made offline
with the family's own classes of `transformers`. A new row of the table is tested without a new test.
"""

from __future__ import annotations

import re
from pathlib import Path

import micro
import torch

TABLE = Path(__file__).resolve().parents[2] / "src" / "model" / "families.cpp"
#: rows that predict next tokens
FAMILIES = re.findall(r'(?<!encoder\()\{\.model_type = "([^"]+)"', TABLE.read_text())
ENCODERS = re.findall(r'encoder\(\{\.model_type = "([^"]+)"', TABLE.read_text())

#: rotary rule -> what transformers 5 calls rope_parameters; the three ranges of llama3 all occur at these positions
ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


#: model_type -> what its config calls the sizes; it has learned positions and no rotary rule
OWN_KEYS = {
    "gpt2": {
        "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
}  # fmt: skip


#: sizes of small encoders, as each calls them; RoBERTa's positions begin after the padding's
SMALL_BERT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "layer_norm_eps": 1e-7,
}  # fmt: skip
ENCODER_KEYS = {
    "bert": SMALL_BERT,
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256},
    "roberta": SMALL_BERT | {"max_position_embeddings": 258, "type_vocab_size": 1},
}


def build_encoder(folder: Path, family: str, labels: int, seed: int = 0) -> Path:
    """Writes a random encoder with a classification head (vocab 96, hidden 32, 2 layers) in which every part shows."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        family, vocab_size=micro.VOCAB_SIZE, initializer_range=0.18, num_labels=labels, **ENCODER_KEYS[family]
    )
    torch.manual_seed(seed)
    return _write(folder, AutoModelForSequenceClassification.from_config(config))


def build_family(folder: Path, family: str, rope: str = "default", seed: int = 0) -> Path:
    """Writes a random causal model (vocab 96, hidden 32, 2 layers) in which every part shows in the loss.

    The head is tied with rope other than default; a window wider than any test's sequences with rope "linear", where
    the family's class has windows that need no flag.
    """
    from transformers import AutoConfig

    if family in OWN_KEYS:
        config = AutoConfig.for_model(
            family, vocab_size=micro.VOCAB_SIZE, bos_token_id=micro.BOS, eos_token_id=micro.EOS,
            initializer_range=0.18, **OWN_KEYS[family],
        )  # fmt: skip
        return _save(folder, config, seed)
    known = AutoConfig.for_model(family)
    changes = {"head_dim": 10} if getattr(known, "head_dim", None) else {}
    if hasattr(known, "sliding_window") and not hasattr(known, "use_sliding_window"):
        changes["sliding_window"] = 64 if rope == "linear" else None
    config = AutoConfig.for_model(
        family, vocab_size=micro.VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
        tie_word_embeddings=rope != "default", bos_token_id=micro.BOS, eos_token_id=micro.EOS, pad_token_id=None,
        rope_parameters=ROPE[rope], initializer_range=0.18, **changes,
    )  # fmt: skip
    return _save(folder, config, seed)


def _save(folder: Path, config, seed: int) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return _write(folder, AutoModelForCausalLM.from_config(config))


def _write(folder: Path, model) -> Path:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight", "LayerNorm.weight")
            ):  # all ones would hide a forgotten norm weight
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    micro.write_tokenizer(folder)
    return folder


def as_transformers_4(config: dict) -> dict:
    """The same config.json as version 4 wrote it: rope_theta and rope_scaling, torch_dtype."""
    if "rope_parameters" not in config:
        return {key: value for key, value in config.items() if key != "dtype"} | {"torch_dtype": "float32"}
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = config.get("dtype", "float32")
    return old
