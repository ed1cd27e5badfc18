"""Preset full of the real program on micro models against stock transformers and torch.optim: `hetlora audit`."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

import families  # noqa: E402
import methods  # noqa: E402
import micro  # noqa: E402
import program  # noqa: E402
from hetlora.audit import main  # noqa: E402

pytestmark = program.needs_program

ADAMW = {"local": {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.1, "clip_norm": 0.5}}
# Changes of the config, MPI ranks, tied head, tolerance.
CASES = {
    "sgd fp32": ({"local": {"learning_rate": 0.05}}, 1, False, 1e-4),
    "adamw fp32": (ADAMW, 1, False, 1e-4),
    "sgd fp64": ({"model": {"precision": "fp64"}, "local": {"learning_rate": 0.05, "clip_norm": 0.5}}, 2, True, 1e-9),
    "adamw fp64": ({"model": {"precision": "fp64"}, **ADAMW}, 3, False, 1e-9),
    "uniform": ({"model": {"precision": "fp64"}, "strategy": {"client_weight": "uniform"},
                 "local": {"steps": 0, "epochs": 1, "learning_rate": 0.05}}, 1, True, 1e-9),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("full")
    worlds = {tied: micro.build(root / str(tied), tied=tied) for tied in (False, True)}
    made = {}

    def get(case: str) -> Path:
        if case in made:
            return made[case]
        changes, mpi_ranks, tied, _ = CASES[case]
        folder = root / case.replace(" ", "_")
        sections = {"experiment": {"rounds": 3}, "strategy": {"preset": "full", "prune_gamma": None,
                    "prune_lambda": None}, "output": {"trace": True, "dir": folder / "run"}}  # fmt: skip
        for section, keys in changes.items():
            sections.setdefault(section, {}).update(keys)
        program.finished("run", "--config", program.write_ini(folder / "run.ini", worlds[tied], sections),
                         mpi_ranks=mpi_ranks if mpi_ranks > 1 else 0)  # fmt: skip
        made[case] = folder / "run"
        return made[case]

    return get


def audit(folder: Path, capsys, *options: str) -> tuple[int, dict, str]:
    """(exit code, report from --json, what was printed)."""
    file = folder.parent / f"{folder.name}.json"
    code = main([str(folder), "--threads", "1", "--json", str(file), *options])
    return code, json.loads(file.read_text()), capsys.readouterr().out


def failed(report: dict) -> list[str]:
    return [check["name"] for check in report["checks"] if not check["passed"]]


@pytest.mark.parametrize("case", CASES)
def test_three_rounds_agree_with_stock_transformers(runs, capsys, case):
    chain = [] if case == "adamw fp32" else ["--chain"]
    code, report, table = audit(runs(case), capsys, "--evaluate", *chain, "--tolerance", str(CASES[case][3]))
    print(table)
    assert code == 0, table
    assert report["facts"]["participations replayed"] == 18 and report["facts"]["rounds replayed"] == 3
    assert all(check["seen"] > 0 for check in report["checks"])


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


@pytest.mark.parametrize(
    ("section", "key", "value", "check"),
    [("resolved_strategy", "client_weight", "uniform", "aggregation weight, absolute"),
     ("local", "weight_decay", 0.0, "weights after the round, per tensor"),
     ("local", "clip_norm", 0.0, "weights after the round, per tensor"),
     ("local", "optimizer", "sgd", "weights after the round, per tensor"),
     ("local", "adam_beta2", 0.99, "weights after the round, per tensor"),
     ("experiment", "seed_data", 99, "windows equal")],
)  # fmt: skip
def test_a_run_of_other_settings_fails(runs, tmp_path, capsys, section, key, value, check):
    folder = copy_of(runs("adamw fp64"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config[section][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    code, report, table = audit(folder, capsys, "--rounds", "1", "--tolerance", "1e-7")
    assert code == 1 and check in failed(report), table


def change_one_number(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] += np.asarray(1e-3, dtype=tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "name", "check"),
    [("trace_weights/round_000000/model.safetensors", "model.norm.weight", "weights of round 0 are the base"),
     ("trace_weights/round_000002/model.safetensors", "model.layers.1.mlp.up_proj.weight", "change, per tensor"),
     ("checkpoint/round_000003/state.safetensors", "base/lm_head.weight", "weights of the last checkpoint equal")],
)  # fmt: skip
def test_one_changed_number_is_caught(runs, tmp_path, capsys, file, name, check):
    folder = copy_of(runs("adamw fp64"), tmp_path / "copy")
    change_one_number(folder / file, name)
    code, report, table = audit(folder, capsys, "--evaluate", "--tolerance", "1e-7")
    assert code == 1 and check in failed(report), table


def test_some_clients_only(runs, capsys):
    code, report, table = audit(runs("sgd fp32"), capsys, "--clients", "1", "--rounds", "2")
    assert code == 0, table
    assert report["facts"]["participations replayed"] == 2 and "not checked with --clients" in table


def test_a_trace_without_weights_is_told(runs, tmp_path, capsys):
    folder = copy_of(runs("sgd fp32"), tmp_path / "copy")
    shutil.rmtree(folder / "trace_weights")
    assert main([str(folder)]) == 3
    assert "run it again with output.trace=true" in capsys.readouterr().err


def test_a_resumed_trace_is_audited(runs, tmp_path, capsys):
    run = runs("sgd fp32")
    folder = copy_of(run, tmp_path / "copy")
    words = ["--config", folder / "config.ini", f"output.dir={folder}", "experiment.rounds=4"]
    program.finished("run", *words, "--resume")
    code, report, table = audit(folder, capsys, "--evaluate", "--chain")
    assert code == 0 and report["facts"]["rounds replayed"] == 4, table
    assert methods.log(folder).rounds["eval_loss"][3] == methods.log(run).rounds["eval_loss"][3]


def test_a_dropped_client_and_a_base_with_nan_where_nobody_looks(tmp_path, capsys):
    world = methods.spoil(tmp_path, *micro.build(tmp_path))
    words = methods.settings(methods.TABLE["full"], world, **{
        "output.trace": True, "model.precision": "fp64", "local.learning_rate": 0.003, "evaluation.sequences": 0,
    })  # fmt: skip
    run = methods.run(tmp_path / "run", words, 2)
    assert methods.log(run).participation["dropped"].any()
    code, report, table = audit(run, capsys, "--evaluate", "--chain", "--tolerance", "1e-9")
    assert code == 0, table


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_with_all_its_biases_and_norms(tmp_path, capsys, family):
    model = families.build_family(tmp_path / "model", family)
    world = model, micro.build_corpus(tmp_path / "micro.h5", 0, model / "tokenizer.json")
    words = methods.settings(methods.TABLE["full"], world, **{
        "output.trace": True, "model.precision": "fp64", "local.learning_rate": 0.003, "evaluation.sequences": 0,
        "experiment.rounds": 2, "lora.targets": "all-linear", "local.weight_decay": 0.1, "local.clip_norm": 0.5,
    })  # fmt: skip
    run = methods.run(tmp_path / "run", words)
    code, report, table = audit(run, capsys, "--evaluate", "--chain", "--tolerance", "1e-9")
    assert code == 0, table
    program.finished("export", run, "--merged", "--to", tmp_path / "exported")
    exported, traced = (load_file(f / "model.safetensors")
                        for f in (tmp_path / "exported", run / "trace_weights" / "round_000002"))  # fmt: skip
    assert exported.keys() == traced.keys()
    assert all(np.array_equal(exported[name], traced[name]) for name in traced)
