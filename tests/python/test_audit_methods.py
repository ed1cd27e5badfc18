"""Every method of the real program on a micro model, audited: both must agree, in fp64 and in fp32.

All audits share one process; a program run takes about a second.
"""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

import micro  # noqa: E402
import program  # noqa: E402
from hetlora.audit import main  # noqa: E402

pytestmark = program.needs_program

SMALL = {"rounds": 2, "clients_per_round": 4, "seed": 7}
EQUAL = {"lora": {"rank_distribution": "fixed"}}
# Preset (with what it needs or what shows it), MPI ranks, precision.
CASES = {
    "hetlora": ({"strategy": {"prune_gamma": 0.85, "prune_lambda": 0.3}}, 1, "fp64"),
    "zeropad": ({}, 2, "fp64"),
    "fedavg": (EQUAL, 1, "fp64"),
    "fedprox": ({"strategy": {"prox_mu": 0.5}}, 1, "fp64"),
    "rbla": ({}, 2, "fp64"),
    "rbla fp32": ({}, 1, "fp32"),
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
    "fedsa": ({"experiment": {"clients_per_round": 8}}, 2, "fp64"),
    "fedsa fp32": ({}, 1, "fp32"),
    "sa-fedlora": ({"experiment": {"rounds": 3}, "strategy": {"prox_mu": 0.5, "anneal_start": 0.4}}, 1, "fp64"),
    # policies that no preset has
    "fslora, momentum": ({"strategy": {"server_optimizer": "momentum", "server_learning_rate": 0.7}}, 1, "fp64"),
    "fslora, adam": ({"strategy": {"server_optimizer": "adam", "server_learning_rate": 0.01}}, 1, "fp64"),
    "zeropad, importance": ({"strategy": {"slot_select": "importance", "slot_norm": "contributors",
                                          "keep_uncovered": "last"}}, 1, "fp64"),
    "fed-plora, adamw": ({"local": {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.1,
                                    "clip_norm": 0.3}}, 1, "fp64"),
}  # fmt: skip


# Methods whose evaluation is not that of an adapter on the frozen base, and some others.
EVALUATED = ("hetlora", "flexlora", "flora", "florist", "fedex", "fedsa", "fslora")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(model folder, prepared file)."""
    torch.set_num_threads(1)
    return micro.build(tmp_path_factory.mktemp("methods"))


def run(world, folder: Path, case: str) -> Path:
    """A traced run of this case."""
    changes, mpi_ranks, precision = CASES[case]
    preset = case.split()[0].rstrip(",")
    sections = {"experiment": dict(SMALL), "model": {"precision": precision}, "lora": {}, "local": {"steps": 2},
                "evaluation": {"divergence_factor": 1000}, "output": {"trace": True, "dir": folder / "run"},
                "strategy": {"preset": preset, "prune_gamma": None, "prune_lambda": None}}  # fmt: skip
    sections["lora"]["rank_distribution"] = "uniform"
    for section, keys in changes.items():
        sections[section] |= keys
    done = program.start("run", "--config", program.write_ini(folder / "run.ini", world, sections),
                         mpi_ranks=mpi_ranks if mpi_ranks > 1 else 0)  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return folder / "run"


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Gives the folder of a case's run, made once."""
    made = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = run(world, tmp_path_factory.mktemp("run"), case)
        return made[case]

    return get


def audit(folder: Path, capsys, *options: str) -> tuple[int, dict, str]:
    """(exit code, report from --json, what was printed)."""
    file = folder.parent / f"{folder.name}.json"
    code = main([str(folder), "--threads", "1", "--json", str(file), *options])
    return code, json.loads(file.read_text()), capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_method_agrees_with_stock_transformers_and_peft(runs, capsys, case):
    exact = ["--chain", "--tolerance", "1e-9"] if CASES[case][2] == "fp64" else []
    evaluate = ["--evaluate"] if case.split()[0] in EVALUATED else []
    code, report, table = audit(runs(case), capsys, *evaluate, *exact)
    assert code == 0, table
    assert report["facts"]["participations replayed"] >= 8


