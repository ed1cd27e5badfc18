"""`hetlora repair`: logs damaged on purpose, and what is said of each."""

from __future__ import annotations

import fcntl
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402
from test_run_log import WRITER  # noqa: E402

pytestmark = [
    program.needs_program,
    pytest.mark.skipif(not WRITER.exists(), reason=f"{WRITER} is not built"),
]
ROUNDS = 6  # and row 0


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repair") / "run"
    subprocess.run([WRITER, folder, str(ROUNDS), "layers"], check=True, capture_output=True)
    return folder


def repair(*runs: Path, code: int = 0) -> str | dict[Path, str]:
    """What the program says: of one folder a text, of several (cheaper than one start each) one text by folder."""
    done = program.start("repair", *runs)
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        return done.stderr
    if len(runs) == 1:
        return done.stdout
    pieces = re.split(r"^(/.*):\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(map(Path, pieces[1::2]), pieces[2::2], strict=True))


def values(path: Path) -> dict:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        found["attributes"] = {key: file.attrs[key] for key in file.attrs if key != "hdf5_version"}
        provenance = {key: value for key, value in file["provenance"].attrs.items() if key != "repairs"}
        found["provenance"] = provenance
    return found


def assert_same_log(run: Path, whole: Path, *, but: tuple = ()) -> None:
    here, there = values(run / "run.h5"), values(whole / "run.h5")
    assert here.keys() == there.keys()
    for name in there.keys() - set(but):
        np.testing.assert_equal(here[name], there[name], err_msg=name)
    assert (run / "progress.jsonl").read_bytes() == (whole / "progress.jsonl").read_bytes()


def flip(path: Path, place: int, n_bytes: int = 8) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(n_bytes)
        file.seek(place)
        file.write(bytes(byte ^ 0xA5 for byte in old))


def cut(run: Path, bytes_left: int) -> None:
    (run / "run.h5").write_bytes((run / "run.h5").read_bytes()[:bytes_left])


def tear_header(run: Path, name: str) -> None:
    """The object can no longer be opened."""
    with h5py.File(run / "run.h5") as file:
        place = h5py.h5o.get_info(file[name].id).addr
    flip(run / "run.h5", place)


def corrupt_chunk(run: Path, name: str) -> None:
    """HDF5 notices nothing: values change."""
    with h5py.File(run / "run.h5") as file:
        place = file[name].id.get_chunk_info(0).byte_offset
    flip(run / "run.h5", place + 8)


def leave_open_for_writing(run: Path) -> None:
    """Rewrites the file in HDF5's newest format and ends without closing it, as a killed writer would."""
    script = """
import os, sys, h5py
source, path = sys.argv[1:]
with h5py.File(source) as old:
    new = h5py.File(path, "w", libver="latest")
    for name in old:
        old.copy(name, new, expand_refs=True)
    for key, value in old.attrs.items():
        new.attrs[key] = value
new.flush()
os._exit(0)
"""
    old, path = run / "old.h5", run / "run.h5"
    path.rename(old)
    environment = program.environment(HDF5_USE_FILE_LOCKING="FALSE")
    subprocess.run([sys.executable, "-c", script, old, path], check=True, env=environment)
    old.unlink()
    with pytest.raises(OSError, match="already open for write|consistency flags"), h5py.File(path):
        pass


def tear_progress(run: Path, damage: str) -> None:
    content = (run / "progress.jsonl").read_bytes()
    if damage == "gone":
        (run / "progress.jsonl").unlink()
    else:
        (run / "progress.jsonl").write_bytes(content[:-40] if damage == "cut" else content + b'{"round": non')


def tear_both(run: Path) -> None:
    cut(run, 5000)
    lines = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    (run / "progress.jsonl").write_text("".join(lines[:3]) + lines[3][:30])


def tear_header_without_second_copy(run: Path) -> None:
    tear_header(run, "rounds/t_io_s")
    (run / "progress.jsonl").unlink()


def cut_trace(run: Path) -> None:
    (run / "trace.h5").write_bytes((run / "trace.h5").read_bytes()[:-3000])


def random_bytes(run: Path, seed: int) -> None:
    chance = random.Random(seed)
    torn = bytearray((run / "run.h5").read_bytes())
    for _ in range(chance.choice([1, 4, 40])):
        at = chance.randrange(len(torn))
        torn[at : at + 8] = chance.randbytes(min(8, len(torn) - at))
    (run / "run.h5").write_bytes(torn)


CUTS = (0, 7, 100, 2000, 9000, -1000, -1)
TORN = ("rounds/t_io_s", "participation/round", "slots/energy", "layers/singular_value", "slots")
CHUNKS = ("rounds/eval_loss", "participation/client", "slots/n_contributors", "rounds/round")
DAMAGE = {
    "none": (lambda run: None,),
    "torn clients": (tear_header, "clients/name"),
    "both copies": (tear_both,),
    "one copy": (tear_header_without_second_copy,),
    "mark": (leave_open_for_writing,),
    "trace": (cut_trace,),
    **{f"cut {n}": (cut, n) for n in CUTS},
    **{f"torn {name}": (tear_header, name) for name in TORN},
    **{f"chunk {name}": (corrupt_chunk, name) for name in CHUNKS},
    **{f"progress {what}": (tear_progress, what) for what in ("cut", "garbage", "gone")},
    **{f"random {seed}": (random_bytes, seed) for seed in range(20)},
}


@pytest.fixture(scope="module")
def repaired(sample, tmp_path_factory):
    """{damage: (folder, what repair said, what it said the second time, files of the folder in between)}."""
    where = tmp_path_factory.mktemp("repaired")
    folders = {name: where / re.sub(r"\W", "_", name) for name in DAMAGE}
    files = {}
    for name, (damage, *arguments) in DAMAGE.items():
        shutil.copytree(sample, folders[name])
        damage(folders[name], *arguments)
        files[name] = {path.name: path.read_bytes() for path in folders[name].iterdir() if path.is_file()}
    first = repair(*folders.values())
    second = repair(*folders.values())
    return {name: (run, first[run], second[run], files[name]) for name, run in folders.items()}


def test_a_whole_run_is_left_alone(repaired):
    run, text, _, before = repaired["none"]
    assert text.startswith(f"nothing to repair in {run}: {ROUNDS + 1} committed rows")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"trace"}))
