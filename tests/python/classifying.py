"""Runs of `model.task = classification` for tests: settings, a world of every family, and what peft loads of a run."""

from __future__ import annotations

from pathlib import Path

import families
import h5py
import labelled
import micro
import numpy as np
import program
import torch
from hetlora.audit_model import float64_parts
from safetensors.numpy import load_file

SETTINGS = {
    "model.task": "classification",
    "model.precision": "fp64",
    "data.sequence_length": 64,
    "data.overlap": 0,
    "experiment.clients_per_round": 0,
    "lora.targets": "q_proj,v_proj",
    "lora.rank_distribution": "fixed",
    "lora.rank_min": 4,
    "lora.rank_max": 4,
    "lora.scale": 2,
    "strategy.preset": "fedavg",
    "local.steps": 3,
    "local.batch_size": 64,
    "local.optimizer": "sgd",
    "local.learning_rate": 0.05,
    "local.head_learning_rate": 0.2,
    "evaluation.metrics": "perplexity,accuracy,macro_f1",
    "evaluation.test": "last",
    "compute.threads": 1,
    "compute.gemm": "mkl",
}

# Two adapted matrices of a layer, and their widths (d_in + d_out together).
FAMILIES = {
    "llama": ("q_proj,v_proj", 32 + 32 + 32 + 16),
    "gpt2": ("c_attn,c_fc", 32 + 96 + 32 + 64),
    "bert": ("query,output.dense", 32 + 32 + 64 + 32),
    "distilbert": ("q_lin,lin2", 32 + 32 + 64 + 32),
    "roberta": ("value,attention.output.dense", 32 + 32 + 32 + 32),
}

MIXED = {
    "model__precision": "fp32",
    "lora__rank_distribution": "list",
    "lora__rank_list": "2,8,3",
    "lora__rank_min": 2,
    "lora__rank_max": 8,
    "strategy__preset": "hetlora",
    "local__optimizer": "adamw",
    "local__learning_rate": 3e-3,
    "local__head_learning_rate": 1e-2,
    "local__steps": 6,
    "local__batch_size": 2,
    "local__clip_norm": 0.5,
    "evaluation__clients": "final",
}


def build_world(folder: Path, family: str) -> tuple[Path, Path]:
    """Model folder and labelled corpus."""
    if family == "llama":
        model = micro.build_model(folder / "model")
    elif family in families.ENCODERS:
        model = families.build_encoder(folder / "model", family, len(labelled.LABELS))
    else:
        model = families.build_family(folder / "model", family)
    return model, labelled.build_corpus(folder / "labelled.h5", model / "tokenizer.json")


def words(world, folder: Path, rounds: int, **changes: object) -> list[str]:
    """Command line of a run."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    config = folder.parent / f"{folder.name}.ini"
    program.write_ini(config, world)
    return ["run", "--config", str(config), "--output", str(folder), f"experiment.rounds={rounds}"] + [
        f"{key}={value}" for key, value in settings.items()
    ]


def run(world, folder: Path, rounds: int, mpi_ranks: int = 0, **changes: object) -> Path:
    """A finished run."""
    program.finished(*words(world, folder, rounds, **changes), mpi_ranks=mpi_ranks)
    return folder


def logged(folder: Path, name: str) -> np.ndarray:
    """A column of the run's log."""
    with h5py.File(folder / "run.h5") as file:
        return file[name][()]


def adapter(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of the final adapter."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def peft_model(model: Path, adapter_folder: Path) -> torch.nn.Module:
    """transformers' classifier with the run's adapter and head, loaded by peft, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=len(labelled.LABELS), attn_implementation="eager", pad_token_id=micro.EOS
    ).double()
    return PeftModel.from_pretrained(base, adapter_folder, is_trainable=True, autocast_adapter_dtype=False).double()


def logits_of(model, ids: list[int]) -> torch.Tensor:
    """[1, labels]; what transformers always computes in float32 is computed in float64 here."""
    with float64_parts(torch.float64):
        return model(input_ids=torch.tensor([ids])).logits
