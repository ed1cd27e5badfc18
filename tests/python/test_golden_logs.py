"""Logs of every released schema are opened for ever: tests/data/golden/, made by the writers of their time."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

GOLDEN = Path(__file__).resolve().parents[1] / "data/golden"
LOGS = sorted(GOLDEN.glob("schema*/*/run.h5"))
GROUPS = ("rounds", "slots", "participation", "clients", "provenance")


def test_there_is_a_log_of_each_kind():
    assert [path.parent.name for path in LOGS if path.parts[-3] == "schema1"] == ["layers", "metric", "plain"]
    assert all(path.stat().st_size < 100_000 for path in LOGS)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.parent.name)
def test_xarray_opens_every_group_without_more_arguments(log, engine):
    kind = log.parent.name
    for group in (*GROUPS, "layers") if kind == "layers" else GROUPS:
        with xr.open_dataset(log, group=group, engine=engine) as data:
            data.load()
            for name, column in data.variables.items():
                assert column.attrs["units"] and column.attrs["long_name"], f"{group}/{name}"
            if group == "rounds":
                np.testing.assert_allclose(data.eval_loss, [3.0, 2.9, 2.8, 2.7, 2.6])
                assert ("eval_rouge" in data) == (kind == "metric")
            if group == "participation":
                np.testing.assert_array_equal(data["client"], [0, 0, 1, 0, 1, 2, 0])
            if group == "layers":
                np.testing.assert_array_equal(data.singular_value.sel(round=4, layer=1), 4.125 / np.arange(1, 5))


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.parent.name)
def test_viewers_find_what_to_draw(log):
    """NeXus: from the root's `default` to a group's `signal` and one axis name for each of its dimensions."""

    def text(value) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    with h5py.File(log) as file:
        assert text(file.attrs["NX_class"]) == "NXroot" and text(file.attrs["default"]) in file
        for name, group in file.items():
            if name == "provenance":
                continue
            assert text(group.attrs["NX_class"]) == "NXdata", name
            signal = group[text(group.attrs["signal"])]
            axes = [text(axis) for axis in group.attrs["axes"]]
            assert len(axes) == signal.ndim, name
            for axis, dimension in zip(axes, signal.dims, strict=True):
                assert group[axis].is_scale and dimension[0].name == group[axis].name, (name, axis)
            for column in group.values():
                assert column.is_scale or all(len(dimension) == 1 for dimension in column.dims), column.name
                if column.dtype == np.float64:
                    assert np.isnan(column.attrs["_FillValue"]).all() and np.isnan(column.fillvalue), column.name


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.parent.name)
def test_ncdump_reads_the_header(log):
    if shutil.which("ncdump") is None:
        pytest.skip("ncdump is not installed")
    text = subprocess.run(["ncdump", "-h", log], check=True, capture_output=True, text=True).stdout
    assert "double eval_loss(round)" in text
    assert ("double singular_value(round, layer, index)" in text) == (log.parent.name == "layers")


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.parent.name)
def test_the_second_copy_holds_the_same(log):
    lines = [json.loads(line) for line in (log.parent / "progress.jsonl").open()]
    with xr.open_dataset(log, group="rounds") as rounds:
        assert [line["eval_loss"] for line in lines] == rounds.eval_loss.values.tolist()