def test_once_is_enough(repaired, damage):
    _, _, again, _ = repaired[damage]
    # What is lost for good is said again where another file still tells of it.
    assert again.startswith("nothing to repair") or damage in {"both copies"}


@pytest.mark.parametrize("bytes_left", CUTS)
def test_a_cut_log_is_made_anew_with_every_round(repaired, sample, bytes_left):
    run, text, _, before = repaired[f"cut {bytes_left}"]
    assert f"made anew with {ROUNDS + 1} rounds of progress.jsonl" in text
    assert "lost: provenance: all of it" in text and "lost: names and sizes of the clients" in text
    assert (run / "run.h5.damaged").read_bytes() == before["run.h5"]
    lost = ("attributes", "provenance") + tuple(f"clients/{n}" for n in ("name", "n_train_sequences", "n_train_tokens"))
    assert_same_log(run, sample, but=lost)
    with h5py.File(run / "run.h5") as file:
        assert file.attrs["committed_rounds"] == ROUNDS + 1 and file.attrs["run_id"] == b"sample"
        assert b"made anew with" in file["provenance"].attrs["repairs"]
    for engine in ("h5netcdf", "netcdf4"):
        with xr.open_dataset(run / "run.h5", group="layers", engine=engine) as layers:
            assert layers.sizes["round"] == ROUNDS // 2


@pytest.mark.parametrize("name", TORN)
def test_one_torn_object_costs_nothing(repaired, sample, name):
    run, text, _, _ = repaired[f"torn {name}"]
    assert "run.h5 was damaged" in text and "nothing was lost" in text
    assert_same_log(run, sample)  # clients, provenance and time of making were still readable


def test_torn_clients_are_said_to_be_lost(repaired):
    run, text, _, _ = repaired["torn clients"]
    assert "lost: names and sizes of the clients" in text and "lost: final losses of the clients" in text
    assert "provenance" not in text
    with h5py.File(run / "run.h5") as file:
        assert file["provenance"].attrs["git_commit"] == b"0123abcd"
        np.testing.assert_array_equal(file["clients/initial_lora_rank"], [1, 2, 3])


