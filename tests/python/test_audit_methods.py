"""Every method of the real program on a micro model, audited: both must agree, in fp64 and in fp32.

All audits share one process; a program run takes about a second.
"""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

import micro  # noqa: E402
import program  # noqa: E402
from hetlora.audit import main  # noqa: E402

pytestmark = program.needs_program

FEW = {"experiment": {"rounds": 3, "clients_per_round": 5, "seed": 7}}
EQUAL = {"lora": {"rank_distribution": "fixed"}}
# Preset (with what it needs or what shows it), MPI ranks, precision.
CASES = {
    "hetlora": ({"strategy": {"prune_gamma": 0.85, "prune_lambda": 0.3}}, 1, "fp64"),
    "zeropad": ({}, 2, "fp64"),
    "fedavg": (EQUAL, 1, "fp64"),
    "fedprox": ({"strategy": {"prox_mu": 0.5}}, 1, "fp64"),
    "rbla": ({}, 2, "fp32"),
    "replicate": ({}, 1, "fp64"),
    "flexlora": ({}, 2, "fp64"),
    "flexlora fp32": ({}, 1, "fp32"),
    "hlora": ({}, 1, "fp64"),
    "raflora": ({}, 1, "fp64"),
    "rb-lora": ({}, 1, "fp64"),
    "flora": ({}, 2, "fp64"),
    "flora fp32": ({}, 1, "fp32"),
    "florist": ({}, 1, "fp64"),
    "fedex": (EQUAL, 2, "fp64"),
    "ffa": ({}, 1, "fp64"),
    "ffa fp32": ({}, 1, "fp32"),
    "rolora": ({}, 1, "fp64"),
    "fslora": ({}, 2, "fp64"),
    "fslora fp32": ({}, 1, "fp32"),
    "fed-plora": ({}, 1, "fp64"),
    "lora-a2": ({}, 2, "fp64"),
    "fedsa": ({"experiment": {"rounds": 4}}, 2, "fp64"),
    "fedsa fp32": ({}, 1, "fp32"),
    "sa-fedlora": ({"experiment": {"rounds": 4}, "strategy": {"prox_mu": 0.5, "anneal_start": 0.3}}, 1, "fp64"),
    # policies that no preset has
    "fslora, momentum": ({"strategy": {"server_optimizer": "momentum", "server_learning_rate": 0.7}}, 1, "fp64"),
    "fslora, adam": ({"strategy": {"server_optimizer": "adam", "server_learning_rate": 0.01}}, 1, "fp64"),
    "zeropad, importance": ({"strategy": {"slot_select": "importance", "slot_norm": "contributors",
                                          "keep_uncovered": "last"}}, 1, "fp64"),
    "fed-plora, adamw": ({"local": {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1,
                                    "clip_norm": 0.3}}, 1, "fp64"),
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(model folder, prepared file)."""
    torch.set_num_threads(1)
    return micro.build(tmp_path_factory.mktemp("methods"))


def run(world, folder: Path, case: str) -> Path:
    """A traced run of this case."""
    changes, mpi_ranks, precision = CASES[case]
    sections = {"experiment": dict(FEW["experiment"]), "model": {"precision": precision}, "lora": {}, "local": {},
                "evaluation": {"divergence_factor": 1000}, "output": {"trace": True, "dir": folder / "run"},
                "strategy": {"preset": case.split()[0].rstrip(","), "prune_gamma": None, "prune_lambda": None}}  # fmt: skip
    sections["lora"]["rank_distribution"] = "uniform"
    for section, keys in changes.items():
        sections[section] |= keys
    done = program.start("run", "--config", program.write_ini(folder / "run.ini", world, sections),
                         mpi_ranks=mpi_ranks if mpi_ranks > 1 else 0)  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return folder / "run"


@pytest.mark.parametrize("case", CASES)
def test_method_agrees_with_stock_transformers_and_peft(world, tmp_path, capsys, case):
    folder = run(world, tmp_path, case)
    fp64 = CASES[case][2] == "fp64"
    options = ["--evaluate", "--threads", "1", "--json", str(tmp_path / "audit.json")]
    options += ["--chain", "--tolerance", "1e-6"] if fp64 else []
    code = main([str(folder), *options])
    table = capsys.readouterr().out
    assert code == 0, table
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["facts"]["participations replayed"] >= 15
