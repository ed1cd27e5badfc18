"""`hetlora audit` on simulated runs: it passes on correct ones of every kind, and fails on every deliberate mistake."""

import copy
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

import micro  # noqa: E402
import simulated_methods  # noqa: E402
import simulated_run  # noqa: E402
from hetlora.audit import main  # noqa: E402

ADAMW = {"optimizer": "adamw", "learning_rate": 0.02}
# Changes to simulated_run.default_config() under which the audit must pass.
VARIANTS = {
    "hetlora sgd fp32": {},
    "adamw fp64 all-linear": {"model": {"precision": "fp64"}, "local": ADAMW | {"weight_decay": 0.1},
                              "lora": {"targets": "all-linear"}},
    "clip, cosine, warm-up": {"local": {"clip_norm": 0.3, "lr_schedule": "cosine", "lr_warmup_rounds": 1}},
    "linear, epochs": {"local": {"lr_schedule": "linear", "epochs": 2, "steps": 0}},
    "zeropad": {"strategy": {"preset": "zeropad"}},
    "contributors": {"strategy": {"slot_norm": "contributors", "client_weight": "uniform"}},
    "matrix scope, keep last": {"strategy": {"weight_scope": "matrix", "keep_uncovered": "last"}},
    "sum of norms, epsilon": {"strategy": {"weight_norm": "sum", "tail_norm_epsilon": 1e-6}},
    "deltas, contributors": {"strategy": {"aggregate": "deltas", "slot_norm": "contributors"}},
    "initial reference, ceil": {"strategy": {"prune_reference": "initial", "prune_rounding": "ceil",
                                             "prune_gamma": 0.6}},
}  # fmt: skip
# The setting in which a mistake shows, where the default one would hide it.
NEEDS = {
    "stale optimizer": {"local": ADAMW, "experiment": {"rounds": 4, "clients_per_round": 8}},
    "clip before regulariser": {"local": {"clip_norm": 0.3}},
    "uncovered kept": {"experiment": {"clients_per_round": 2}},
    "non-persistent prune": {"experiment": {"rounds": 4, "clients_per_round": 8}},
}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(model folder, prepared file)."""
    torch.set_num_threads(1)
    return micro.build(tmp_path_factory.mktemp("micro"))


def config_with(world, changes):
    config = copy.deepcopy(simulated_run.default_config(*world))
    for section, keys in changes.items():
        config[section] |= keys
    return config


def audit(folder, capsys, *options):
    """(exit code, report from --json)."""
    code = main([str(folder), "--threads", "1", "--json", str(folder / "audit.json"), *options])
    capsys.readouterr()
    return code, json.loads((folder / "audit.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_correct_run_passes(world, tmp_path, capsys, name):
    config = config_with(world, VARIANTS[name])
    seen = simulated_run.simulate(tmp_path, *world, config)
    # The two sides add in other orders: on Zen 4 the float32 chains are 2.3e-5 apart, elsewhere less than 2e-5.
    code, report = audit(tmp_path, capsys, "--chain", "--evaluate", "--tolerance", "5e-5")
    assert code == 0, [c for c in report["checks"] if not c["passed"]]
    assert report["facts"]["prunes in the trace"] == report["facts"]["prunes in the replay"] == seen["prunes"]
    if name == "hetlora sgd fp32":
        assert seen["prunes"] > 0, "the default setting must prune, or the tests of pruning test nothing"
    if config["model"]["precision"] == "fp64":
        largest = {c["name"]: c["value"] for c in report["checks"] if c["kind"] == "difference"}
        assert largest["step loss, relative"] < 1e-12 and largest["sent adapter, per matrix"] < 1e-9


@pytest.mark.parametrize("mistake", simulated_run.MUTATIONS)
def test_mistake_is_caught(world, tmp_path, capsys, mistake):
    config = config_with(world, NEEDS.get(mistake, {}))
    simulated_run.simulate(tmp_path, *world, config, mistake)
    code, report = audit(tmp_path, capsys)
    assert code == 1, f"{mistake} went unnoticed"
    assert not report["passed"]
    if mistake in NEEDS:  # the setting itself is one in which the correct run passes
        simulated_run.simulate(tmp_path / "right", *world, config)
        assert audit(tmp_path / "right", capsys)[0] == 0


def method_config(world, preset):
    """Three small rounds of a method; fedex needs equal ranks."""
    changes = {"strategy": {"preset": preset}, "local": {"steps": 2}, "experiment": {"clients_per_round": 3}}
    config = config_with(world, changes | {"model": {"precision": "fp64"}})
    if preset == "fedex":
        config["lora"]["rank_min"] = config["lora"]["rank_max"] = 4
    return config


@pytest.mark.parametrize("preset", simulated_methods.ROWS)
def test_correct_run_of_a_method_passes(world, tmp_path, capsys, preset):
    simulated_run.simulate(tmp_path, *world, method_config(world, preset))
    code, report = audit(tmp_path, capsys, "--chain", "--evaluate", "--tolerance", "1e-9")
    assert code == 0, [c for c in report["checks"] if not c["passed"]]


@pytest.mark.parametrize("mistake", simulated_methods.MUTATIONS)
def test_mistake_in_a_method_is_caught(world, tmp_path, capsys, mistake):
    config = method_config(world, simulated_methods.MUTATIONS[mistake])
    simulated_run.simulate(tmp_path, *world, config, mistake)
    code, report = audit(tmp_path, capsys, "--clients", "1")
    assert code == 1, f"{mistake} went unnoticed"


@pytest.fixture(scope="module")
def good_run(world, tmp_path_factory):
    """A correct default run, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("good")
    simulated_run.simulate(folder, *world, config_with(world, {}))
    return folder


