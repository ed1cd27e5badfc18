"""Workloads of the side-by-side runs: a base model, prepared data, a config and the schedule that every system follows.

    python benchmarks/workloads.py NAME... [--to DIR] [--program FILE]

T, S and M are three sizes with 2 sequences of 64 random tokens a client step; T-small, S-small and M-small take 1
sequence of 16 tokens and more clients; "real" is SmolLM2 on the conversations (windows of up to 256 tokens, loss on own
words only). DIR/NAME gets `config.ini` (runs as it is), `data.h5`, `schedule.npz` (peers/schedule.py) and `made.json`.

The schedule comes from an untimed run of hetlora with a trace: which clients train in which round, the windows of each
of their steps, their weights in the average, and the initial adapter.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "analysis"), str(ROOT / "benchmarks")]

from peers.schedule import Schedule  # noqa: E402

GATE_ROUNDS = 5  #: rounds that every system must agree on before its time counts
LORA_RANK, SCALE, TARGETS = 8, 2.0, "q_proj,v_proj"
SMOLLM2_FOLDERS = ("data/smollm2", "build/test-models/smollm2")
CONVERSATIONS = "data/chitchat-smollm2.h5"


class NotAvailable(Exception):
    """The workload can't be made on this machine; the text says why."""


@dataclass(frozen=True)
class Geometry:
    """Shape of a Llama model with tied embeddings."""

    vocab: int
    hidden: int
    intermediate: int  #: about 8/3 of hidden, a multiple of 64
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Workload:
    """One row of the table below."""

    name: str
    model: str  #: T, S or M
    sequence_length: int  #: input tokens of a window
    clients_per_round: int
    steps: int
    batch_size: int
    learning_rate: float
    rounds: int  #: of a timed process, the first of which doesn't count
    n_clients: int = 64
    conversations: bool = False

    @property
    def client_steps(self) -> int:
        """Local steps of all clients of a round."""
        return self.clients_per_round * self.steps


GEOMETRIES = {
    "T": Geometry(vocab=256, hidden=64, intermediate=192, layers=2, heads=4, kv_heads=4),
    "S": Geometry(vocab=8192, hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=8),
    "M": Geometry(vocab=49152, hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3),
}
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("T", "T", 64, 16, 4, 2, 0.05, rounds=21),
        Workload("S", "S", 64, 16, 4, 2, 0.05, rounds=3),
        Workload("M", "M", 64, 8, 2, 2, 0.002, rounds=3),
        Workload("T-small", "T", 16, 64, 4, 1, 0.05, rounds=21),
        Workload("S-small", "S", 16, 64, 2, 1, 0.05, rounds=3),
        Workload("M-small", "M", 16, 32, 1, 1, 0.002, rounds=3),
        Workload("real", "M", 256, 4, 1, 2, 0.002, rounds=3, conversations=True),
    )
}


def smollm2_folder() -> Path | None:
    """The converted SmolLM2-135M, where a demo or the tests have left it."""
    return next((ROOT / path for path in SMOLLM2_FOLDERS if (ROOT / path / "config.json").is_file()), None)


