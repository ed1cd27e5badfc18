"""hetlora.open_runs and hetlora.participation: many runs with a run axis, whole ones and others."""

import json

import h5py
import hetlora
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hetlora.errors import InputError
from synthetic_runs import Made, write_run, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """hetlora and zeropad x seeds 1 and 2; run i has perplexity 100 + i - t."""
    return write_sweep(
        tmp_path_factory.mktemp("results") / "sweep",
        [
            Made(curve=lambda t, i=i: 100.0 + i - t, settings={"strategy.preset": preset, "experiment.seed": seed})
            for i, (preset, seed) in enumerate([("hetlora", 1), ("hetlora", 2), ("zeropad", 1), ("zeropad", 2)])
        ],
    )


def test_axes_names_and_values(sweep):
    runs = hetlora.open_runs(sweep)
    assert runs.sizes == {"run": 4, "round": 4, "slot": 4} and list(runs["round"]) == [0, 1, 2, 3]
    assert list(runs["strategy.preset"]) == ["hetlora", "hetlora", "zeropad", "zeropad"]
    assert list(runs["experiment.seed"]) == [1, 2, 1, 2] and runs["experiment.seed"].dtype == np.int64
    # Seeds that follow experiment.seed, names and folders are no axes of the sweep.
    assert set(runs.coords) == {"run", "round", "slot", "strategy.preset", "experiment.seed", "state", "n_rounds",
                                "problem", "path"}  # fmt: skip
    np.testing.assert_array_equal(runs.eval_perplexity, 100 + np.arange(4)[:, None] - np.arange(4))
    assert runs.bytes_up_true.dtype == np.int64 and runs.n_contributors.dtype == np.int32
    assert runs.energy.dims == ("run", "round", "slot") and runs.eval_loss.attrs["long_name"] == "made-up eval_loss"
    assert set(runs.state.values) == {"done"} and set(runs.problem.values) == {""} and set(runs.n_rounds.values) == {3}
    assert json.loads(runs.attrs["settings"])["local.learning_rate"] == 0.001
    mean = runs.eval_perplexity.groupby("strategy.preset").mean("run").sel({"strategy.preset": "zeropad"})
    np.testing.assert_array_equal(mean, 102.5 - np.arange(4))


def test_the_data_set_goes_to_a_file_and_back(sweep, tmp_path):
    runs = hetlora.open_runs(sweep)
    runs.to_netcdf(tmp_path / "runs.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "runs.nc", engine="h5netcdf") as again:
        xr.testing.assert_equal(again.load(), runs)


def test_unlike_runs_are_padded_and_marked(tmp_path):
    write_run(tmp_path / "long", Made(rounds=5, extra_metrics=("rouge",), settings={"local.learning_rate": 0.1}))
    write_run(tmp_path / "short", Made(rounds=2, state="stopped", rank_max=2, settings={"local.learning_rate": 1}))
    write_run(tmp_path / "torn", Made(rounds=5))
    data = (tmp_path / "torn" / "run.h5").read_bytes()
    (tmp_path / "torn" / "run.h5").write_bytes(data[:3000])
    write_run(tmp_path / "newer")
    with h5py.File(tmp_path / "newer" / "run.h5", "r+") as file:
        file.attrs["schema_version"] = 7
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "request.ini").write_text("[local]\nlearning_rate = 0.5\n")
    runs = hetlora.open_runs(tmp_path)
    assert list(runs.run) == ["long", "newer", "short", "torn", "waiting"]
    assert list(runs.state) == ["done", "damaged", "stopped", "damaged", "waiting"]
    assert list(runs.n_rounds) == [5, 0, 2, 5, 0]
    assert "schema version 7" in str(runs.problem.sel(run="newer").values)
    assert "progress.jsonl" in str(runs.problem.sel(run="torn").values)
    assert list(runs["local.learning_rate"]) == [0.1, 0.001, 1, 0.001, 0.5]
    present = runs.eval_perplexity.notnull().sum("round")
    assert list(present) == [6, 0, 3, 6, 0]
    assert runs.tokens.dtype == np.float64 and runs.tokens.sel(run="long", round=5) == 50
    assert runs.eval_rouge.notnull().any("round").values.tolist() == [True, False, False, False, False]
    assert (
        runs.energy.sel(run="short", slot=1).notnull().sum() == 3
        and runs.energy.sel(run="short", slot=2).isnull().all()
    )


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in "ab":
        write_run(tmp_path / parent / "run")
    assert list(hetlora.open_runs([tmp_path / "a", tmp_path / "b"]).run) == ["a/run", "b/run"]


