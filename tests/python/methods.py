"""The table of methods as the program prints it, runs of them on a micro world, true bytes from the printed formula.

Everything here comes from `hetlora strategies --json`, so that a new row is tested without writing a test.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import program

RANK_MAX, RANK_MIN = 8, 2
RANK_LIST = (2, 4, 8, 4, 2)  # client i has RANK_LIST[i % 5]: of the trained clients, 2 and 7 have the largest one
SPOILT = 4  # the client whose training data holds a token of which the base makes NaN
SPOILT_TOKEN = 95  # "}", which no other text of the micro corpus has
# Sum over the adapted matrices (q_proj and v_proj of two layers) of d_in and of d_out.
D_IN, D_OUT, N_MATRICES = 2 * (32 + 32), 2 * (32 + 16), 4
# All weights: embedding and head, last norm, and of each of two layers the norms, q, k, v, o, gate, up, down.
N_WEIGHTS = 2 * 96 * 32 + 32 + 2 * (2 * 32 + 32 * (32 + 16 + 16 + 32) + 3 * 64 * 32)


def table() -> list[dict]:
    """Every preset as printed; empty where the program is not built (its tests are then skipped)."""
    if not program.PROGRAM.is_file():
        return []
    done = subprocess.run(
        [program.PROGRAM, "strategies", "--json"], capture_output=True, text=True, check=True,
        env=program.environment(), timeout=program.TIME_LIMIT_S,
    )  # fmt: skip
    return json.loads(done.stdout)


TABLE = {row["name"]: row for row in table()}
#: Those that train adapters.
ADAPTED = [name for name, row in TABLE.items() if row["policies"]["trainable"] != "base"]


def spoil(folder: Path, model: Path, data: Path) -> tuple[Path, Path]:
    """A copy of the micro world in which client SPOILT's training is not finite, and nobody else's."""
    from safetensors.torch import load_file, save_file

    copies = folder / "spoilt_model", folder / "spoilt.h5"
    shutil.copytree(model, copies[0])
    tensors = load_file(copies[0] / "model.safetensors")
    tensors["model.embed_tokens.weight"][SPOILT_TOKEN] = float("nan")
    save_file(tensors, copies[0] / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(data, copies[1])
    with h5py.File(copies[1], "r+") as file:
        ids = file["tokens/ids"][:]
        assert not (ids == SPOILT_TOKEN).any()
        for sequence, client in enumerate(file["sequences/client"][:]):
            if client == SPOILT and file["sequences/part"][sequence] == 0:
                first, end = file["sequences/offset"][sequence : sequence + 2]
                ids[first + 1 : end : 5] = SPOILT_TOKEN
        file["tokens/ids"][:] = ids
    return copies


def settings(row: dict, world: tuple[Path, Path], **changes: object) -> list[str]:
    """The words of a run of a preset: mixed lora_ranks where it takes them, several packs a round."""
    words = {
        "experiment.name": "micro", "experiment.seed": 6, "experiment.rounds": 4, "experiment.clients_per_round": 4,
        "model.path": world[0], "data.path": world[1], "data.sequence_length": 24, "data.overlap": 8,
        "data.min_windows": 1,
        "lora.rank_min": RANK_MIN, "lora.rank_max": RANK_MAX,
        "local.steps": 3, "local.batch_size": 3, "local.learning_rate": 0.01,
        "compute.threads": 1, "compute.pack_tokens": 96,
    }  # fmt: skip
    if row["requires_equal_lora_ranks"]:
        words["lora.rank_distribution"] = "fixed"
    else:
        words |= {"lora.rank_distribution": "list", "lora.rank_list": ",".join(map(str, client_ranks()))}
    words |= {"strategy.preset": row["name"]} | changes
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in words.items()]


def client_ranks() -> list[int]:
    return [RANK_LIST[client % len(RANK_LIST)] for client in range(12)]


def run(folder: Path, words: list[str], mpi_ranks: int = 0, *more: object) -> Path:
    """Runs to the end and returns the folder."""
    done = program.start("run", "--output", folder, *words, *more, mpi_ranks=mpi_ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def log(run_folder: Path) -> SimpleNamespace:
    """rounds, participation: {column: array}."""
    with h5py.File(run_folder / "run.h5") as file:
        groups = {g: {name: file[g][name][:] for name in file[g]} for g in ("rounds", "participation", "clients")}
    return SimpleNamespace(**groups)


def state(run_folder: Path) -> Path:
    """The state file of the last checkpoint."""
    return max((run_folder / "checkpoint").iterdir()) / "state.safetensors"


def state_values(run_folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(state(run_folder))


def private_files(run_folder: Path) -> dict[str, bytes]:
    """{client: bytes} of the versions that the last checkpoint names."""
    rounds = state_values(run_folder).get("private_rounds", np.zeros(0, int))
    return {
        f"client {client}": (run_folder / f"private/client_{client:06}/round_{round_:06}.safetensors").read_bytes()
        for client, round_ in enumerate(rounds.tolist())
        if round_ > 0
    }


def assert_same(here: Path, there: Path) -> None:
    """The same bits in the log, the adapter, the checkpoint (with a changed base, moments) and private factors."""
    mine, other = program.columns(here / "run.h5"), program.columns(there / "run.h5")
    assert mine.keys() == other.keys()
    assert [name for name in other if mine[name] != other[name]] == []
    name = "adapter/adapter_model.safetensors"  # of methods that have one: else the checkpoint is the result
    assert (here / name).exists() == (there / name).exists()
    assert not (there / name).exists() or (here / name).read_bytes() == (there / name).read_bytes()
    mine, other = state_values(here), state_values(there)
    assert mine.keys() == other.keys()
    assert [name for name in other if mine[name].tobytes() != other[name].tobytes()] == []
    assert private_files(here) == private_files(there)


# --- true bytes, from the formula that the program prints ---


def symbol(text: str, event: dict, stack: int) -> int:
    """r_k, R or sum_j r_j, the slots of the stack that the round before has left."""
    return {"r_k": event["lora_rank"], "R": RANK_MAX, "sum_j r_j": stack}[text]


def term_bytes(term: str, event: dict, stack: int, value_bytes: int) -> int:
    """Bytes of one summand of a formula."""
    if " | " in term:  # what travels in odd rounds, what in even ones
        term = term.split(" | ")[(event["round"] + 1) % 2]
    if term == "1":
        return value_bytes
    if term == "W":
        return N_WEIGHTS * value_bytes
    if term == "mask":
        return math.ceil(N_MATRICES * RANK_MAX / 8)
    if term.startswith("P("):
        return symbol(term[2:-1], event, stack) * (D_IN + D_OUT) * value_bytes
    slots, _, width = term.rpartition(" ")
    return symbol(slots, event, stack) * {"d_in": D_IN, "d_out": D_OUT}[width] * value_bytes


def formula_bytes(formula: str, event: dict, stack: int, value_bytes: int = 4) -> int:
    return sum(term_bytes(term, event, stack, value_bytes) for term in formula.split(" + "))


def check_true_bytes(row: dict, logged: SimpleNamespace, value_bytes: int = 4) -> None:
    """Every round's columns against the formulas of the row; a formula "x, y <= z" names a bound z of x."""
    events, stack = logged.participation, 0
    for round_ in logged.rounds["round"].tolist():
        of_round = np.flatnonzero(events["round"] == round_)
        up = down = bound = next_stack = 0
        for e in of_round:
            before = {"round": round_, "lora_rank": int(events["lora_rank_before"][e])}
            after = {"round": round_, "lora_rank": int(events["lora_rank_after"][e])}
            exact, _, limit = row["down"].partition(", ")
            if limit:
                bound += formula_bytes(f"P({limit.partition('<= ')[2]})", before, stack, value_bytes)
            else:
                down += formula_bytes(exact, before, stack, value_bytes)
            if not events["dropped"][e]:
                up += formula_bytes(row["up"], after, stack, value_bytes)
                next_stack += after["lora_rank"]
        stack = next_stack
        at = int(np.flatnonzero(logged.rounds["round"] == round_)[0])
        assert logged.rounds["bytes_up_true"][at] == up, f"up in round {round_}"
        found = int(logged.rounds["bytes_down_true"][at])
        if bound:
            assert 0 < found <= bound, f"down in round {round_}"
        else:
            assert found == down, f"down in round {round_}"
