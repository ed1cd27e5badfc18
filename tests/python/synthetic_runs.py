"""Run folders with made-up numbers, as the program would have written them, for tests of the analysis.

python tests/python/synthetic_runs.py DIR N_RUNS N_ROUNDS     a sweep of that size, for measuring
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

BASE, DATA = "b" * 64, "d" * 64
CONFIG = {
    "experiment": {"name": "", "tags": "", "rounds": 3, "clients_per_round": 2, "seed": 0, "seed_init": 0,
                   "seed_ranks": 0, "seed_sampling": 0, "seed_partition": 0, "seed_data": 0},
    "model": {"path": "/models/base", "precision": "fp32"},
    "data": {"path": "/data/chat.h5", "sequence_length": 64, "partition": "natural", "partition_clients": 0},
    "lora": {"targets": ["q_proj", "v_proj"], "rank_distribution": "powerlaw", "rank_min": 2, "rank_max": 4},
    "local": {"steps": 2, "learning_rate": 0.001, "optimizer": "adamw"},
    "strategy": {"preset": "hetlora", "prune_gamma": 0.99},
    "evaluation": {"every": 1, "sequences": 200, "part": "valid"},
    "compute": {"device": "cpu", "threads": 1},
    "output": {"dir": "", "trace": False},
}  # fmt: skip
ROUND_FLOATS = ("train_loss", "eval_loss", "eval_perplexity", "eval_accuracy", "t_round_s", "t_train_s", "t_comm_s",
                "t_aggregate_s", "t_eval_s", "t_io_s", "adapter_norm", "effective_rank")  # fmt: skip
ROUND_INT64 = ("round", "tokens", "bytes_up_true", "bytes_up_padded", "bytes_down_true", "bytes_down_padded",
               "peak_memory_bytes")  # fmt: skip
ROUND_INT32 = ("n_clients", "slots_alive")
EVENT_TYPES = {"round": "i8", "client": "i4", "mpi_rank": "i4", "pack": "i4", "lora_rank_before": "i4",
               "lora_rank_after": "i4", "n_steps": "i4", "n_tokens": "i8", "weight": "f8", "loss_first": "f8",
               "loss_last": "f8", "t_train_s": "f8", "dropped": "i1"}  # fmt: skip


@dataclass
class Made:
    """What a made-up run is to be. `curve`: round -> eval_perplexity; `columns` replaces whole columns of /rounds."""

    rounds: int = 3
    curve: Callable[[int], float] = lambda t: 100.0 - t
    settings: dict[str, object] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)
    extra_metrics: tuple[str, ...] = ()
    rank_max: int = 4
    state: str = "done"
    rows_beyond: int = 0
    base_sha256: str = BASE
    data_sha256: str = DATA
    mpi_size: int = 1
    described: bool = True
    """Whether run.h5 gets units, long names and dimension scales, which take most of the time of writing."""


def config_of(folder: Path, made: Made) -> dict:
    """The run's config.json; a seed of one purpose follows experiment.seed unless it is set."""
    config = copy.deepcopy(CONFIG)
    config["experiment"] |= {"name": folder.name, "rounds": made.rounds}
    config["output"]["dir"] = str(folder)
    settings = dict(made.settings)
    if "experiment.seed" in settings:
        for name in ("seed_init", "seed_ranks", "seed_sampling", "seed_partition", "seed_data"):
            settings.setdefault(f"experiment.{name}", settings["experiment.seed"])
    for key, value in settings.items():
        section, name = key.split(".")
        config.setdefault(section, {})[name] = value
    return config


def rounds_of(made: Made) -> dict[str, np.ndarray]:
    """/rounds, `rows_beyond` rows of an interrupted round included."""
    t = np.arange(made.rounds + 1 + made.rows_beyond)
    perplexity = np.array([made.curve(int(one)) for one in t], float)
    values = {name: t * 1.0 for name in ROUND_FLOATS} | {name: t * 10 for name in ROUND_INT64 + ROUND_INT32}
    values |= {f"eval_{name}": t / 7.0 for name in made.extra_metrics}
    values |= {"round": t, "eval_perplexity": perplexity, "eval_loss": np.log(perplexity),
               "t_round_s": np.full(len(t), 0.5), "bytes_up_true": np.where(t > 0, 1000, 0),
               "bytes_down_true": np.where(t > 0, 2000, 0), "slots_alive": np.full(len(t), made.rank_max)}  # fmt: skip
    values |= {name: np.array(column, float) for name, column in made.columns.items()}
    kinds = dict.fromkeys(ROUND_INT64, "i8") | dict.fromkeys(ROUND_INT32, "i4")
    return {name: column.astype(kinds.get(name, "f8")) for name, column in values.items()}


