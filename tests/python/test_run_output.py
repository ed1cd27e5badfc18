"""What a run leaves behind, and the verbs that look at it: checked against h5py, xarray, transformers and peft."""

import configparser
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

import micro  # noqa: E402
import program  # noqa: E402
from program import finished  # noqa: E402

pytestmark = program.needs_program

VALUE_BYTES = 4  # fp32
# q_proj 32 -> 32 and v_proj 32 -> 16 in each of 2 layers: values of one slot of all matrices, sum of d_in + d_out.
SLOT_VALUES = 2 * ((32 + 32) + (32 + 16))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The micro world and three runs: plain, keep (keep_uncovered = last), picky (data.min_windows)."""
    folder = tmp_path_factory.mktemp("output")
    world = micro.build(folder)
    home = SimpleNamespace(
        folder=folder, model=world[0], data=world[1], ini=program.write_ini(folder / "run.ini", world)
    )
    home.plain_process = finished("run", "--config", home.ini, "--output", folder / "plain", "evaluation.clients=final")
    home.keep_process = finished(
        "run", "--config", home.ini, "--output", folder / "keep", "strategy.keep_uncovered=last",
        "evaluation.samples=2", "evaluation.sample_tokens=12",
    )  # fmt: skip
    finished("run", "--config", home.ini, "--output", folder / "picky", "data.min_windows=6",
             "experiment.clients_per_round=3")  # fmt: skip
    return home


def table(run: Path, group: str) -> dict:
    with h5py.File(run / "run.h5") as file:
        return {name: file[group][name][:] for name in file[group]}


# --- the folder ---


def test_folder_is_complete(home):
    run = home.folder / "plain"
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        "config.ini",
        "config.json",
        "run.h5",
        "progress.jsonl",
        "status.json",
        "adapter",
        "checkpoint",
        "COMPLETE",
    }
    assert {path.name for path in (run / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["round"], status["rounds"], status["message"]) == ("done", 3, 3, "")


def test_progress_is_the_second_copy_of_the_log(home):
    run = home.folder / "plain"
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    rounds, events = table(run, "rounds"), table(run, "participation")
    assert [line["round"] for line in lines] == rounds["round"].tolist() == [0, 1, 2, 3]
    assert [line["eval_loss"] for line in lines] == rounds["eval_loss"].tolist()
    copied = [event for line in lines for event in line["participation"]]
    for name in ("client", "lora_rank_after", "weight", "loss_last"):
        assert [event[name] for event in copied] == events[name].tolist()
    assert lines[0]["train_loss"] is None


def test_config_json_is_the_config_ini(home):
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(home.folder / "plain" / "config.ini")
    as_json = json.loads((home.folder / "plain" / "config.json").read_text())
    for section in ("experiment", "data", "lora", "local", "strategy"):
        assert ini[section].keys() <= as_json[section].keys()  # the ini leaves out keys that may not be set
    assert as_json["lora"]["rank_max"] == 8
    assert Path(as_json["model"]["path"]) == home.model


def test_config_ini_runs_again_with_the_same_bits(home, tmp_path):
    before = home.folder / "plain"
    finished("run", "--config", before / "config.ini", "--output", tmp_path / "again", cwd=tmp_path)
    assert program.columns(tmp_path / "again" / "run.h5") == program.columns(before / "run.h5")
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (before / name).read_bytes()


def test_terminal_has_start_and_end(home):
    text = home.plain_process.stdout
    assert "6 of 10 clients a round, strategy hetlora" in text
    assert "perplexity" in text
    assert "slots alive" in text
    assert "round 3/3" in home.plain_process.stderr


# --- the log ---


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_log_opens_in_xarray(home, engine):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    path = home.folder / "plain" / "run.h5"
    for group, dimension in (("rounds", "round"), ("slots", "slot"), ("participation", "event"), ("clients", "client")):
        with xarray.open_dataset(path, group=group, engine=engine) as dataset:
            assert dimension in dataset.sizes
            for name, variable in dataset.variables.items():
                assert variable.attrs.get("units") is not None or "units" in variable.encoding, name
                assert variable.attrs.get("long_name"), name
    with xarray.open_dataset(path, group="provenance", engine=engine) as dataset:
        assert {"config", "command_line", "git_commit", "base_sha256", "data_sha256"} <= dataset.attrs.keys()
    with xarray.open_dataset(path, group="slots", engine=engine) as dataset:
        assert dataset.energy.dims == ("round", "slot")
        assert dataset.energy.sel(round=3).sum() == pytest.approx(1.0)


def test_row_0_is_before_training(home):
    rounds = table(home.folder / "plain", "rounds")
    assert rounds["round"][0] == 0
    assert np.isnan(rounds["train_loss"][0])
    assert rounds["adapter_norm"][0] == 0.0  # B = 0
    assert rounds["n_clients"][0] == rounds["tokens"][0] == rounds["bytes_up_true"][0] == 0
    base = finished("evaluate", "--config", home.ini)
    assert f"loss {rounds['eval_loss'][0]:.6f} " in base.stdout
    with h5py.File(home.folder / "plain" / "run.h5") as file:
        assert file.attrs["committed_rounds"] == 4


def test_true_bytes_are_the_formula(home):
    rounds, events = table(home.folder / "plain", "rounds"), table(home.folder / "plain", "participation")
    for row in range(1, 4):
        cohort = events["round"] == row
        up = (SLOT_VALUES * events["lora_rank_after"][cohort] + 1).sum() * VALUE_BYTES  # + 1: s_k
        down = (SLOT_VALUES * events["lora_rank_before"][cohort]).sum() * VALUE_BYTES
        assert rounds["bytes_up_true"][row] == up
        assert rounds["bytes_down_true"][row] == down
        assert rounds["n_clients"][row] == cohort.sum() == 6
        assert rounds["tokens"][row] == events["n_tokens"][cohort].sum()
        assert events["weight"][cohort].sum() == pytest.approx(1.0, rel=1e-12)


def test_no_bytes_for_the_weight_without_sparsity_weights(home, tmp_path):
    finished("run", "--config", home.ini, "--output", tmp_path / "run", "strategy.preset=zeropad",
             "experiment.rounds=1", "strategy.prune_gamma=0.99", "strategy.prune_lambda=0.01")  # fmt: skip
    rounds, events = table(tmp_path / "run", "rounds"), table(tmp_path / "run", "participation")
    assert rounds["bytes_up_true"][1] == (SLOT_VALUES * events["lora_rank_after"]).sum() * VALUE_BYTES
    assert (events["lora_rank_after"] == events["lora_rank_before"]).all()


@pytest.mark.parametrize("preset", ["zeropad", "flora", "rolora", "lora-a2"])
def test_traffic_is_announced_as_it_comes(home, tmp_path, preset):
    """With everybody in every round nothing is left to chance: what was announced is the mean of two rounds."""
    done = finished("run", "--config", home.ini, "--output", tmp_path / "run", f"strategy.preset={preset}",
                    "experiment.clients_per_round=0", "experiment.rounds=3")  # fmt: skip
    unit = {"B": 1, "KiB": 2**10, "MiB": 2**20}
    words = re.search(r"a round +about ([\d.]+) (\w+) up and ([\d.]+) (\w+) down", done.stdout).groups()
    rounds = table(tmp_path / "run", "rounds")
    assert float(words[0]) * unit[words[1]] == pytest.approx(rounds["bytes_up_true"][2:].mean(), rel=0.01)
    assert float(words[2]) * unit[words[3]] == pytest.approx(rounds["bytes_down_true"][2:].mean(), rel=0.01)


def test_lora_ranks_shrink_and_never_grow(home):
    clients, events = table(home.folder / "plain", "clients"), table(home.folder / "plain", "participation")
    now = dict(enumerate(clients["initial_lora_rank"]))
    for client, before, after in zip(
        events["client"], events["lora_rank_before"], events["lora_rank_after"], strict=True
    ):
        assert before == now[client]
        assert after in (before, max(2, int(0.85 * before + 1e-9)))
        now[client] = after
    assert (events["lora_rank_after"] < events["lora_rank_before"]).any()


def test_slots_die_under_the_literal_rule(home):
    rounds, events = table(home.folder / "plain", "rounds"), table(home.folder / "plain", "participation")
    alive = [8]
    for row in range(1, 4):  # a slot that nobody of the cohort has is zero from then on
        alive.append(min(alive[-1], events["lora_rank_after"][events["round"] == row].max()))
    assert rounds["slots_alive"].tolist() == alive
    assert alive[-1] < 8
    assert "slots_alive" in home.plain_process.stderr  # and the user is told


def test_slots_live_with_keep_uncovered(home):
    assert table(home.folder / "keep", "rounds")["slots_alive"].tolist() == [8, 8, 8, 8]


def test_replies_are_recorded_as_they_are_printed(home):
    replies = [json.loads(line) for line in (home.folder / "keep" / "samples.jsonl").read_text().splitlines()]
    assert len(replies) == 2 and all(list(reply) == ["prompt", "real", "base", "tuned"] for reply in replies)
    for reply in replies:
        for name in ("real", "base", "tuned"):
            printed = reply[name].replace("\n", " ")
            assert f"     {name:<7} {printed}".rstrip() in home.keep_process.stdout, home.keep_process.stdout
        assert reply["real"] and reply["base"] != reply["tuned"]
    assert not (home.folder / "plain" / "samples.jsonl").exists()


def test_who_trains(home):
    with h5py.File(home.data) as file:
        held_out = np.flatnonzero(file["clients/held_out"][:])
    clients = table(home.folder / "plain", "clients")
    assert [name.decode() for name in clients["name"]] == [f"client-{c:02d}" for c in range(micro.N_CLIENTS)]
    assert (clients["n_train_sequences"][held_out] == 0).all()
    seen = set()
    for run in ("plain", "keep", "picky"):
        seen |= set(table(home.folder / run, "participation")["client"].tolist())
    assert not seen & set(held_out.tolist()), "held-out people trained"
    assert len(seen) >= 8


def test_too_small_clients_never_train(home):
    from hetlora.audit_config import read_settings
    from hetlora.audit_data import Prepared

    data = Prepared(home.data, read_settings(home.folder / "picky"))
    large = {c for c in range(data.n_clients) if len(data.client_windows(c)) >= 6}
    assert 3 <= len(large) < 10
    assert set(table(home.folder / "picky", "participation")["client"].tolist()) <= large


def test_losses_of_the_clients(home):
    clients = table(home.folder / "plain", "clients")
    measured = np.isfinite(clients["eval_loss_final"])
    assert (measured == np.isfinite(clients["eval_loss_base"])).all()
    assert measured.tolist() == [1 <= c < 10 for c in range(12)]  # client 0 has no held-out part, 10 and 11 never train
    assert np.nanmean(clients["eval_loss_final"]) < np.nanmean(clients["eval_loss_base"])


# --- the adapter elsewhere ---


def test_adapter_in_peft_gives_the_logged_loss(home):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from hetlora.audit_config import read_settings
    from hetlora.audit_data import Prepared

    torch.set_num_threads(1)
    run = home.folder / "plain"
    data = Prepared(home.data, read_settings(run))
    model = transformers.AutoModelForCausalLM.from_pretrained(home.model, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(run / "adapter")).eval()
    loss, tokens = 0.0, 0
    with torch.no_grad():
        for window in data.evaluation_windows("valid"):
            inputs, rows, targets = data.tokens(window)
            logits = model(input_ids=torch.from_numpy(inputs)[None]).logits[0].double()
            loss += torch.nn.functional.cross_entropy(
                logits[torch.from_numpy(rows)], torch.from_numpy(targets), reduction="sum"
            ).item()
            tokens += len(targets)
    assert loss / tokens == pytest.approx(table(run, "rounds")["eval_loss"][-1], rel=2e-5)


@pytest.mark.parametrize("mpi_ranks", [0, pytest.param(2, marks=program.needs_mpirun)])
def test_evaluate_gives_the_logged_loss(home, mpi_ranks):
    run = home.folder / "plain"
    done = finished("evaluate", "--config", home.ini, "--adapter", run / "adapter", mpi_ranks=mpi_ranks)
    rounds = table(run, "rounds")
    assert f"loss {rounds['eval_loss'][-1]:.6f} " in done.stdout
    assert f"accuracy {rounds['eval_accuracy'][-1]:.4f} " in done.stdout


# --- other verbs ---


def test_check_writes_nothing(home, tmp_path):
    done = finished("check", "--config", home.ini, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "rank_max = 8" in done.stdout
    assert "nothing was trained or written" in done.stdout


def test_resume_without_a_run_starts_one(home, tmp_path):
    done = finished("run", "--config", home.ini, "--output", tmp_path / "run", "--resume")
    assert f"there is no run in '{tmp_path / 'run'}' yet: starting it" in done.stdout
    assert (tmp_path / "run" / "COMPLETE").exists()


def test_info_on_everything(home):
    run = home.folder / "plain"
    expected = {
        run: "done, round 3 of 3", run / "run.h5": "4 committed rows", run / "adapter": "PEFT adapter, lora_rank 8",
        home.model: "llama (LlamaForCausalLM)", home.data: "prepared data `micro`",
    }  # fmt: skip
    for path, text in expected.items():
        assert text in finished("info", path).stdout, path


@pytest.mark.parametrize("words", [(), ("nowhere",), ("--config",), ("a", "b")])
def test_info_of_nothing(words, tmp_path):
    done = program.start("info", *words, cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert len(program.messages(done.stderr)) == len(done.stderr.splitlines()) == 1
    assert done.stderr.count("hetlora: hetlora") == 0


def test_strategies():
    everything = finished("strategies").stdout
    for name in ("hetlora", "hetlora-agg", "zeropad", "fedavg", "homlora", "fedit"):
        assert name in everything
    one = finished("strategies", "hetlora").stdout
    assert "2401.06432" in one
    assert "keep_uncovered" in one
    wrong = program.start("strategies", "hetlara")
    assert wrong.returncode == 2
    assert "did you mean hetlora?" in wrong.stderr


def test_version_and_help():
    version = finished("--version").stdout
    for name in ("hetlora ", "compiler", "LibTorch", "MPI"):
        assert name in version
    usage = finished("--help").stdout
    for verb in ("run", "check", "evaluate", "info", "strategies", "prepare"):
        assert f"\n  {verb} " in usage
    assert "--config" in finished("run", "--help").stdout
    assert finished().stdout == usage


def test_verbs_without_mpi_work_in_a_bare_environment():
    for words in (("--version",), ("strategies",), ("run", "--help")):
        done = finished(*words, env={"PATH": "/usr/bin:/bin"})
        assert done.stderr == ""