def damaged(good_run, folder):
    """A copy of the good run."""
    import shutil

    shutil.copytree(good_run, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("dataset", "row", "check"),
    [
        ("adapters/received", 1000, "received vs traced global"),
        ("adapters/sent", 1000, "sent adapter, per matrix"),
        ("globals/values", -1000, "global from traced uploads, per matrix"),
        ("steps/loss", 7, "step loss, relative"),
        ("events/weight", 3, "aggregation weight, absolute"),
        ("events/learning_rate", 3, "learning rate, relative"),
        ("events/lora_rank_after", None, "lora_ranks equal"),
    ],
)
def test_one_changed_number_is_caught(good_run, tmp_path, capsys, dataset, row, check):
    folder = damaged(good_run, tmp_path)
    with h5py.File(folder / "trace.h5", "r+") as file:
        if row is None:  # a prune that went unrecorded: swap the columns of one pruned participation
            row = int(np.flatnonzero(file["events/lora_rank_after"][:] == file["events/lora_rank_before"][:])[-1])
            layout = file["matrices/d_out"][:].sum() + file["matrices/d_in"][:].sum()
            file[dataset][row] -= 1
            # keep the slice lengths right, so that the rank alone is wrong
            offsets = file["events/sent_offset"][:]
            sent = [file["adapters/sent"][a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
            sent[row] = sent[row][: -int(layout)]
            del file["adapters/sent"], file["events/sent_offset"]
            file["adapters/sent"] = np.concatenate(sent)
            file["events/sent_offset"] = np.cumsum([0] + [len(part) for part in sent])
        else:
            file[dataset][row] += 0.5
    code, report = audit(folder, capsys)
    assert code == 1
    assert check in [c["name"] for c in report["checks"] if not c["passed"]]


def test_evaluation_is_checked(good_run, tmp_path, capsys):
    folder = damaged(good_run, tmp_path)
    with h5py.File(folder / "run.h5", "r+") as file:
        file["rounds/eval_loss"][2] *= 1.001
    assert audit(folder, capsys)[0] == 0
    assert audit(folder, capsys, "--evaluate")[0] == 1
    settings = json.loads((good_run / "adapter" / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    _, report = audit(folder, capsys, "--evaluate")
    assert not next(c for c in report["checks"] if c["name"] == "final adapter folder in peft")["passed"]


def test_rounds_and_clients_limit_the_work(good_run, capsys):
    _, report = audit(good_run, capsys, "--rounds", "2", "--clients", "1")
    assert report["facts"]["participations replayed"] == 2
    assert report["passed"]


def test_dropped_client_is_left_out(world, tmp_path, capsys):
    config = config_with(world, {})
    seen = simulated_run.simulate(tmp_path, *world, config, drop_first=True)
    assert seen["dropped"] == 3
    code, report = audit(tmp_path, capsys, "--chain")
    # the replay trains those clients without trouble, so it objects to the drops; all the rest agrees
    assert code == 1
    assert [c["name"] for c in report["checks"] if not c["passed"]] == ["dropped clients equal"]


def test_missing_trace_is_one_message(good_run, tmp_path, capsys):
    folder = damaged(good_run, tmp_path)
    (folder / "trace.h5").unlink()
    assert main([str(folder)]) == 3
    message = capsys.readouterr().err
    assert "output.trace=true" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("lora", "dropout", 0.1), ("strategy", "keep_uncovered", "refill"), ("strategy", "preset", "flexlora"),
     ("model", "precision", "bf16")],
)  # fmt: skip
def test_refuses_what_it_cannot_replay(good_run, tmp_path, capsys, section, key, value):
    folder = damaged(good_run, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config[section][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert str(value) in message and key in message
