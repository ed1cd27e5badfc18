"""run.h5, trace.h5 and progress.jsonl as users read them: xarray with both engines, ncdump, h5py, after kill -9 too."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WRITER = Path(os.environ.get("HETLORA_BUILD_DIR", ROOT / "build")) / "tests" / "write_sample_log"
KILLS = 100 if os.environ.get("HETLORA_TEST_LONG") else 10
GROUPS = ("rounds", "slots", "participation", "clients", "layers", "provenance")

pytestmark = pytest.mark.skipif(not WRITER.exists(), reason=f"{WRITER} is not built")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "run"
    subprocess.run([WRITER, folder, "4", "layers"], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@pytest.mark.parametrize("group", GROUPS)
def test_xarray_opens_every_group(run, group, engine):
    with xr.open_dataset(run / "run.h5", group=group, engine=engine) as data:
        data.load()
        for name, column in data.variables.items():
            assert column.attrs["units"] and column.attrs["long_name"], name
            assert column.dtype.kind in "ifOSU", (name, column.dtype)  # no times, no surprises
            if column.dtype.kind == "i":
                assert "_FillValue" not in column.encoding, name


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_values_as_xarray_sees_them(run, engine):
    with xr.open_dataset(run / "run.h5", group="rounds", engine=engine) as rounds:
        assert rounds.sizes == {"round": 5}
        np.testing.assert_array_equal(rounds["round"], range(5))
        np.testing.assert_allclose(rounds.eval_loss, [3.0, 2.9, 2.8, 2.7, 2.6])
        assert np.isnan(rounds.train_loss[0]) and rounds.train_loss[1] == 3.4
        assert rounds.t_round_s.dtype == np.float64
        np.testing.assert_array_equal(rounds.eval_rouge, [0.5, 1.5, 2.5, 3.5, 4.5])
        np.testing.assert_array_equal(rounds.eval_bits, [0.25, 1.25, 2.25, 3.25, 4.25])
        assert rounds.peak_memory_bytes[4] == 2**33 + 4
    with xr.open_dataset(run / "run.h5", group="slots", engine=engine) as slots:
        assert slots.energy.dims == ("round", "slot") and slots.energy.shape == (5, 4)
        np.testing.assert_array_equal(slots.n_contributors.sel(round=3), [3, 2, 1, 0])
    with xr.open_dataset(run / "run.h5", group="participation", engine=engine) as events:
        np.testing.assert_array_equal(events["round"], [1, 2, 2, 3, 3, 3, 4])
        np.testing.assert_array_equal(events.dropped, [0, 0, 0, 0, 0, 1, 0])
        assert events.dropped.dtype == np.int8
    with xr.open_dataset(run / "run.h5", group="layers", engine=engine) as layers:
        assert layers.singular_value.dims == ("round", "layer", "index")
        assert layers.update_norm.dims == ("round", "layer") and layers.name.dims == ("layer",)
        np.testing.assert_array_equal(layers["round"], [2, 4])
        np.testing.assert_array_equal(layers.update_norm, [[2.0, 2.125], [4.0, 4.125]])
        np.testing.assert_array_equal(layers.singular_value[1, 1], 4.125 / np.arange(1, 5))
        assert np.isnan(layers.client_cosine[0]).all() and (layers.client_cosine[1] == 0.5).all()
    with xr.open_dataset(run / "run.h5", group="clients", engine=engine) as clients:
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in clients.name.values]
        assert names == ["client 0", "client 1 ü", "client 2"]
    with xr.open_dataset(run / "run.h5", group="provenance", engine=engine) as provenance:
        assert provenance.attrs["git_commit"] == "0123abcd" and provenance.attrs["threads"] == 2


def test_ncdump_reads_the_header(run):
    if shutil.which("ncdump") is None:
        pytest.skip("ncdump is not installed")
    text = subprocess.run(["ncdump", "-h", run / "run.h5"], check=True, capture_output=True, text=True).stdout
    assert re.search(r"double eval_loss\(round\)", text)
    assert re.search(r"double energy\(round, slot\)", text)
    assert re.search(r"round = UNLIMITED", text)


def test_root_and_nexus_attributes(run):
    with h5py.File(run / "run.h5") as log:
        text = {k: v.decode() if isinstance(v, bytes) else v for k, v in log.attrs.items()}
        assert text["schema_name"] == "hetlora-run" and text["schema_version"] == 1
        assert text["committed_rounds"] == 5 and text["default"] == "rounds"
        assert {"run_id", "creator", "creator_version", "created_utc"} <= set(text)
        assert log["rounds"].attrs["signal"] in (b"eval_loss", "eval_loss")
        assert [x.decode() for x in log["slots"].attrs["axes"]] == ["round", "slot"]
        assert np.isnan(log["rounds/eval_loss"].fillvalue)
        assert log["rounds/eval_loss"].maxshape == (None,)


def test_many_runs_concatenate_in_one_call(run, tmp_path):
    subprocess.run([WRITER, tmp_path / "b", "4"], check=True, capture_output=True)
    logs = [xr.open_dataset(r / "run.h5", group="rounds") for r in (run, tmp_path / "b")]
    assert xr.concat(logs, "run").eval_loss.shape == (2, 5)


def test_progress_and_status_are_the_same_rounds(run):
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    with xr.open_dataset(run / "run.h5", group="rounds") as rounds:
        assert [line["eval_loss"] for line in lines] == rounds.eval_loss.values.tolist()
        assert set(rounds.variables) <= set(lines[0])
    assert [len(line["participation"]) for line in lines] == [0, 1, 2, 3, 1]
    with xr.open_dataset(run / "run.h5", group="layers") as layers:
        assert [line["round"] for line in lines if "layers" in line] == layers["round"].values.tolist()
        assert lines[4]["layers"][1]["singular_value"] == layers.singular_value.values[1, 1].tolist()
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["round"], status["rounds"]) == ("done", 4, 4)
    assert status["eval_loss"] is None
    assert (run / "COMPLETE").exists()


def test_trace_slices(run):
    with h5py.File(run / "trace.h5") as trace:
        slot = int(trace["matrices/d_out"][:].sum() + trace["matrices/d_in"][:].sum())
        before = trace["events/lora_rank_before"][:]
        np.testing.assert_array_equal(np.diff(trace["events/received_offset"][:]), before * slot)
        assert trace["adapters/received"].shape == (int(before.sum()) * slot,)
        assert len(trace["steps/window_offset"]) == len(trace["steps/loss"]) + 1
        np.testing.assert_array_equal(trace["globals/round"], range(5))
        assert trace["matrices/name"][0] == b"model.layers.0.self_attn.q_proj"


def test_the_examples_of_the_page_run(run, tmp_path):
    page = (ROOT / "docs/run-log.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/demo").symlink_to(run)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        for example in examples:
            exec(compile(example, "docs/run-log.md", "exec"), {"xr": xr})
    finally:
        os.chdir(before)
    assert len(examples) == 5


def test_peft_style_adapter(run):
    tensors = pytest.importorskip("safetensors.numpy").load_file(run / "adapter/adapter_model.safetensors")
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    b = tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert b.shape == (6, 4) and config["lora_alpha"] == 8 and config["r"] == 4
    np.testing.assert_array_equal(b[:, 0], range(16, 22))


@program.needs_program
def test_every_committed_round_survives_kill_9(tmp_path):
    """What the writer had told of before it was killed is there: at once, or after one call of `hetlora repair`."""
    told, whole_at_once = {}, 0
    for attempt in range(KILLS):
        folder = tmp_path / f"run{attempt}"
        writer = subprocess.Popen([WRITER, folder, "0", "layers"], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "1\n"
        time.sleep(random.Random(attempt).uniform(0.0, 0.25))
        writer.kill()
        printed = [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        told[folder] = max(printed, default=1)
        with contextlib.suppress(OSError, KeyError), h5py.File(folder / "run.h5") as log:
            whole_at_once += int(log.attrs["committed_rounds"]) >= told[folder]
    done = program.start("repair", *told)
    assert done.returncode == 0, done.stderr
    assert "lost: round" not in done.stdout
    for folder, least in told.items():
        with h5py.File(folder / "run.h5") as log:
            committed = int(log.attrs["committed_rounds"])
        assert committed >= least
        with xr.open_dataset(folder / "run.h5", group="rounds") as rounds:
            rows = rounds.isel(round=slice(committed))
            np.testing.assert_array_equal(rows["round"], range(committed))
            np.testing.assert_allclose(rows.eval_loss, 3.0 - 0.1 * np.arange(committed))
        if committed > 2:  # a log rebuilt from rounds that looked at no layer has no such group
            with xr.open_dataset(folder / "run.h5", group="layers") as layers:
                looked_at = layers["round"].values[layers["round"].values < committed]
                np.testing.assert_array_equal(looked_at[looked_at > 0], range(2, committed, 2))
        assert len((folder / "progress.jsonl").read_text().splitlines()) == committed
    print(f"{KILLS} kills, {whole_at_once} logs whole at once, all after a repair")


def live_reading_example() -> dict:
    """The functions that docs/run-log.md gives for reading a run that goes on."""
    page = (ROOT / "docs/run-log.md").read_text()
    section = page[page.index("## Reading while the run goes on") :]
    names: dict = {}
    functions = re.search(r"```python\n(.*?)^print", section, re.S | re.M)[1]  # without the call below them
    exec(compile(functions, "docs/run-log.md", "exec"), names)
    return names


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_reading_while_the_writer_writes(tmp_path, engine):
    """The documented way: every reading gives the committed rounds, all of them right, and more as time goes on."""
    read_group = live_reading_example()["read_group"]
    folder = tmp_path / "run"
    writer = subprocess.Popen([WRITER, folder, "0", "layers", "slowly"], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "1\n"
        seen, growths = 0, 0
        for _ in range(60):
            rounds = read_group(folder / "run.h5", "rounds", engine=engine)
            np.testing.assert_array_equal(rounds["round"], range(rounds.sizes["round"]))
            np.testing.assert_allclose(rounds.eval_loss, 3.0 - 0.1 * np.arange(rounds.sizes["round"]))
            events = read_group(folder / "run.h5", "participation", engine=engine)
            assert int(events["round"].max()) >= rounds.sizes["round"] - 1 if rounds.sizes["round"] > 1 else True
            layers = read_group(folder / "run.h5", "layers", engine=engine)
            np.testing.assert_array_equal(layers["round"], np.arange(2, 2 * layers.sizes["round"] + 1, 2))
            growths += rounds.sizes["round"] > seen
            assert rounds.sizes["round"] >= seen
            seen = rounds.sizes["round"]
            if growths == 4:
                break
        assert growths == 4
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
