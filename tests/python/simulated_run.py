"""A slow federated run in plain PyTorch (no transformers, no peft, no torch.optim) that writes what the program writes.

`simulate(folder, model, data, config, mutate)` leaves config.json, trace.h5, run.h5 and adapter/ in `folder`.
`mutate` names one deliberate mistake (MUTATIONS); the audit has to catch every one of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import simulated_local
import simulated_methods
import torch
from safetensors.torch import save_file
from simulated_local import Corpus, train_client
from simulated_model import PlainLlama

MUTATIONS = (
    "wrong scale", "before after training", "weights not renormalised", "loss over several clients",
    "non-persistent prune", "padded slot gradient", "uncovered kept", "stale optimizer", "wrong order",
    "pruned after upload", "off by one tail", "clip before regulariser",
)  # fmt: skip


def default_config(model: Path, data: Path) -> dict:
    """A resolved config in which pruning, unequal ranks, dying slots and short windows all happen."""
    return {
        "experiment": {"name": "simulated", "seed": 7, "rounds": 3, "clients_per_round": 4},
        "model": {"path": str(model), "precision": "fp32"},
        "data": {"path": str(data), "sequence_length": 24, "overlap": 8, "partition": "natural", "min_windows": 1,
                 "max_windows_per_client": 0},
        "lora": {"targets": "q_proj,v_proj", "rank_min": 2, "rank_max": 8, "scale": 2.0, "scale_rule": "constant",
                 "dropout": 0.0, "init": "kaiming_uniform"},
        "local": {"steps": 4, "epochs": 0, "batch_size": 3, "optimizer": "sgd", "learning_rate": 0.3,
                  "lr_schedule": "constant", "lr_warmup_rounds": 0, "lr_final_fraction": 0.1, "weight_decay": 0.0,
                  "clip_norm": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8},
        "strategy": {"preset": "hetlora", "slot_norm": "preset", "client_weight": "preset", "local_extra": "preset",
                     "aggregate": "preset", "prune_gamma": 0.85, "prune_lambda": 0.3, "prune_reference": "received",
                     "prune_rounding": "floor", "tail_norm_epsilon": 0.0, "weight_scope": "client",
                     "weight_norm": "root_sum_squares", "weight_includes_scale": False, "keep_uncovered": "no"},
        "evaluation": {"every": 1, "sequences": 0, "part": "valid"},
    }  # fmt: skip


def policies(strategy: dict) -> tuple[str, str, str, str]:
    """(slot_norm, client_weight, local_extra, aggregate) with the preset's row filled in."""
    rows = {
        "hetlora": ("all", "sparsity", "tail_prune", "parameters"),
        "zeropad": ("all", "samples", "none", "parameters"),
    }
    keys = ("slot_norm", "client_weight", "local_extra", "aggregate")
    row = zip(keys, rows[strategy["preset"]], strict=True)
    return tuple(value if strategy[key] == "preset" else strategy[key] for key, value in row)


def server(config: dict, old: dict, uploads: list[dict], mutate: str) -> tuple[dict, list[float]]:
    """New global factors {name: [A, Bt]} (fp64 numpy, rank_max rows) and the weight of each upload."""
    strategy = config["strategy"]
    slot_norm, rule, _, form = policies(strategy)
    square = [{m: float((u["sent"][m][1].T @ u["sent"][m][0]).__pow__(2).sum()) for m in old} for u in uploads]
    per_matrix = {}
    for m in old:
        if rule == "uniform":
            s = [1.0] * len(uploads)
        elif rule == "samples":
            s = [float(u["n_windows"]) for u in uploads]
        elif strategy["weight_scope"] == "matrix":
            s = [math.sqrt(q[m]) for q in square]
        elif strategy["weight_norm"] == "sum":
            s = [sum(math.sqrt(x) for x in q.values()) for q in square]
        else:
            s = [math.sqrt(sum(q.values())) for q in square]
        z = sum(s)
        if mutate == "weights not renormalised":
            z *= 1.02
        per_matrix[m] = [x / z if z > 0 else 1 / len(s) for x in s]
    new = {}
    for m, factors in old.items():
        new[m] = []
        for f, before in enumerate(factors):
            total = np.zeros_like(before)
            for slot in range(len(before)):
                rows = [(w, u["sent"][m][f][slot] - (u["received"][m][f][slot] if form == "deltas" else 0))
                        for w, u in zip(per_matrix[m], uploads, strict=True)
                        if len(u["sent"][m][f]) > slot]  # fmt: skip
                divisor = sum(w for w, _ in rows) if slot_norm == "contributors" and rows else 1.0
                value = sum((w * x for w, x in rows), np.zeros_like(before[slot])) / divisor
                keep = strategy["keep_uncovered"] == "last" or mutate == "uncovered kept"
                if form == "deltas":
                    total[slot] = before[slot] + value
                else:
                    total[slot] = before[slot] if not rows and keep else value
            new[m].append(total)
    weights = [float(np.mean([per_matrix[m][k] for m in old])) for k in range(len(uploads))]
    return new, weights