@pytest.mark.parametrize("name", CHUNKS)
def test_a_corrupt_chunk_is_noticed_and_put_right(repaired, sample, name):
    run, text, _, _ = repaired[f"chunk {name}"]
    assert "run.h5 was damaged" in text
    assert_same_log(run, sample)


def test_a_log_whose_second_copy_is_gone_keeps_what_it_can_read(repaired, sample):
    run, text, _, _ = repaired["one copy"]
    assert "lost: rounds/t_io_s of the rounds from 0 on" in text
    assert f"made anew with {ROUNDS + 1} of its own" in text
    here, there = values(run / "run.h5"), values(sample / "run.h5")
    assert np.isnan(here["rounds/t_io_s"]).all()
    for key in there.keys() - {"rounds/t_io_s"}:
        np.testing.assert_equal(here[key], there[key], err_msg=key)
    assert len((run / "progress.jsonl").read_text().splitlines()) == ROUNDS + 1


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_a_damaged_second_copy_is_written_anew(repaired, sample, damage):
    run, text, _, _ = repaired[f"progress {damage}"]
    assert "progress.jsonl was damaged" in text and "nothing was lost" in text
    assert (run / "progress.jsonl.damaged").exists() == (damage != "gone")
    assert_same_log(run, sample)


def test_both_copies_cut_lose_rounds_and_say_which(repaired):
    run, text, _, _ = repaired["both copies"]
    assert f"lost: rounds 3 to {ROUNDS}" in text and "3 committed rows are whole" in text
    assert [json.loads(line)["round"] for line in (run / "progress.jsonl").open()] == [0, 1, 2]
    with xr.open_dataset(run / "run.h5", group="rounds") as rounds:
        np.testing.assert_allclose(rounds.eval_loss, [3.0, 2.9, 2.8])


def test_a_stale_writer_mark_is_cleared_and_nothing_else(repaired):
    run, text, _, before = repaired["mark"]
    assert "mark cleared" in text and "nothing was lost" in text and "made anew" not in text
    assert (run / "run.h5.damaged").read_bytes() == before["run.h5"]
    with h5py.File(run / "run.h5") as file:
        assert file.attrs["committed_rounds"] == ROUNDS + 1


def test_a_torn_trace_is_named(repaired):
    _, text, _, _ = repaired["trace"]
    assert "lost: trace: trace.h5 cannot be made anew" in text and "output.trace=false" in text


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_never_crash_it_nor_lose_a_round(repaired, seed):
    """Damage anywhere: the log opens afterwards and has every round of the second copy."""
    run, _, _, _ = repaired[f"random {seed}"]
    with xr.open_dataset(run / "run.h5", group="rounds", engine="h5netcdf") as rounds:
        np.testing.assert_allclose(rounds.eval_loss, 3.0 - 0.1 * np.arange(ROUNDS + 1))


def test_a_folder_in_use_is_refused(sample, tmp_path):
    run = shutil.copytree(sample, tmp_path / "run")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process works in the run folder" in repair(run, code=2)


def test_what_cannot_be_repaired_is_one_clear_error(sample, tmp_path):
    empty, missing = tmp_path / "empty", tmp_path / "missing"
    empty.mkdir()
    newer, nothing = (shutil.copytree(sample, tmp_path / name) for name in ("newer", "nothing"))
    with h5py.File(newer / "run.h5", "r+") as file:
        file.attrs["schema_version"] = 2
    (nothing / "run.h5").write_bytes(b"no log")
    (nothing / "progress.jsonl").write_text("no line\n")
    expected = {
        empty: ["is no folder of a run"],
        missing: ["is no folder of a run"],
        newer: ["schema version 2", "use the hetlora that wrote it (0.1.0)"],
        nothing: ["no round of the run", "run.h5:", "line 1 is torn"],
    }
    said = program.messages(repair(*expected, code=3))
    assert len(said) == len(expected)
    for message, (folder, fragments) in zip(said, expected.items(), strict=True):
        for fragment in [str(folder), *fragments]:
            assert fragment in message
    assert (nothing / "run.h5").read_bytes() == b"no log"
