"""read_run and find_runs: what a run's folder holds, whole, unfinished, damaged or foreign."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import time

import h5py
import numpy as np
import pytest
from hetlora.errors import InputError
from hetlora.run_record import find_runs, read_run
from synthetic_runs import Made, write_run, write_sweep
from test_run_log import WRITER

needs_writer = pytest.mark.skipif(not WRITER.exists(), reason=f"{WRITER} is not built")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    settings = {"experiment.seed": 3, "strategy.preset": "zeropad"}
    return write_run(tmp_path_factory.mktemp("runs") / "whole", Made(settings=settings, rows_beyond=1))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_a_whole_run(whole):
    run = read_run(whole)
    assert (run.name, run.state, run.problems, run.source) == ("whole", "done", [], "run.h5")
    assert (run.committed_rounds, run.n_rounds, run.rank_max, run.schema_version) == (4, 3, 4, 1)
    assert run.identity == run.run_id[:8] == json.loads((whole / "status.json").read_text())["run_id"][:8]
    # The row and the events of the interrupted round 4 are left out.
    assert list(run.rounds["round"]) == [0, 1, 2, 3] and list(run.rounds["eval_perplexity"]) == [100, 99, 98, 97]
    assert list(run.participation["round"]) == [1, 1, 2, 2, 3, 3] and run.participation["dropped"].dtype == np.int8
    assert run.slots["energy"].shape == run.slots["n_contributors"].shape == (4, 4) and len(run.slots["slot"]) == 4
    assert list(run.clients["name"]) == ["ann", "jörg"] and run.layers is None
    assert run.setting("strategy.preset") == "zeropad" and run.settings["lora.targets"] == "q_proj,v_proj"
    assert run.provenance["devices"] == "cpu" and run.provenance["mpi_size"] == 1
    assert run.units["rounds/eval_loss"] == "1" and run.long_names["slots/energy"] == "made-up energy"
    assert run.dims["slots/energy"] == ("round", "slot") and run.dims["rounds/round"] == ("round",)


def test_only_the_groups_asked_for(whole):
    run = read_run(whole, ("slots",), describe=False)
    assert run.slots and not run.rounds and not run.participation and not run.clients and not run.provenance
    assert not run.units and run.n_rounds == 3 and run.state == "done"


@needs_writer
def test_what_the_program_writes_and_what_the_tests_make_up_have_one_layout(tmp_path):
    subprocess.run([WRITER, tmp_path / "real", "3"], check=True, capture_output=True)
    made = write_run(tmp_path / "made", Made(extra_metrics=("rouge", "bits")))
    real, made = read_run(tmp_path / "real"), read_run(made)
    for group in ("rounds", "slots", "participation", "clients"):
        one, other = getattr(real, group), getattr(made, group)
        assert {n: (v.dtype.kind, v.ndim) for n, v in one.items()} == {
            n: (v.dtype.kind, v.ndim) for n, v in other.items()
        }
    assert real.dims == made.dims and real.state == "done" and real.n_rounds == 3
    assert real.units["rounds/eval_loss"] == "nat" and real.clients["name"][1] == "client 1 ü"


@pytest.mark.parametrize("how", ["truncated", "empty", "missing"])
def test_a_damaged_log_is_replaced_by_progress_jsonl(copy, how):
    before = read_run(copy)
    if how == "missing":
        (copy / "run.h5").unlink()
    else:
        data = (copy / "run.h5").read_bytes()
        (copy / "run.h5").write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    run = read_run(copy)
    assert run.state == "damaged" and run.source == "progress.jsonl" and run.n_rounds == 3
    assert len(run.problems) == 1 and "4 rounds are read from progress.jsonl" in run.problems[0]
    assert "hetlora repair" in run.problems[0]
    same(run.rounds, before.rounds)
    same(run.slots, before.slots)
    same(run.participation, before.participation)
    assert run.config == before.config and run.run_id == before.run_id and not run.clients


def test_a_torn_line_of_progress_ends_it(copy):
    (copy / "run.h5").write_bytes(b"")
    lines = (copy / "progress.jsonl").read_text().splitlines()
    (copy / "progress.jsonl").write_text("\n".join([*lines[:2], lines[2][:50]]))
    assert list(read_run(copy).rounds["round"]) == [0, 1]


def test_a_log_that_lost_its_last_rows(copy):
    with h5py.File(copy / "run.h5", "r+") as file:
        file["rounds/eval_loss"].resize((2,))
    run = read_run(copy)
    assert run.committed_rounds == 2 and "says 4 committed rounds, but holds 2 rows" in run.problems[0]
    assert {len(values) for values in run.rounds.values()} == {2}


def edit(name, value):
    def change(folder):
        with h5py.File(folder / "run.h5", "r+") as file:
            file.attrs[name] = value

    return change


def only_garbage(folder):
    (folder / "run.h5").write_text("hello")
    (folder / "progress.jsonl").unlink()


def nothing(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (edit("schema_version", 2), "has schema version 2, this package reads up to 1"),
        (edit("schema_name", np.bytes_("hetlora-data")), "not a run log (schema_name 'hetlora-data'"),
        (only_garbage, "cannot be read as HDF5"),
        (nothing, "has no run.h5"),
    ],
)
def test_what_cannot_be_used_is_one_message(copy, change, message):
    change(copy)
    with pytest.raises(InputError) as error:
        read_run(copy)
    assert message in str(error.value) and "\n" not in str(error.value)
    run = read_run(copy, keep_damaged=True)
    assert run.state == "damaged" and message in run.problems[-1] and not run.rounds


def test_no_folder():
    with pytest.raises(InputError, match="no such folder"):
        read_run("/nowhere/at/all", keep_damaged=True)


def test_states(copy):
    def with_status(**changes):
        status = json.loads((copy / "status.json").read_text())
        (copy / "status.json").write_text(json.dumps(status | changes))
        return read_run(copy, ()).state

    assert with_status() == "done"
    config = json.loads((copy / "config.json").read_text())
    config["experiment"]["rounds"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    assert read_run(copy, ()).state == "stopped"  # done, but with fewer rounds than are wanted now
    assert with_status(state="failed", message="loss is\nnan") == "failed"
    assert read_run(copy, ()).problems == ["loss is nan"]
    assert with_status(state="stopped", message="") == "stopped" and not read_run(copy, ()).problems
    assert with_status(state="running", host=socket.gethostname()) == "died"
    with open(copy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(copy, ()).state == "running"
    assert read_run(copy, ()).state == "died"
    assert with_status(host="another") == "running"  # a sign of life just now, on another host
    old = time.time() - 3600
    os.utime(copy / ".lock", (old, old))
    assert read_run(copy, ()).state == "died"


def test_a_run_that_never_started(tmp_path):
    (tmp_path / "request.ini").write_text("# identity 0123456789\n[local]\nlearning_rate = 0.5\nsteps = 2\n")
    run = read_run(tmp_path)
    assert run.state == "waiting" and run.identity == "01234567" and run.n_rounds == 0
    assert run.settings == {"local.learning_rate": 0.5, "local.steps": 2}
    (tmp_path / "output.log").write_text("hetlora: old\n--- 2026 started\nhetlora: no space left\n")
    run = read_run(tmp_path)
    assert run.state == "failed" and run.problems == ["no space left"]


def test_unreadable_side_files_are_problems_not_ends(copy):
    (copy / "config.json").write_text("{")
    (copy / "status.json").write_text("[]")
    run = read_run(copy)
    assert run.state == "done" and run.n_rounds == 3 and len(run.problems) == 2 and not run.config


@needs_writer
def test_a_run_that_is_being_written_can_be_read(tmp_path):
    with subprocess.Popen([WRITER, tmp_path / "live", "0"], stdout=subprocess.PIPE, text=True) as writer:
        try:
            seen = 0
            while seen < 8:
                seen = int(writer.stdout.readline())
                run = read_run(tmp_path / "live")
                # It writes without a pause: a read may meet it half-way each time, and then takes progress.jsonl.
                assert run.committed_rounds >= seen, run.problems
                assert run.state == "running" or seen < 3  # the writer calls its round 0 the last of 0
                np.testing.assert_array_equal(run.rounds["round"], np.arange(run.committed_rounds))
        finally:
            writer.kill()
    assert read_run(tmp_path / "live").state in ("died", "damaged")


def test_find_runs(tmp_path, monkeypatch):
    write_sweep(tmp_path / "results" / "s", [Made(settings={"experiment.seed": seed}) for seed in (10, 2)])
    write_run(tmp_path / "results" / "single")
    (tmp_path / "results" / "s" / "slurm" / "1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.ini").write_text("[axes]\na.b = 1 | 2\n[sweep]\nbase = x.ini\n[axes]\nc.d = 1\n")
    names = ["2_00000001", "10_00000000"]
    for paths in ("results/s", "s.ini", ["results/s/*"], ["results/s", "s.ini"], "results/s/*_????????"):
        assert [run.name for run in find_runs(paths)] == names, paths
    assert len(find_runs("results")) == 3 and find_runs("results/single/run.h5")[0].name == "single"
    (tmp_path / "s.ini").write_text("[sweep]\noutput = results/single\n")
    assert find_runs("s.ini")[0].name == "single"
    (tmp_path / "none.ini").write_text("[sweep]\nbase = x.ini\n")
    (tmp_path / "run.ini").write_text("[experiment]\nname = s\n")
    (tmp_path / "empty").mkdir()
    for bad, message in {"none.ini": "has no folder", "run.ini": "no section \\[sweep\\]", "empty": "holds no runs",
                         "nowhere": "no such folder", "x*": "no run matches"}.items():  # fmt: skip
        with pytest.raises(InputError, match=message):
            find_runs(bad)
    with pytest.raises(InputError, match="no runs were named"):
        find_runs([])
