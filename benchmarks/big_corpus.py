"""What a run costs that has very many registered clients: start, a round outside training, memory of each MPI rank.

    python benchmarks/big_corpus.py [--clients 1000,100000,1000000] [--tokens 2700] [--mpi-ranks 1,2] [--keep DIR]

Makes prepared data of so many clients (constant memory; 1,000,000 clients of 2,700 tokens are 13.5 GB on disk), then
times `check` and `run` of the tiny base (models/tiny-chat) with the same 10 clients a round. Every figure is of the
second of two starts, when the file lies in the page cache, but for `first start`, which hashes the file.
`--program` measures another build; `--verbs` adds `plan` and `info`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "tiny-chat"
BLOCK = 20_000  # clients that are written at once
SEQUENCES = 4  # of a client
TRAIN, VALID, TEST = 0, 1, 2
HELD_OUT_EVERY = 20  # one client of so many never trains
WORDS = [
    "data.sequence_length=64", "data.overlap=16", "experiment.clients_per_round=10", "experiment.rounds=5",
    "local.steps=2", "local.batch_size=4", "lora.rank_min=2", "lora.rank_max=8", "lora.targets=q_proj,v_proj",
    "evaluation.sequences=50", "evaluation.every=5", "evaluation.samples=0", "compute.threads=1", "compute.gemm=mkl",
    "compute.pack_tokens=1024", "experiment.name=big",
]  # fmt: skip


def parts_of(clients: np.ndarray) -> np.ndarray:
    """uint8 [len(clients), SEQUENCES]: parts of each client's sequences, sorted."""
    held = clients % HELD_OUT_EVERY == 0
    own = np.array([TRAIN] * (SEQUENCES - 1) + [VALID], dtype=np.uint8)
    other = np.array([VALID] * (SEQUENCES // 2) + [TEST] * (SEQUENCES - SEQUENCES // 2), dtype=np.uint8)
    return np.where(held[:, None], other, own)


def write_corpus(path: Path, n_clients: int, tokens_of_a_client: int) -> None:
    """Prepared data of `n_clients` clients with random words; about BLOCK clients are in memory at once."""
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)
    vocab_size = json.loads((MODEL / "config.json").read_text())["vocab_size"]
    pieces = [name.encode() for name in names] + [b""] * (vocab_size - len(names))
    length = max(8, tokens_of_a_client // SEQUENCES)
    n_sequences = n_clients * SEQUENCES
    generator = np.random.default_rng(1)
    attributes = {
        "schema_name": "hetlora-data", "schema_version": 1, "creator": "benchmarks/big_corpus.py",
        "created_utc": "2000-01-01T00:00:00Z", "name": "big", "source": "random words", "source_sha256": "0" * 64,
        "license": "CC0-1.0", "tokenizer_sha256": "", "tokenizer_name": "tiny-chat", "vocab_size": vocab_size,
        "bos_id": -1, "eos_id": -1, "recipe": "{}",
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, value in attributes.items():
            file.attrs[key] = np.bytes_(value.encode() or b"\0") if isinstance(value, str) else np.int64(value)
        shapes = {
            "tokens/ids": (n_sequences * length, "i4"), "tokens/mask": (n_sequences * length, "u1"),
            "sequences/offset": (n_sequences + 1, "i8"), "sequences/client": (n_sequences, "i4"),
            "sequences/part": (n_sequences, "u1"), "sequences/label": (n_sequences, "i4"),
            "sequences/prompt_length": (n_sequences, "i4"), "clients/offset": (n_clients + 1, "i8"),
            "sequences/n_loss": (n_sequences, "i4"),
            "clients/name": (n_clients, "S14"), "clients/held_out": (n_clients, "u1"),
        }  # fmt: skip
        data = {name: file.create_dataset(name, (rows,), dtype=kind) for name, (rows, kind) in shapes.items()}
        mask = np.tile((np.arange(length) >= length // 2).astype(np.uint8), SEQUENCES)
        for begin in range(0, n_clients, BLOCK):
            clients = np.arange(begin, min(begin + BLOCK, n_clients))
            rows = slice(begin * SEQUENCES, (begin + len(clients)) * SEQUENCES)
            tokens = slice(rows.start * length, rows.stop * length)
            size = tokens.stop - tokens.start
            data["tokens/ids"][tokens] = generator.integers(0, vocab_size, size, dtype=np.int32)
            data["tokens/mask"][tokens] = np.tile(mask, len(clients))
            data["sequences/client"][rows] = np.repeat(clients, SEQUENCES)
            data["sequences/part"][rows] = parts_of(clients).ravel()
            data["sequences/label"][rows] = -1
            data["sequences/prompt_length"][rows] = length // 2
            data["sequences/n_loss"][rows] = length - length // 2
            data["clients/name"][clients[0] : clients[-1] + 1] = [b"client-%07d" % c for c in clients]
            data["clients/held_out"][clients[0] : clients[-1] + 1] = clients % HELD_OUT_EVERY == 0
        data["sequences/offset"][:] = np.arange(n_sequences + 1) * length
        data["clients/offset"][:] = np.arange(n_clients + 1) * SEQUENCES
        file.create_dataset("vocab/bytes", data=np.frombuffer(b"".join(pieces), dtype=np.uint8))
        ends = np.cumsum([0] + [len(piece) for piece in pieces])
        file.create_dataset("vocab/offset", data=ends.astype(np.int64))


@dataclass
class Case:
    """One measured start."""

    program: Path
    data: Path
    mpi_ranks: int


def start(case: Case, verb: str, folder: Path) -> tuple[float, float]:
    """(seconds, largest memory of a process in MiB) of one start of `verb`, which must succeed."""
    words = [f"model.path={MODEL}", f"data.path={case.data}", *WORDS]
    config = folder / "big.ini"
    config.write_text("[experiment]\nname = big\n")
    command = [str(case.program), verb, "--config", str(config), *words]
    if verb == "info":
        command = [str(case.program), "info", str(case.data)]
    if verb == "run":
        command += ["--output", str(folder / "run")]
    if case.mpi_ranks > 1:
        command = ["mpirun", "-n", str(case.mpi_ranks), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\n{errors.decode()}")
    return time.perf_counter() - began, used.ru_maxrss / 1024


def measure(case: Case) -> dict[str, float]:
    """The figures of `run`: seconds to the first round, of a round outside training and evaluation, MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds, _ = start(case, "run", folder)
        with h5py.File(folder / "run" / "run.h5") as log:
            rounds = {name: log[f"rounds/{name}"][:] for name in log["rounds"] if name.startswith(("t_", "peak"))}
            n_log = (folder / "run" / "run.h5").stat().st_size
        quiet = slice(1, 5)  # rounds without an evaluation, which is after the last
        outside = rounds["t_round_s"][quiet] - rounds["t_train_s"][quiet]
        return {
            "start_s": seconds - float(np.nansum(rounds["t_round_s"])),
            "round_s": float(np.median(rounds["t_round_s"][quiet])),
            "outside_s": float(np.median(outside)),
            "peak_mib": float(rounds["peak_memory_bytes"].max()) / 2**20,
            "log_mib": n_log / 2**20,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1000,100000,1000000")
    parser.add_argument("--tokens", type=int, default=2700, help="of a client")
    parser.add_argument("--mpi-ranks", default="1,2")
    parser.add_argument("--keep", metavar="DIR", help="keep (and find again) the data in this folder")
    parser.add_argument("--program", default=str(ROOT / "build/hetlora"))
    parser.add_argument("--verbs", default="check", help="other verbs to time, e.g. check,plan,info")
    parser.add_argument("--write", metavar="FILE", help="only write the data of the first of --clients")
    arguments = parser.parse_args()
    if arguments.write:
        write_corpus(Path(arguments.write), int(arguments.clients.split(",")[0]), arguments.tokens)
        return 0
    print(
        f"{'clients':>9} {'ranks':>5} {'start s':>8} {'round s':>8} {'outside training s':>18} {'peak MiB':>9}  log MiB"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for clients in map(int, arguments.clients.split(",")):
            data = Path(arguments.keep or scratch) / f"big-{clients}.h5"
            if not data.exists():
                # In a process of its own: what a parent held counts in the largest memory of its children.
                words = ["--write", str(data), "--clients", str(clients), "--tokens", str(arguments.tokens)]
                subprocess.run([sys.executable, __file__, *words], check=True)
                first, _ = start(Case(Path(arguments.program), data, 1), "check", Path(scratch))
                print(f"{clients:9,} first start (check): {first:.1f} s", flush=True)
            for verb in filter(None, arguments.verbs.split(",")):
                seconds, peak = start(Case(Path(arguments.program), data, 1), verb, Path(scratch))
                print(f"{clients:9,} {verb}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
            for mpi_ranks in map(int, arguments.mpi_ranks.split(",")):
                row = measure(Case(Path(arguments.program), data, mpi_ranks))
                print(
                    f"{clients:9,} {mpi_ranks:5} {row['start_s']:8.2f} {row['round_s']:8.3f} {row['outside_s']:18.3f} "
                    f"{row['peak_mib']:9.0f} {row['log_mib']:8.1f}",
                    flush=True,
                )
            if not arguments.keep:
                data.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