def test_participation(sweep, tmp_path):
    table = hetlora.participation(sweep)
    assert len(table) == 4 * 6 and list(table["run"].cat.categories) == [p.name for p in sorted(sweep.iterdir())]
    assert table.attrs["without_events"] == {} and table["client"].dtype == np.int32
    means = table.groupby(["strategy.preset", "client"])["lora_rank_after"].mean()
    assert means["hetlora", 1] == 2 and means["zeropad", 0] == 1
    write_run(tmp_path / "started", Made(rounds=0, state="stopped"))
    write_run(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"without participations: started \(stopped, 0 rounds\)"):
        table = hetlora.participation(tmp_path)
    assert set(table["run"]) == {"whole"} and list(table.attrs["without_events"]) == ["started"]
    assert isinstance(table, pd.DataFrame)


def test_nothing_to_open(tmp_path):
    with pytest.raises(InputError, match="holds no runs"):
        hetlora.open_runs(tmp_path)


def test_settings_of_every_kind(tmp_path):
    kinds = {
        "output.trace": [True, False],
        "lora.targets": [["q_proj"], ["q_proj", "v_proj"]],
        "local.learning_rate": [1, 0.5],
        "data.partition": ["iid", "natural"],
    }
    for i in (0, 1):
        write_run(tmp_path / f"run{i}", Made(settings={key: values[i] for key, values in kinds.items()}))
    write_run(tmp_path / "run2")
    (tmp_path / "run2" / "config.json").write_text("no JSON")
    runs = hetlora.open_runs([tmp_path / "run0", tmp_path / "run1"])
    assert runs["output.trace"].dtype == bool and list(runs["lora.targets"].values) == ["q_proj", "q_proj,v_proj"]
    assert list(runs["local.learning_rate"].values) == [1, 0.5] and "iid" in runs["data.partition"].values
    runs = hetlora.open_runs(tmp_path)
    assert np.isnan(runs["local.learning_rate"][2]) and list(runs["data.partition"].values) == ["iid", "natural", ""]
    assert "is not JSON" in str(runs.problem[2].values) and runs.eval_loss.notnull().all()


def test_layers_are_cut_to_committed_rounds(tmp_path):
    folder = write_run(tmp_path / "run", Made(rows_beyond=1))
    with h5py.File(folder / "run.h5", "r+") as file:
        file["layers/round"], file["layers/layer"] = np.array([0, 2, 4]), np.arange(2)
        file["layers/norm"] = np.arange(6.0).reshape(2, 3)
        for axis, name in enumerate(("layer", "round")):
            file[f"layers/{name}"].make_scale(name)
            file["layers/norm"].dims[axis].attach_scale(file[f"layers/{name}"])
    run = hetlora.read_run(folder)
    assert run.dims["layers/norm"] == ("layer", "round") and list(run.layers["round"]) == [0, 2]
    np.testing.assert_array_equal(run.layers["norm"], [[0, 1], [3, 4]])


def test_layers_are_rebuilt_from_progress_jsonl(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "run.h5").unlink()
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    for t in (1, 3):
        lines[t]["layers"] = [
            {"name": name, "update_norm": t + i, "client_cosine": None, "singular_value": [2.0 * t, 1.0 * i]}
            for i, name in enumerate("qv")
        ]
    (folder / "progress.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = hetlora.read_run(folder)
    layers = run.layers
    assert run.dims["layers/singular_value"] == ("round", "layer", "index") and run.dims["layers/name"] == ("layer",)
    assert list(layers["round"]) == [1, 3] and list(layers["name"]) == ["q", "v"] and len(layers["index"]) == 2
    np.testing.assert_array_equal(layers["update_norm"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(layers["singular_value"], [[[2, 0], [2, 1]], [[6, 0], [6, 1]]])
    assert np.isnan(layers["client_cosine"]).all()