def initial_adapter(matrices: list, rank_max: int, seed: int, cast: type) -> dict:
    """A uniform in +-1/sqrt(d_in), B zero."""
    rng = np.random.default_rng(seed)
    return {name: [rng.uniform(-1, 1, (rank_max, d_in)).astype(cast).astype(float) * d_in**-0.5,
                   np.zeros((rank_max, d_out))] for name, d_out, d_in in matrices}  # fmt: skip


def flat(factors: dict) -> np.ndarray:
    """Canonical form."""
    return np.concatenate([np.asarray(x, dtype=np.float64).ravel() for pair in factors.values() for x in pair])


def simulate(folder: Path, model: Path, data: Path, config: dict, mutate: str = "", drop_first: bool = False) -> dict:
    """Runs and writes everything; returns {"prunes": n, "dropped": n}.

    `drop_first` drops the first client of every cohort as if its numbers weren't finite.
    """
    assert mutate in ("", *MUTATIONS, *simulated_methods.MUTATIONS), mutate
    row = simulated_methods.ROWS.get(config["strategy"]["preset"], {})
    if row:
        config["resolved_strategy"] = row | {"preset": config["strategy"]["preset"], "rank_levels": ""}
    private: dict = {}
    double = config["model"]["precision"] in ("fp64", "float64")
    cast = np.float64 if double else np.float32
    llama = PlainLlama(model, torch.float64 if double else torch.float32)
    corpus = Corpus(data, config["data"])
    matrices = llama.matrices(config["lora"]["targets"])
    rank_max = config["lora"]["rank_max"]
    glob = initial_adapter(matrices, rank_max, 3, cast)
    first = glob
    eligible = [c for c in range(corpus.n_clients) if not corpus.held_out[c] and corpus.train_windows(c)]
    ranks = {c: config["lora"]["rank_min"] + (3 * c) % (rank_max - config["lora"]["rank_min"] + 1) for c in eligible}
    original = dict(ranks)
    rng = np.random.default_rng(11)
    rounds, events = config["experiment"]["rounds"], []

    def evaluate() -> float:
        if row.get("shared_factors") == "a":
            return simulated_methods.evaluate_personal(corpus, llama, glob, private, config)
        return corpus.evaluate(llama, glob, config)

    globals_, losses = [flat(glob)], [evaluate()]
    simulated_local.STALE.clear()
    for t in range(1, rounds + 1):
        uploads, mine = [], []
        for c in sorted(rng.choice(eligible, size=config["experiment"]["clients_per_round"], replace=False).tolist()):
            if mutate == "non-persistent prune":
                ranks[c] = original[c]
            place = {"client": c, "round": t, "rank": ranks[c], "slots": []}
            local = glob
            if row:
                place["slots"] = simulated_methods.slots_of(row, c, t, ranks[c], rank_max)
                local = simulated_methods.received(row, glob, place, private.get(c), mutate)
            local = {m: [x[: ranks[c]].astype(cast) for x in pair] for m, pair in local.items()}
            start = {m: [x[: ranks[c]] for x in pair] for m, pair in first.items()}
            padded = glob if mutate == "padded slot gradient" else None
            job = place | {"received": local, "initial": start, "padded": padded, "drop": drop_first and not mine}
            if row:
                job["factors"] = simulated_methods.trained(row, mutate)
                job["scale_factor"] = simulated_methods.scale_factor(row, ranks[c], rank_max, mutate)
            prunes = not row and policies(config["strategy"])[2] == "tail_prune"
            event = train_client(llama, corpus, config, prunes, job, mutate) | {"slots": place["slots"]}
            if row.get("shared_factors") == "a":
                private[c] = {m: pair[1] for m, pair in event["sent"].items()}
            ranks[c] = event["after"]
            mine.append(event)
            if not event["dropped"]:
                uploads.append(event)
        if uploads:
            if row:
                scale = config["lora"]["scale"]
                glob, weights, change = simulated_methods.server(row, scale, glob, uploads, mutate, t)
                simulated_methods.change_base(llama, change)
            else:
                glob, weights = server(config, glob, uploads, mutate)
            glob = {m: [x.astype(cast).astype(float) for x in pair] for m, pair in glob.items()}
            for event, weight in zip(uploads, weights, strict=True):
                event["weight"] = weight
        events += mine
        globals_.append(flat(glob))
        losses.append(evaluate())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_trace(folder / "trace.h5", matrices, events, globals_)
    write_run(folder, losses)
    write_adapter(folder / "adapter", glob, config, llama)
    return {"prunes": sum(e["after"] < e["rank"] for e in events), "dropped": sum(e["dropped"] for e in events)}