def make_model(name: str, folder: Path) -> tuple[Path, str]:
    """(model folder, what the weights are): the real SmolLM2 for M where it is at hand, else random weights."""
    if name == "M" and (real := smollm2_folder()) is not None:
        return real, "SmolLM2-135M"
    note = "random weights" + (" (no converted SmolLM2 was found)" if name == "M" else "")
    if (folder / "config.json").is_file():
        return folder, note
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    g = GEOMETRIES[name]
    config = LlamaConfig(
        vocab_size=g.vocab, hidden_size=g.hidden, intermediate_size=g.intermediate, num_hidden_layers=g.layers,
        num_attention_heads=g.heads, num_key_value_heads=g.kv_heads, head_dim=g.hidden // g.heads,
        max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder, note


@dataclass(frozen=True)
class NoTokenizer:
    """Stands for the tokenizer of random ids when a data file is written."""

    vocab_size: int
    sha256: str
    name: str = "random ids"
    bos_id: int = 0
    eos_id: int = 1

    def vocabulary(self) -> list[bytes]:
        """Bytes of every token."""
        return [f"<{token}>".encode() for token in range(self.vocab_size)]


def make_data(workload: Workload, model: Path, path: Path) -> None:
    """Random token ids: every sequence is one window, with loss on all its targets."""
    from hetlora.prepare import data_file
    from hetlora.prepare.splits import TRAIN, VALID

    tokenizer = model / "tokenizer.json"
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else "0" * 64
    vocab = GEOMETRIES[workload.model].vocab
    rng = np.random.default_rng(0)
    n_tokens = workload.sequence_length + 1
    mask = np.ones(n_tokens, dtype=np.uint8)
    mask[0] = 0

    def client(name: str, n_sequences: int, part: int) -> data_file.Client:
        ids = rng.integers(0, vocab, (n_sequences, n_tokens), dtype=np.int32)
        return data_file.Client(name, [data_file.Sequence(row, mask, part) for row in ids], held_out=part != TRAIN)

    n_sequences = 2 * workload.steps * workload.batch_size
    clients = [client(f"client-{i:03d}", n_sequences, TRAIN) for i in range(workload.n_clients)]
    clients.append(client("held-out", 1, VALID))
    recipe = {"benchmark": workload.name}
    prepared = data_file.Prepared(workload.name, "random token ids", "0" * 64, "CC0-1.0", recipe, clients)
    data_file.write(str(path), prepared, NoTokenizer(vocab, sha256))


def write_config(workload: Workload, model: Path, data: Path, path: Path) -> None:
    """FedAvg with plain SGD, evaluated on one window at the start and the end only."""
    config = {
        "experiment": {
            "name": f"bench-{workload.name}", "rounds": workload.rounds,
            "clients_per_round": workload.clients_per_round,
        },
        "model": {"path": model},
        "data": {
            "path": data, "sequence_length": workload.sequence_length, "overlap": 0,
            "min_windows": workload.steps * workload.batch_size,
        },
        "lora": {"targets": TARGETS, "rank_distribution": "fixed", "rank_max": LORA_RANK, "scale": SCALE},
        "local": {
            "steps": workload.steps, "batch_size": workload.batch_size, "optimizer": "sgd",
            "learning_rate": workload.learning_rate, "weight_decay": 0, "clip_norm": 0,
        },
        "strategy": {"preset": "fedavg"},
        "evaluation": {"every": 1000000, "sequences": 1, "divergence_factor": 0},
        "compute": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    lines = []
    for section, keys in config.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    path.write_text("\n".join(lines))


def read_schedule(workload: Workload, run_dir: Path, data_path: Path) -> Schedule:
    """The trace's ids as tokens, targets, weights and the initial adapter."""
    from hetlora.audit_config import read_settings
    from hetlora.audit_data import Prepared
    from hetlora.audit_trace import Trace, split

    trace = Trace(run_dir / "trace.h5")
    data = Prepared(data_path, read_settings(run_dir))
    rounds = max(event.round for event in trace.events)
    shape = (rounds, workload.clients_per_round, workload.steps, workload.batch_size)
    windows, weights = np.full(shape, -1, dtype=np.int64), np.zeros(shape[:2])
    number: dict[tuple[int, int], int] = {}  # (sequence, window) -> row of inputs and targets
    place = [0] * (rounds + 1)
    for event in trace.events:
        k, place[event.round] = place[event.round], place[event.round] + 1
        assert event.lora_rank_before == LORA_RANK and not event.dropped and event.n_steps == workload.steps
        weights[event.round - 1, k] = event.weight
        for s, step in enumerate(trace.steps(event)):
            for b, window in enumerate(step.windows):
                windows[event.round - 1, k, s, b] = number.setdefault(window, len(number))
    inputs = np.zeros((len(number), workload.sequence_length), dtype=np.int64)
    targets = np.full_like(inputs, -100)
    lengths = np.zeros(len(number), dtype=np.int64)
    for (sequence, window_number), row in number.items():
        window = data.window(sequence, window_number)
        ids, rows, wanted = data.tokens(window)
        inputs[row, : len(ids)] = ids
        targets[row, rows] = wanted
        lengths[row] = len(ids)
    pairs = split(trace.global_adapter(0), trace.layout, LORA_RANK)
    initial = [np.asarray(x, dtype=np.float32) for a, bt in pairs for x in (a, bt.T)]
    return Schedule(
        inputs=inputs, targets=targets, lengths=lengths, windows=windows, weights=weights,
        matrices=[name for name, _, _ in trace.layout], initial=initial, scale=SCALE,
        learning_rate=workload.learning_rate,
    )  # fmt: skip


def trace_run(workload: Workload, program: Path, config: Path, folder: Path) -> None:
    """The untimed run whose schedule everybody follows."""
    shutil.rmtree(folder, ignore_errors=True)
    rounds = max(GATE_ROUNDS, workload.rounds)
    changes = [f"experiment.rounds={rounds}", f"output.dir={folder}", "output.trace=true"]
    done = subprocess.run([str(program), "run", "--config", str(config), *changes], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotAvailable(f"hetlora run ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")


def prepare(workload: Workload, to: Path) -> tuple[Path, str]:
    """(config file, what the weights are): model, data and config of a workload, without the peers' schedule."""
    if workload.conversations and (smollm2_folder() is None or not (ROOT / CONVERSATIONS).is_file()):
        raise NotAvailable(f"needs {SMOLLM2_FOLDERS[0]} and {CONVERSATIONS} (`make demo-llm` makes both)")
    folder = to / workload.name
    folder.mkdir(parents=True, exist_ok=True)
    model, weights = make_model(workload.model, to / "models" / workload.model)
    data = ROOT / CONVERSATIONS if workload.conversations else folder / "data.h5"
    if not workload.conversations:
        make_data(workload, model, data)
    config = folder / "config.ini"
    write_config(workload, model, data, config)
    return config, weights


def make(workload: Workload, to: Path, program: Path) -> Path:
    """Makes the workload's folder unless it is there and made from the same things; returns it."""
    folder = to / workload.name
    stat = program.stat()
    made_from = {"workload": asdict(workload), "program": [stat.st_size, stat.st_mtime_ns]}
    made_file = folder / "made.json"
    if made_file.is_file() and json.loads(made_file.read_text())["from"] == made_from:
        return folder
    made_file.unlink(missing_ok=True)
    config, weights = prepare(workload, to)
    written = configparser.ConfigParser()
    written.read(config)
    data = Path(written["data"]["path"])
    trace = folder / "trace"
    trace_run(workload, program, config, trace)
    schedule = read_schedule(workload, trace, data)
    schedule.save(folder / "schedule.npz")
    with h5py.File(trace / "run.h5") as file:
        losses = file["rounds/train_loss"][1:].tolist()
    made = {
        "from": made_from, "model": written["model"]["path"], "weights": weights, "train_loss": losses,
        "tokens_per_round": schedule.tokens_per_round(), "loss_tokens_per_round": schedule.loss_tokens_per_round(),
    }  # fmt: skip
    made_file.write_text(json.dumps(made, indent=1) + "\n")
    return folder


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the folders of the workloads.")
    parser.add_argument("names", nargs="+", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "hetlora")
    parser.add_argument("--rounds", type=int, default=0, help="trace this many rounds instead of the table's")
    arguments = parser.parse_args()
    for name in arguments.names:
        workload = WORKLOADS[name]
        if arguments.rounds:
            workload = replace(workload, rounds=arguments.rounds)
        try:
            print(make(workload, arguments.to.resolve(), arguments.program.resolve()))
        except NotAvailable as reason:
            print(f"{name}: {reason}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