def events_of(made: Made) -> dict[str, np.ndarray]:
    """/participation: clients 0 and 1 take part in every round."""
    rounds = np.repeat(np.arange(1, made.rounds + 1 + made.rows_beyond), 2)
    client = np.tile([0, 1], len(rounds) // 2)
    values = {name: client * 1.0 for name in EVENT_TYPES} | {"round": rounds, "client": client}
    values |= {"weight": np.full(len(rounds), 0.5), "lora_rank_before": client + 2, "lora_rank_after": client + 1}
    return {name: values[name].astype(kind) for name, kind in EVENT_TYPES.items()}


def write_run(folder: Path, made: Made | None = None) -> Path:
    """Writes the folder of a run: run.h5, progress.jsonl, config.json, config.ini (its head), status.json, COMPLETE."""
    made = made or Made()
    folder.mkdir(parents=True)
    config = config_of(folder, made)
    identity = hashlib.sha256(json.dumps([config, made.base_sha256, made.data_sha256]).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    head = f"# identity {identity}\n# base sha256 {made.base_sha256}\n# data sha256 {made.data_sha256}\n"
    (folder / "config.ini").write_text(head)
    rounds, events = rounds_of(made), events_of(made)
    n = len(rounds["round"])
    slots = {
        "round": np.arange(n),
        "slot": np.arange(made.rank_max, dtype="i4"),
        "energy": np.full((n, made.rank_max), 1.0 / made.rank_max),
        "n_contributors": np.full((n, made.rank_max), 2, "i4"),
    }
    with h5py.File(folder / "run.h5", "w") as file:
        texts = {"schema_name": "hetlora-run", "run_id": identity, "creator": "hetlora", "default": "rounds"}
        for name, text in texts.items():
            file.attrs[name] = np.bytes_(text)
        file.attrs["schema_version"] = 1
        file.attrs["rank_max"] = made.rank_max
        scale_of = {"rounds": "round", "slots": "round", "participation": "event", "clients": "client"}
        tables = {"rounds": rounds, "slots": slots}
        tables["participation"] = {"event": np.arange(len(events["round"]))} | events
        tables["clients"] = {"client": np.arange(2, dtype="i4"), "name": np.array([b"ann", "jörg".encode()]),
                   "n_train_sequences": np.array([3, 4]), "n_train_tokens": np.array([300, 400]),
                   "initial_lora_rank": np.array([2, 4], "i4"), "eval_loss_base": np.array([3.0, 4.0]),
                   "eval_loss_final": np.array([2.0, np.nan])}  # fmt: skip
        for group, columns in tables.items():
            _write_table(file, group, columns, scale_of[group] if made.described else "")
        about = {"base_sha256": made.base_sha256, "data_sha256": made.data_sha256, "devices": "cpu"}
        for name, text in about.items():
            file.require_group("provenance").attrs[name] = np.bytes_(text)
        file["provenance"].attrs["mpi_size"] = made.mpi_size
        file["provenance"].attrs["threads"] = 1
        file.attrs["committed_rounds"] = made.rounds + 1
    _write_progress(folder / "progress.jsonl", rounds, events, slots, made.rounds + 1)
    status = {"state": made.state, "run_id": identity, "round": made.rounds, "rounds": config["experiment"]["rounds"],
              "host": "elsewhere", "message": "non-finite loss" if made.state == "failed" else ""}  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    if made.state == "done":
        (folder / "COMPLETE").write_text(f"2026-01-01T00:00:00Z\n{made.rounds} rounds\n")
    return folder


def _write_table(file: h5py.File, group: str, columns: dict[str, np.ndarray], scale: str) -> None:
    """One group; with units, long names and dimension scales if it is said what its scale is."""
    for name, values in columns.items():
        growing = group in ("rounds", "slots", "participation") and name != "slot"
        limit = {"maxshape": (None, *values.shape[1:]), "chunks": (256, *values.shape[1:])} if growing else {}
        data = file.create_dataset(f"{group}/{name}", data=values, **limit)
        if not scale:
            continue
        data.attrs["units"] = np.bytes_("1")
        data.attrs["long_name"] = np.bytes_(f"made-up {name}")
    if not scale:
        return
    file[f"{group}/{scale}"].make_scale(scale)
    for name, values in columns.items():
        if name not in (scale, "slot"):
            file[f"{group}/{name}"].dims[0].attach_scale(file[f"{group}/{scale}"])
        if values.ndim == 2:
            file[f"{group}/slot"].make_scale("slot")
            file[f"{group}/{name}"].dims[1].attach_scale(file[f"{group}/slot"])


def _write_progress(file: Path, rounds: dict, events: dict, slots: dict, committed: int) -> None:
    def plain(value: np.generic) -> object:
        return None if value != value else value.item()

    lines = []
    for t in range(committed):
        line = {name: plain(values[t]) for name, values in rounds.items()}
        chosen = np.flatnonzero(events["round"] == t)
        line["participation"] = [{n: plain(v[i]) for n, v in events.items() if n != "round"} for i in chosen]
        line["slots"] = {name: slots[name][t].tolist() for name in ("energy", "n_contributors")}
        lines.append(json.dumps(line))
    file.write_text("\n".join(lines) + "\n")


def write_sweep(folder: Path, runs: list[Made]) -> Path:
    """A sweep's folder of these runs, named as the program names them: <settings>_<eight digits>."""
    for i, made in enumerate(runs):
        label = "_".join(str(value) for value in made.settings.values()) or "run"
        write_run(folder / f"{label}_{i:08x}", made)
    return folder


if __name__ == "__main__":
    where, n_runs, n_rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    presets = ("hetlora", "zeropad", "fedavg", "flora")
    write_sweep(
        where,
        [
            Made(
                rounds=n_rounds,
                rank_max=32,
                settings={"strategy.preset": presets[i % 4], "experiment.seed": i // 4},
            )
            for i in range(n_runs)
        ],
    )
