"""Data that a run does not touch costs nothing: masks of clients outside the cohort are not read, and the memory of
`prepare` does not grow with its input."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import micro
import numpy as np
import pytest
from hetlora.errors import EnvironmentProblem, InputError
from hetlora.prepare.token_spool import TokenSpool
from program import PROGRAM, columns, environment, finished, needs_program, start, write_ini

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_ROUND = {"experiment": {"rounds": 1, "clients_per_round": 4}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(model folder, data file) with the numbers of loss tokens that `prepare` writes."""
    model, plain = micro.build(tmp_path_factory.mktemp("big"))
    counted = plain.with_name("counted.h5")
    shutil.copy(plain, counted)
    with h5py.File(counted, "r+") as file:
        offset, mask = file["sequences/offset"][:], file["tokens/mask"][:]
        counts = [int(mask[a:b].sum()) for a, b in zip(offset[:-1], offset[1:], strict=True)]
        file.create_dataset("sequences/n_loss", data=np.array(counts, dtype=np.int32))
    return model, plain, counted


def run_of(tmp_path, world, data, name, changes=None):
    """The folder of a run of the program on `data`."""
    config = write_ini(tmp_path / f"{name}.ini", (world[0], data), changes)
    finished("run", "--config", config, "--output", tmp_path / name)
    return tmp_path / name


@needs_program
def test_counts_of_loss_tokens_in_the_file_change_nothing(tmp_path, world):
    for changes in (None, {"data": {"max_windows_per_client": 2}}):
        name = "all" if changes is None else "few"
        plain = run_of(tmp_path, world, world[1], f"plain-{name}", changes)
        counted = run_of(tmp_path, world, world[2], f"counted-{name}", changes)
        assert columns(plain / "run.h5") == columns(counted / "run.h5")


@needs_program
def test_only_the_data_of_the_cohort_is_read(tmp_path, world):
    whole = run_of(tmp_path, world, world[2], "whole", ONE_ROUND)
    with h5py.File(whole / "run.h5") as log:
        trained = set(log["participation/client"][:].tolist())
    assert len(trained) == 4
    damaged = tmp_path / "damaged.h5"
    shutil.copy(world[2], damaged)
    with h5py.File(damaged, "r+") as file:
        offset = file["sequences/offset"][:]
        client, part = file["sequences/client"][:], file["sequences/part"][:]
        for s in np.flatnonzero((part == 0) & ~np.isin(client, list(trained))):
            file["tokens/mask"][offset[s] : offset[s + 1]] = 0
    untouched = run_of(tmp_path, world, damaged, "untouched", ONE_ROUND)
    assert columns(whole / "run.h5") == columns(untouched / "run.h5")
    everybody = write_ini(tmp_path / "all.ini", (world[0], damaged), {"experiment": {"clients_per_round": 10}})
    for mpi_ranks in (0, 2):
        done = start("run", "--config", everybody, "--output", tmp_path / f"all{mpi_ranks}", mpi_ranks=mpi_ranks)
        assert done.returncode == 3
        assert "where no masked stretch starts" in done.stderr and "damaged.h5" in done.stderr


@needs_program
@pytest.mark.parametrize("value, message", [(-1, "-1 loss tokens"), (10_000, "10000 loss tokens")])
def test_an_impossible_count_is_refused(tmp_path, world, value, message):
    broken = tmp_path / "broken.h5"
    shutil.copy(world[2], broken)
    with h5py.File(broken, "r+") as file:
        file["sequences/n_loss"][3] = value
    done = subprocess.run([PROGRAM, "info", broken], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3 and message in done.stderr and "sequence 3" in done.stderr


def test_tokens_that_find_no_room_are_one_clear_message(tmp_path):
    spool = TokenSpool(tmp_path)
    ids, mask = np.arange(5, dtype=np.int32), np.array([0, 1, 0, 1, 1], dtype=np.uint8)
    places = [spool.append(ids + 10 * i, mask) for i in range(3)]
    assert [spool.read(place, 5)[0][0] for place in places] == [0, 10, 20]
    assert np.array_equal(spool.read(places[1], 5)[1], mask)
    with open("/dev/full", "wb", buffering=0) as full:
        spool._file = full
        with pytest.raises(EnvironmentProblem, match="No space left on device after 0 MB of tokens"):
            spool.append(ids, mask)
    with pytest.raises(InputError, match="cannot write in"):
        TokenSpool(tmp_path / "nowhere")


def write_words_tokenizer(folder):
    """A tokenizer of whole words: quick, and nothing of it grows."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{i}" for i in range(200)]
    vocabulary = {"<unk>": 0, "<eos>": 1} | {word: 2 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return words


def peak_mib(tmp_path, kind, megabytes, words):
    """Largest memory of a process that prepares an input of so many megabytes."""
    generator = random.Random(1)
    source = tmp_path / f"own.{kind}"
    with open(source, "w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("who,ask,reply\n")
        size = 0
        while size < megabytes * 1e6:
            who, text = f"c{generator.randrange(50)}", " ".join(generator.choices(words, k=60))
            row = {"who": who, "ask": text, "reply": f"w{generator.randrange(200)} {text}"}
            size += file.write((json.dumps(row) if kind == "jsonl" else ",".join(row.values())) + "\n")
    arguments = ["prepare", kind, str(source), "--client-field", "who", "--prompt-field", "ask", "--response-field",
                 "reply", "--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "own.h5")]  # fmt: skip
    # The process tells its own peak: getrusage of a child counts what its parent held when it was started.
    program = (
        "import re, sys; from hetlora.__main__ import main; code = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=REPOSITORY / "analysis", capture_output=True, text=True,
        env=environment(TOKENIZERS_PARALLELISM="false"), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_memory_of_prepare_does_not_grow_with_its_input(tmp_path, kind):
    words = write_words_tokenizer(tmp_path / "tokenizer")
    # Batches are full with the smaller one already. With all records in memory the larger one took 180 MiB more.
    small, large = (peak_mib(tmp_path, kind, megabytes, words) for megabytes in (4, 16))
    assert large - small < 20, f"{small:.0f} MiB for 4 MB of input, {large:.0f} MiB for 16 MB"