# A run of one method that claims to be of another: what the audit has to object to.
CLAIMS = [
    ("zeropad", {"slot_norm": "contributors"}, "global from traced uploads, per matrix"),
    ("zeropad", {"client_weight": "uniform"}, "aggregation weight, absolute"),
    ("zeropad", {"trainable": "b"}, "frozen entries unchanged"),
    ("zeropad", {"shared_factors": "a"}, "received vs traced global"),
    ("replicate", {"slot_norm": "all"}, "global from traced uploads, per matrix"),
    ("fedprox", {"local_extra": "none"}, "sent adapter, per matrix"),
    ("flexlora", {"slot_norm": "contributors"}, "global from traced uploads, per matrix"),
    ("flexlora", {"merge": "factors"}, "global from traced uploads, per matrix"),
    ("flexlora", {"factor_split": "sqrt"}, "factors of the global as specified"),
    ("hlora", {"factor_split": "left"}, "factors of the global as specified"),
    ("raflora", {"slot_norm": "all"}, "global from traced uploads, per matrix"),
    ("flora", {"base_update": "truncated", "keep_energy": 0.5}, "step loss, relative"),
    ("flora", {"client_weight": "uniform"}, "step loss, relative"),
    ("flora", {"base_update": "none"}, "step loss, relative"),
    ("florist", {"keep_energy": 0.999999}, "step loss, relative"),
    ("fedex", {"base_update": "none"}, "step loss, relative"),
    ("ffa", {"trainable": "both"}, "sent adapter, per matrix"),
    ("rolora", {"trainable": "b"}, "frozen entries unchanged"),
    ("fslora", {"slot_scale": "none"}, "step loss, relative"),
    ("fslora", {"aggregate": "parameters"}, "global from traced uploads, per matrix"),
    ("fslora", {"slot_select": "importance"}, "slots as specified"),
    ("fslora, momentum", {"server_optimizer": "none"}, "global from traced uploads, per matrix"),
    ("fed-plora", {"slot_norm": "all"}, "global from traced uploads, per matrix"),
    ("fed-plora", {"receive": "selected"}, "lora_ranks equal"),
    ("lora-a2", {"trainable": "b"}, "frozen entries unchanged"),
    ("lora-a2", {"client_weight": "uniform"}, "global from traced uploads, per matrix"),
    ("fedsa", {"shared_factors": "both"}, "received vs traced global"),
    ("sa-fedlora", {"rank_schedule": "none"}, "lora_ranks equal"),
]  # fmt: skip


def copy_of(run_folder: Path, folder: Path) -> Path:
    """A run folder to be changed: config.json and trace.h5 are copies, the rest are links."""
    folder.mkdir()
    for item in run_folder.iterdir():
        if item.name in ("config.json", "trace.h5"):
            shutil.copy(item, folder)
        else:
            (folder / item.name).symlink_to(item)
    return folder


