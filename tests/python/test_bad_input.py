"""Wrong configs, data and models: one message that says what, where and how, the exit code, nothing written."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program

USAGE, INPUT, ENVIRONMENT = 2, 3, 4


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """The intact world and its config; nothing below changes it."""
    folder = tmp_path_factory.mktemp("good")
    world = micro.build(folder)
    return SimpleNamespace(folder=folder, model=world[0], data=world[1], world=world)


def refused(done, code: int, *fragments: str, output: Path | None = None, mpi: bool = False) -> None:
    """One message with every fragment, on stderr, no traceback; no output folder."""
    assert done.returncode == code, done.stderr
    assert len(program.messages(done.stderr)) == 1, done.stderr
    if not mpi:
        assert done.stderr.startswith("hetlora")
    message = done.stderr[done.stderr.index("hetlora") :]
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is not in: {message}"
    for alien in ("Traceback", "terminate called", "what():", "internal error", "HDF5-DIAG", "c10::", "nlohmann"):
        assert alien not in done.stderr
    lines = message.splitlines()
    assert len(lines) == len(set(lines)) or mpi, f"text said twice: {message}"
    assert output is None or not output.exists(), "something was written"


# --- config and command line ---

# words after `run --config GOOD.ini`, exit code 2, what the message names
WORDS = {
    "unknown key": (["lora.rank_maxx=8"], ["lora.rank_maxx", "did you mean lora.rank_max", "command line"]),
    "unknown section": (["lorra.rank_max=8"], ["lorra.rank_max", "did you mean"]),
    "misspelt value": (["local.optimizer=adam"], ["local.optimizer = adam", "did you mean adamw", "sgd | adamw"]),
    "not a number": (["experiment.rounds=ten"], ["experiment.rounds = ten", "command line"]),
    "not whole": (["experiment.rounds=1.5"], ["experiment.rounds = 1.5"]),
    "out of range": (["data.sequence_length=0"], ["data.sequence_length = 0"]),
    "overlap": (["data.overlap=24"], ["data.overlap", "sequence_length"]),
    "rank_min > rank_max": (["lora.rank_min=9"], ["rank_min", "9", "rank_max", "8"]),
    "rank_max > matrix": (["lora.rank_max=17"], ["17", "v_proj", "16"]),
    "too many clients": (["experiment.clients_per_round=11"], ["clients_per_round = 11", "10 of 12", "min_windows"]),
    "too long windows": (["data.sequence_length=257", "compute.pack_tokens=auto"], ["257", "256 positions"]),
    "both steps and epochs": (["local.epochs=2"], ["local.steps", "local.epochs"]),
    "unknown target": (["lora.targets=q_proj,w_proj"], ["w_proj"]),
    "small pack": (["compute.pack_tokens=10"], ["compute.pack_tokens = 10", "sequence_length = 24", "auto"]),
    "foreign gemm": (["compute.gemm=widened"], ["compute.gemm = widened", "model.precision = fp32"]),
    "gemm without bf16": (["compute.gemm=tiles", "model.precision=bf16"], ["compute.gemm = tiles", "model.precision"]),
    "no value": (["local.steps"], ["local.steps", "section.key=value"]),
    "twice": (["local.steps=1", "local.steps=2"], ["local.steps=1", "local.steps=2"]),
    "idle key": (["lora.lora_alpha=8"], ["lora.lora_alpha", "scale_rule"]),
    "unknown option": (["--outptu", "x"], ["--outptu", "did you mean --output"]),
    "option without value": (["--output"], ["--output needs"]),
    "unset variable": (["data.path=${HETLORA_TEST_NOT_SET}/a.h5"], ["HETLORA_TEST_NOT_SET"]),
}


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words(good, tmp_path, case):
    words, fragments = WORDS[case]
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    output = [] if "--output" in words else ["--output", tmp_path / "out"]
    refused(program.start("run", "--config", ini, *output, *words), USAGE, *fragments, output=tmp_path / "out")


def test_too_little_memory_is_said_before_training(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    done = program.start("run", "--config", ini, "--output", tmp_path / "out", "compute.memory_gib=0.01")
    refused(done, ENVIRONMENT, "10.2 MiB", "local.batch_size", "recompute", output=tmp_path / "out")


def test_bf16_without_hardware_works_and_says_what_it_costs(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    done = program.start("run", "--config", ini, "--output", tmp_path / "out", "model.precision=bf16")
    assert done.returncode == 0, done.stderr
    flags = Path("/proc/cpuinfo").read_text().split()
    if "avx512_bf16" not in flags and "amx_bf16" not in flags and "bf16" not in flags:
        assert "no bfloat16 instructions" in done.stderr
        assert re.search(r"[0-9.]+ times as long", done.stderr)
        assert "gemm = widened" in (tmp_path / "out" / "config.ini").read_text()


def test_several_problems_at_once(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world,
                            {"lora": {"rank_maxx": 3, "rank_min": 9}, "local": {"optimizer": "adam"},
                             "model": {"path": None}})  # fmt: skip
    done = program.start("run", "--config", ini, "--output", tmp_path / "out", "experiment.rounds=x")
    refused(done, USAGE, "problems in the configuration", "rank_maxx", "adamw", "rounds = x", "model.path", "rank_min",
            output=tmp_path / "out")  # fmt: skip
    line = 1 + ini.read_text().splitlines().index("rank_maxx = 3")
    assert f"{ini}:{line}: " in done.stderr


@pytest.mark.parametrize("key", ["model.path", "data.path"])
def test_missing_required_key(good, tmp_path, key):
    section, name = key.split(".")
    ini = program.write_ini(tmp_path / "run.ini", good.world, {section: {name: None}})
    refused(program.start("run", "--config", ini, "--output", tmp_path / "out"), USAGE, key, "missing", str(ini),
            output=tmp_path / "out")  # fmt: skip


def test_no_such_config(tmp_path):
    refused(program.start("run", "--config", tmp_path / "no.ini"), USAGE, "no.ini")


def test_unknown_verb():
    refused(program.start("rnu"), USAGE, "rnu", "did you mean run")


def test_malformed_ini(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    ini.write_text(ini.read_text() + "[local\nsteps 4\n")
    n_lines = len(ini.read_text().splitlines())
    refused(program.start("run", "--config", ini, "--output", tmp_path / "out"), USAGE, f"{ini}:{n_lines - 1}",
            f"{ini}:{n_lines}", output=tmp_path / "out")  # fmt: skip


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine may have a GPU")
def test_no_gpu(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    done = program.start("run", "--config", ini, "--output", tmp_path / "out", "compute.device=cuda")
    refused(done, ENVIRONMENT, "compute.device = cuda", "compute.device = auto or cpu", output=tmp_path / "out")
    built = "CUDA in this build" in program.start("--version").stdout
    assert ("sees no GPU" if built else "built against a LibTorch without CUDA") in done.stderr


# --- the output folder ---


@pytest.mark.parametrize("place", ["/proc/hetlora-test/out", "{tmp}/file/out"])
def test_unwritable_folder(good, tmp_path, place):
    (tmp_path / "file").write_text("x")
    output = Path(place.format(tmp=tmp_path))
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    refused(program.start("run", "--config", ini, "--output", output), ENVIRONMENT, str(output), "--output")
    assert not output.exists()


def test_output_is_a_file(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    refused(program.start("run", "--config", ini, "--output", ini), USAGE, str(ini), "is a file")


def test_folder_holds_a_run(good, tmp_path):
    ini = program.write_ini(tmp_path / "run.ini", good.world, {"experiment": {"rounds": 1}})
    assert program.start("run", "--config", ini, "--output", tmp_path / "out").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    done = program.start("run", "--config", ini, "--output", tmp_path / "out")
    refused(done, USAGE, str(tmp_path / "out"), "holds another run", "round 1 of 1", "--output")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


# --- data ---


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def set_attribute(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def replace(path: Path, name: str, change) -> None:
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        if values is not None:
            file[name] = values


def larger_vocabulary(path: Path) -> None:
    set_attribute(path, "vocab_size", np.int64(200))
    replace(path, "vocab/offset", lambda offset: np.concatenate([offset, np.full(200 - 96, offset[-1])]))


def one_id_too_large(ids: np.ndarray) -> np.ndarray:
    ids[100] = 96
    return ids


DATA = {
    "missing": (lambda p: p.unlink(), ["no such file", "prepare"]),
    "folder": (lambda p: (p.unlink(), p.mkdir()), []),
    "empty": (lambda p: p.write_bytes(b""), ["HDF5"]),
    "not HDF5": (lambda p: p.write_text("hello\n" * 1000), ["not an HDF5 file"]),
    "truncated": (lambda p: truncate(p, 0.7), []),
    "another schema": (lambda p: set_attribute(p, "schema_name", np.bytes_("other")), ["schema_name", "other"]),
    "newer schema": (lambda p: set_attribute(p, "schema_version", np.int64(2)), ["version", "2"]),
    "another tokenizer": (lambda p: set_attribute(p, "tokenizer_sha256", np.bytes_("1" * 64)),
                          ["another tokenizer", "prepare"]),
    "larger vocabulary": (larger_vocabulary, ["200", "96", "prepare"]),
    "no tokens": (lambda p: replace(p, "tokens/ids", lambda ids: None), ["'ids'", "/tokens"]),
    "short mask": (lambda p: replace(p, "tokens/mask", lambda mask: mask[:-5]), ["mask"]),
    "offsets not sorted": (lambda p: replace(p, "sequences/offset", lambda o: o[::-1].copy()), ["sequences/offset"]),
    "nobody held out": (lambda p: replace(p, "clients/held_out", lambda flags: flags * 0), []),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_bad_data(good, tmp_path, case):
    damage, fragments = DATA[case]
    data = tmp_path / "data.h5"
    shutil.copy(good.data, data)
    damage(data)
    ini = program.write_ini(tmp_path / "run.ini", (good.model, data))
    refused(program.start("run", "--config", ini, "--output", tmp_path / "out"), INPUT, str(data), *fragments,
            output=tmp_path / "out")  # fmt: skip


# --- the model ---


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(folder: Path, change) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_bytes(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def with_header(raw: bytes, header: bytes) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


QPROJ = "model.layers.1.self_attn.q_proj.weight"


def poison(tensors: dict) -> None:
    tensors[QPROJ] = tensors[QPROJ].copy()
    tensors[QPROJ][3, 5] = np.nan


MODEL = {
    "missing folder": (shutil.rmtree, []),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors"]),
    "malformed config": (lambda f: (f / "config.json").write_text('{"hidden_size": 32,'), ["config.json", "JSON"]),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), ["config.json"]),
    "config key missing": (lambda f: edit_config(f, hidden_size=None), ["hidden_size"]),
    "config key of wrong type": (lambda f: edit_config(f, hidden_size="32"), ["hidden_size"]),
    "other architecture": (lambda f: edit_config(f, architectures=["GPT2LMHeadModel"], model_type="gpt2"), ["gpt2"]),
    "rope scaling": (lambda f: edit_config(f, rope_scaling={"rope_type": "llama3", "factor": 8.0}),
                     ["rope_scaling", "llama3"]),
    "rope parameters": (lambda f: edit_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), ["yarn"]),
    "biases": (lambda f: edit_config(f, attention_bias=True), ["attention_bias"]),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(QPROJ)), [QPROJ]),
    "misshapen tensor": (lambda f: edit_tensors(f, lambda t: t.update({QPROJ: t[QPROJ][:30].copy()})),
                         [QPROJ, "30", "32"]),
    "integer tensor": (lambda f: edit_tensors(f, lambda t: t.update({QPROJ: t[QPROJ].astype(np.int32)})),
                       [QPROJ, "I32"]),
    "truncated weights": (lambda f: truncate(f / "model.safetensors", 0.6), ["model.safetensors"]),
    "empty weights": (lambda f: edit_bytes(f, lambda raw: b""), ["model.safetensors"]),
    "absurd header length": (lambda f: edit_bytes(f, lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]),
                             ["model.safetensors", "header"]),
    "malformed header": (lambda f: edit_bytes(f, lambda raw: with_header(raw, b'{"a": [1, 2')),
                         ["model.safetensors", "header"]),
    "overlapping tensors": (lambda f: edit_bytes(f, lambda raw: raw.replace(b"[0,", b"[4,", 1)), ["model.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MODEL)
def test_bad_model(good, tmp_path, case):
    damage, fragments = MODEL[case]
    model = tmp_path / "model"
    shutil.copytree(good.model, model)
    damage(model)
    ini = program.write_ini(tmp_path / "run.ini", (model, good.data))
    refused(program.start("run", "--config", ini, "--output", tmp_path / "out"), INPUT, str(model), *fragments,
            output=tmp_path / "out")  # fmt: skip


# --- damage that shows only once the run has started ---


@pytest.mark.parametrize("case", ["NaN in the model", "an id too large"])
def test_late_damage(good, tmp_path, case):
    model, data = tmp_path / "model", tmp_path / "data.h5"
    shutil.copytree(good.model, model)
    shutil.copy(good.data, data)
    if case == "NaN in the model":
        edit_tensors(model, poison)
        fragments = [str(model), "before any training"]
    else:
        replace(data, "tokens/ids", one_id_too_large)
        fragments = [str(data), "96"]
    ini = program.write_ini(tmp_path / "run.ini", (model, data))
    refused(program.start("run", "--config", ini, "--output", tmp_path / "out"), INPUT, *fragments)
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "out" / "COMPLETE").exists()


# --- an adapter for `evaluate` ---


@pytest.mark.parametrize("case", ["missing", "malformed", "too large"])
def test_bad_adapter(good, tmp_path, case):
    adapter = tmp_path / "adapter"
    if case != "missing":
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"r": 9}' if case == "too large" else '{"r": ')
    ini = program.write_ini(tmp_path / "run.ini", good.world)
    fragment = {"missing": "adapter_config.json", "malformed": "JSON", "too large": "lora.rank_max"}[case]
    refused(program.start("evaluate", "--config", ini, "--adapter", adapter), INPUT, str(adapter), fragment)