def write_trace(path: Path, matrices: list, events: list[dict], globals_: list[np.ndarray]) -> None:
    """trace.h5, schema version 1."""
    received = [flat(e["received"]) for e in events]
    sent = [flat(e["sent"]) if not e["dropped"] else np.zeros(0) for e in events]
    steps = [(i, s, step) for i, e in enumerate(events) for s, step in enumerate(e["steps"])]
    windows = [key for _, _, step in steps for key in step["windows"]]

    def offsets(parts: list) -> np.ndarray:
        return np.cumsum([0] + [len(part) for part in parts]).astype(np.int64)

    with h5py.File(path, "w") as file:
        file.attrs.update({"schema_name": "hetlora-trace", "schema_version": 1, "run_id": "simulated"})
        file["matrices/name"] = np.array([m[0].encode() for m in matrices])
        file["matrices/d_out"] = [m[1] for m in matrices]
        file["matrices/d_in"] = [m[2] for m in matrices]
        for name, key in (("round", "round"), ("client", "client"), ("lora_rank_before", "rank"),
                          ("lora_rank_after", "after"), ("dropped", "dropped")):  # fmt: skip
            file[f"events/{name}"] = np.array([int(e[key]) for e in events], dtype=np.int32)
        file["events/n_steps"] = np.array([len(e["steps"]) for e in events], dtype=np.int32)
        file["events/weight"] = [e.get("weight", 0.0) for e in events]
        file["events/loss_first"] = [e["steps"][0]["loss"] for e in events]
        file["events/loss_last"] = [e["steps"][-1]["loss"] for e in events]
        file["events/learning_rate"] = [e["learning_rate"] for e in events]
        file["events/received_offset"], file["events/sent_offset"] = offsets(received), offsets(sent)
        file["adapters/received"], file["adapters/sent"] = np.concatenate(received), np.concatenate(sent)
        if any(e["slots"] for e in events):  # else as an older program writes it
            file["events/lora_rank"] = np.array([e["rank"] for e in events], dtype=np.int32)
            file["events/slots_offset"] = offsets([e["slots"] for e in events])
            file["slots/slot"] = np.concatenate([e["slots"] for e in events]).astype(np.int32)
        file["steps/event"], file["steps/step"] = [i for i, _, _ in steps], [s for _, s, _ in steps]
        file["steps/loss"] = [step["loss"] for _, _, step in steps]
        file["steps/n_loss_tokens"] = [step["n_loss_tokens"] for _, _, step in steps]
        file["steps/window_offset"] = offsets([step["windows"] for _, _, step in steps])
        file["windows/sequence"] = np.array([w[0] for w in windows], dtype=np.int32)
        file["windows/window"] = np.array([w[1] for w in windows], dtype=np.int32)
        file["globals/round"], file["globals/offset"] = list(range(len(globals_))), offsets(globals_)
        file["globals/values"] = np.concatenate(globals_)


def write_run(folder: Path, losses: list[float]) -> None:
    """The part of run.h5 that the audit reads."""
    with h5py.File(folder / "run.h5", "w") as file:
        file.attrs.update({"schema_name": "hetlora-run", "schema_version": 1, "committed_rounds": len(losses)})
        file["rounds/round"], file["rounds/eval_loss"] = np.arange(len(losses)), np.array(losses)


def write_adapter(folder: Path, factors: dict, config: dict, llama: PlainLlama) -> None:
    """The final global adapter in PEFT's format."""
    folder.mkdir(exist_ok=True)
    rank = config["lora"]["rank_max"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": config["lora"]["scale"] * rank,
                "target_modules": sorted({m.rsplit(".", 1)[1] for m in factors}), "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for name, (a, bt) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.tensor(a, dtype=llama.dtype)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.tensor(bt.T.copy(), dtype=llama.dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