@pytest.mark.parametrize(("case", "claim", "check"), CLAIMS)
def test_run_of_another_method_fails(runs, tmp_path, capsys, case, claim, check):
    folder = copy_of(runs(case), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    for key, value in claim.items():
        config["resolved_strategy" if key in config["resolved_strategy"] else "strategy"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    code, report, _ = audit(folder, capsys, "--clients", "1")
    assert code == 1, f"a run of {case} passed as one with {claim}"
    assert check in [c["name"] for c in report["checks"] if not c["passed"]]


def one_bit_in_the_frozen_factor(trace):
    trace["adapters/sent"][0] = np.nextafter(trace["adapters/sent"][0], 9)


def one_bit_outside_the_mask(trace):
    # B of the first matrix in round 1: of a client whose budget leaves some slots out, the first that did not change
    rank_max, d_in, d_out = trace.attrs["rank_max"], trace["matrices/d_in"][0], trace["matrices/d_out"][0]
    event = int(np.argmin(trace["events/lora_rank"][:4]))
    low = trace["events/sent_offset"][event] + rank_max * d_in
    before = trace["adapters/received"][low : low + rank_max * d_out].reshape(rank_max, d_out)
    after = trace["adapters/sent"][low : low + rank_max * d_out].reshape(rank_max, d_out)
    slot = int(np.flatnonzero((before == after).all(axis=1))[0])
    trace["adapters/sent"][low + slot * d_out] += 1e-300


def the_first_clients_slots_moved(trace):
    first, last = trace["events/slots_offset"][0], trace["events/slots_offset"][1]
    free = sorted(set(range(int(trace.attrs["rank_max"]))) - set(trace["slots/slot"][first:last].tolist()))
    trace["slots/slot"][first:last] = sorted([*trace["slots/slot"][first : last - 1].tolist(), free[0]])


def another_clients_fresh_adapter(trace):
    offset = trace["events/received_offset"]
    width = trace["matrices/d_in"][0]
    trace["adapters/received"][offset[1] : offset[1] + width] = trace["adapters/received"][
        offset[0] : offset[0] + width
    ]


def a_fresh_adapter_with_b(trace):
    trace["adapters/received"][trace["events/received_offset"][1] - 1] = 1e-3


def somebody_elses_b(trace):
    # the last value of a received adapter is one of B
    clients = trace["events/client"][:].tolist()
    again = next(i for i, c in enumerate(clients) if c in clients[:i])
    trace["adapters/received"][trace["events/received_offset"][again + 1] - 1] += 0.01


TAMPERED = [
    ("ffa", one_bit_in_the_frozen_factor, "frozen entries unchanged"),
    ("lora-a2", one_bit_outside_the_mask, "frozen entries unchanged"),
    ("fslora", the_first_clients_slots_moved, "received vs traced global"),
    ("fed-plora", the_first_clients_slots_moved, "sent adapter, per matrix"),
    ("flora", another_clients_fresh_adapter, "fresh adapters as specified"),
    ("flora", a_fresh_adapter_with_b, "fresh adapters as specified"),
    ("fedsa", somebody_elses_b, "received vs traced global"),
]


@pytest.mark.parametrize(("case", "tamper", "check"), TAMPERED)
def test_one_changed_number_is_caught(runs, tmp_path, capsys, case, tamper, check):
    folder = copy_of(runs(case), tmp_path / "copy")
    with h5py.File(folder / "trace.h5", "r+") as trace:
        tamper(trace)
    code, report, table = audit(folder, capsys, "--clients", "4", "--rounds", "1" if case != "fedsa" else "2")
    assert code == 1
    assert check in [c["name"] for c in report["checks"] if not c["passed"]], table


def test_the_programs_own_base_is_compared(runs, tmp_path, capsys):
    folder = copy_of(runs("flora"), tmp_path / "copy")
    (folder / "checkpoint").unlink()
    shutil.copytree(runs("flora") / "checkpoint", folder / "checkpoint")
    (file,) = folder.glob("checkpoint/*/state.safetensors")
    tensors = load_file(file)
    name = next(n for n in tensors if n.startswith("base/"))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, file)
    code, report, _ = audit(folder, capsys, "--evaluate", "--clients", "1")
    assert code == 1
    assert [c["name"] for c in report["checks"] if not c["passed"]] == ["base in the last checkpoint, relative"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("resolved_strategy", "merge", "gossip"), ("resolved_strategy", "forward_form", "bsa"),
     ("strategy", "plugin", "own.py"), ("resolved_strategy", "keep_uncovered", "refill")],
)  # fmt: skip
def test_refuses_what_it_does_not_know(runs, tmp_path, capsys, section, key, value):
    folder = copy_of(runs("zeropad"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config[section][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert f"strategy.{key} = {value} cannot be replayed" in message and message.count("\n") == 1


def test_the_log_says_which_policies_ran(runs):
    with h5py.File(runs("flexlora") / "run.h5") as file:
        text = file["provenance"].attrs["strategy_policies"]
    text = text.decode() if isinstance(text, bytes) else str(text)
    config = json.loads((runs("flexlora") / "config.json").read_text())
    policies = dict(word.split("=") for word in text.split())
    assert policies["merge"] == "product" and config["strategy"]["merge"] == "preset"
    assert config["resolved_strategy"] == policies | {"preset": "flexlora", "rank_levels": ""}


def test_a_trace_without_slots_is_still_audited(runs, tmp_path, capsys):
    """As an older program wrote it."""
    folder = copy_of(runs("hetlora"), tmp_path / "copy")
    with h5py.File(folder / "trace.h5", "r+") as trace:
        for name in ("events/lora_rank", "events/slots_offset", "slots"):
            del trace[name]
    config = json.loads((folder / "config.json").read_text())
    del config["resolved_strategy"]
    (folder / "config.json").write_text(json.dumps(config))
    code, report, table = audit(folder, capsys, "--chain", "--tolerance", "1e-9", "--evaluate")
    assert code == 0, table
