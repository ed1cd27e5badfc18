"""The real program on a micro model, audited: the program and stock transformers + peft must agree.

Runs $HETLORA_PROGRAM (default: build/hetlora); without it every test here is skipped, with a warning.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "analysis")]

import micro  # noqa: E402
import simulated_run  # noqa: E402
from hetlora.audit import main  # noqa: E402

PROGRAM = Path(os.environ.get("HETLORA_PROGRAM", ROOT / "build" / "hetlora")).resolve()
if not PROGRAM.is_file():
    warnings.warn(f"SKIPPED: the program was not audited, {PROGRAM} is not built (make build)", stacklevel=1)
pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason=f"{PROGRAM} is not built (make build)")

ADAMW = {"optimizer": "adamw", "learning_rate": 0.02}
FP64 = {"precision": "fp64"}
# Changes to the base setting, and the MPI ranks to run on.
CASES = {
    "sgd fp32": ({}, 1),
    "adamw fp64": ({"model": FP64, "local": ADAMW}, 1),
    "sgd fp64 on 3 MPI ranks": ({"model": FP64}, 3),
    "all-linear, small packs": ({"model": FP64, "lora": {"targets": "all-linear"}, "compute": {"pack_tokens": 64}}, 1),
    "clip, cosine, warm-up, decay": ({"model": FP64, "local": ADAMW | {
        "clip_norm": 0.3, "lr_schedule": "cosine", "lr_warmup_rounds": 1, "weight_decay": 0.1}}, 1),
    "linear, epochs": ({"model": FP64, "local": {"lr_schedule": "linear", "epochs": 2, "steps": 0}}, 1),
    "zeropad": ({"model": FP64, "strategy": {"preset": "zeropad"}}, 1),
    "contributors": ({"model": FP64, "strategy": {
        "slot_norm": "contributors", "client_weight": "uniform", "weight_scope": None, "weight_norm": None}}, 1),
    "matrix scope, keep last": ({"model": FP64, "strategy": {"weight_scope": "matrix", "keep_uncovered": "last"}}, 2),
    "sum of norms, epsilon": ({"model": FP64, "strategy": {"weight_norm": "sum", "tail_norm_epsilon": 1e-6}}, 1),
    "deltas": ({"model": FP64, "strategy": {"aggregate": "deltas"}}, 1),
    "deltas, contributors": ({"model": FP64, "strategy": {"aggregate": "deltas", "slot_norm": "contributors"}}, 1),
    "initial reference, ceil": ({"model": FP64, "strategy": {
        "prune_reference": "initial", "prune_rounding": "ceil", "prune_gamma": 0.6}}, 1),
    "alpha over rank": ({"model": FP64, "lora": {"scale_rule": "alpha_over_rank", "lora_alpha": 8, "scale": None}}, 1),
    "rslora": ({"model": FP64, "lora": {"scale_rule": "rslora", "lora_alpha": 4, "scale": None}}, 1),
    "few clients": ({"model": FP64, "experiment": {"clients_per_round": 2, "rounds": 4}}, 1),
}  # fmt: skip
PRUNING = {"sgd fp32", "adamw fp64", "sgd fp64 on 3 MPI ranks"}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(model folder, prepared file)."""
    torch.set_num_threads(1)
    return micro.build(tmp_path_factory.mktemp("program"))


def write_ini(path: Path, config: dict) -> Path:
    """INI text of a nested config; keys whose value is None are left out."""
    lines = []
    for section, keys in config.items():
        lines.append(f"[{section}]")
        lines += [f"{k} = {str(v).lower() if isinstance(v, bool) else v}" for k, v in keys.items() if v is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def program_config(world, changes: dict, folder: Path) -> dict:
    """The simulated run's setting as the program takes it: without keys that would contradict each other."""
    config = copy.deepcopy(simulated_run.default_config(*world))
    config["experiment"]["clients_per_round"] = 8
    config["lora"]["rank_distribution"] = "uniform"
    config["compute"] = {"device": "cpu", "threads": 1}
    config["evaluation"]["divergence_factor"] = 1000
    config["output"] = {"dir": folder, "trace": True}
    for section, keys in changes.items():
        config[section] |= keys
    unused = "epochs" if not config["local"]["epochs"] else "steps"
    config["local"][unused] = None
    return config


def run_program(config_file: Path, n_mpi_ranks: int) -> subprocess.CompletedProcess:
    """`hetlora run`, under mpirun when more than one MPI rank is asked for."""
    command = [str(PROGRAM), "run", "--config", str(config_file)]
    if n_mpi_ranks > 1:
        if shutil.which("mpirun") is None:
            pytest.skip("mpirun is not installed")
        command = ["mpirun", "-n", str(n_mpi_ranks), *command]
    environment = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("case", CASES)
def test_program_agrees_with_stock_transformers_and_peft(world, tmp_path, capsys, case):
    changes, n_mpi_ranks = CASES[case]
    folder = tmp_path / "run"
    config = program_config(world, changes, folder)
    done = run_program(write_ini(tmp_path / "run.ini", config), n_mpi_ranks)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    fp64 = config["model"]["precision"] == "fp64"
    # --chain in fp64 only: AdamW on gradients near 0 amplifies fp32 rounding from round to round
    options = ["--evaluate", "--threads", "1", "--json", str(tmp_path / "audit.json")]
    options += ["--chain", "--tolerance", "1e-6"] if fp64 else []
    code = main([str(folder), *options])
    table = capsys.readouterr().out
    assert code == 0, table
    facts = json.loads((tmp_path / "audit.json").read_text())["facts"]
    assert facts["prunes in the trace"] == facts["prunes in the replay"]
    if case in PRUNING:
        assert facts["prunes in the trace"] > 0, "this setting has to prune, or pruning was not audited"


def test_a_trace_that_was_tampered_with_fails(world, tmp_path, capsys):
    folder = tmp_path / "run"
    done = run_program(write_ini(tmp_path / "run.ini", program_config(world, {}, folder)), 1)
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "trace.h5", "r+") as file:
        file["adapters/sent"][5] += 0.1
    assert main([str(folder), "--threads", "1"]) == 1
    assert "FAILED" in capsys.readouterr().out
