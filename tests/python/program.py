"""Starts the real program in tests: $HETLORA_PROGRAM (default: build/hetlora), alone or under mpirun.

Every start has one thread, a time limit, and an environment of its own without the launcher's variables.
"""

import copy
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import h5py
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("HETLORA_PROGRAM", ROOT / "build" / "hetlora")).resolve()
if not PROGRAM.is_file():
    warnings.warn(f"SKIPPED: the program was not tested, {PROGRAM} is not built (make build)", stacklevel=1)
needs_program = pytest.mark.skipif(not PROGRAM.is_file(), reason=f"{PROGRAM} is not built (make build)")
needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")

TIME_LIMIT_S = 60
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    # Tests share the machine: a waiting process lets others run, and none is tied to a busy core.
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip

# Pruning, unequal LoRA ranks, dying slots, several packs a round, and windows shorter than the sequences.
CONFIG = {
    "experiment": {"name": "micro", "seed": 7, "rounds": 3, "clients_per_round": 6},
    "data": {"sequence_length": 24, "overlap": 8},
    "lora": {"rank_min": 2, "rank_max": 8},
    "local": {"steps": 3, "batch_size": 3, "optimizer": "sgd", "learning_rate": 0.3},
    "strategy": {"prune_gamma": 0.85, "prune_lambda": 0.3},
    "compute": {"threads": 1, "pack_tokens": 64},
}
# Columns that may differ between numbers of MPI ranks (docs/run-log.md).
NOT_THE_SAME = {"mpi_rank", "peak_memory_bytes", "bytes_up_padded", "bytes_down_padded"}


def environment(**changes: str) -> dict:
    """The environment of every start: one thread, no launcher's variables."""
    foreign = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "HETLORA_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | MPI_ENVIRONMENT | {"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"} | changes


def mpirun(mpi_ranks: int) -> list[str]:
    """The words before the program's own."""
    return ["mpirun", "-n", str(mpi_ranks)]  # more ranks than cores: MPI_ENVIRONMENT


def start(*words: object, mpi_ranks: int = 0, env: dict | None = None, cwd: Path | None = None):
    """Runs `hetlora WORDS` to its end (mpi_ranks = 0: bare) and returns the finished process."""
    command = [*(mpirun(mpi_ranks) if mpi_ranks else []), str(PROGRAM), *map(str, words)]
    return subprocess.run(
        command, env=env or environment(), cwd=cwd, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
    )


def finished(*words: object, **options) -> subprocess.CompletedProcess:
    """The process of a start that has to succeed."""
    done = start(*words, **options)
    assert done.returncode == 0, done.stderr
    return done


def write_ini(path: Path, world: tuple[Path, Path], changes: dict | None = None) -> Path:
    """Writes CONFIG for (model folder, data file) with {section: {key: value or None}} changed; None removes a key."""
    config = {"model": {"path": world[0]}} | copy.deepcopy(CONFIG)
    config["data"]["path"] = world[1]
    for section, keys in (changes or {}).items():
        config.setdefault(section, {}).update(keys)
    lines = []
    for section, keys in config.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {str(v).lower() if isinstance(v, bool) else v}" for key, v in keys.items() if v is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def messages(stderr: str) -> list[str]:
    """The first lines of the program's own messages on stderr, without mpirun's closing words."""
    return re.findall(r"^hetlora(?: \w+)?: .*$", stderr, flags=re.MULTILINE)


def columns(run_h5: Path) -> dict:
    """{"group/name": (dtype, bytes)} of every dataset that must not depend on the number of MPI ranks."""
    found = {}

    def take(name: str, item: object) -> None:
        leaf = name.rsplit("/", 1)[-1]
        if isinstance(item, h5py.Dataset) and leaf not in NOT_THE_SAME and not leaf.startswith("t_"):
            found[name] = (str(item.dtype), item.shape, item[()].tobytes())

    with h5py.File(run_h5) as file:
        file.visititems(take)
    return found
