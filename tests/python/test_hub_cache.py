"""`model.path = org/name`: a base from the local cache of the Hugging Face hub, in a cache that the test makes."""

from __future__ import annotations

import json
import os
import shutil

import h5py
import micro
import pytest
from program import environment, needs_program, start, write_ini

pytestmark = needs_program
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro.build(tmp_path_factory.mktemp("hub"))


def make_cache(cache, model):
    """The model as huggingface_hub keeps it: blobs, and a snapshot of links to them."""
    root = cache / "models--some-org--micro.base"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        shutil.copy(file, root / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(os.path.relpath(root / "blobs" / f"blob-{file.name}", snapshot))
    return snapshot


def config(folder, world, name):
    return write_ini(folder / "run.ini", (name, world[1]), {"experiment": {"rounds": 1}})


def test_a_run_by_hub_id_logs_the_commit(world, tmp_path):
    snapshot = make_cache(tmp_path / "home" / "hub", world[0])
    env = environment(HF_HOME=str(tmp_path / "home"))
    ini = config(tmp_path, world, "some-org/micro.base")
    done = start("run", "--config", ini, "--output", tmp_path / "run", env=env)
    assert done.returncode == 0, done.stderr
    assert f"some-org/micro.base@{COMMIT[:7]}" in done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["path"] == str(snapshot)
    with h5py.File(tmp_path / "run" / "run.h5") as log:
        texts = {name: value for name, value in log["provenance"].attrs.items()}
    assert texts["base_hub_id"].decode() == "some-org/micro.base" and texts["base_hub_commit"].decode() == COMMIT

    # the same run as from a plain folder, and the resolved config needs no cache's variable
    plain = start("run", "--config", config(tmp_path / "plain", world, world[0]), "--output", tmp_path / "other")
    assert plain.returncode == 0, plain.stderr
    run_id = [json.loads((tmp_path / name / "status.json").read_text())["run_id"] for name in ("run", "other")]
    assert run_id[0] == run_id[1]
    assert start("check", "--config", tmp_path / "run" / "config.ini").returncode == 0
    done = start("export", tmp_path / "run", "--to", tmp_path / "adapter")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "some-org/micro.base"


def test_an_id_that_is_not_in_the_cache_names_the_command(world, tmp_path):
    env = environment(HF_HUB_CACHE=str(tmp_path / "empty"))
    done = start("check", "--config", config(tmp_path, world, "some-org/other"), env=env, cwd=tmp_path)
    assert done.returncode == 3
    for words in ("hf download some-org/other", str(tmp_path / "empty"), "never downloads"):
        assert words in done.stderr, done.stderr


def test_a_folder_of_that_name_wins(world, tmp_path):
    make_cache(tmp_path / "cache", world[0])
    shutil.copytree(world[0], tmp_path / "some-org" / "micro.base")
    env = environment(HF_HUB_CACHE=str(tmp_path / "cache"))
    done = start("check", "--config", config(tmp_path, world, "some-org/micro.base"), env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"path = {tmp_path / 'some-org' / 'micro.base'}" in done.stdout + done.stderr
