"""Own methods: the examples, the bridge to Python, a C++ plugin built outside of the project, and what is refused."""

import os
import re
import shutil
import subprocess
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

INPUT, ENVIRONMENT, TRAINING = 3, 4, 5
EXAMPLES = program.ROOT / "examples"
PYTHON_EXAMPLES = EXAMPLES / "python-plugins"
BUILD = program.PROGRAM.parent
BRIDGE = BUILD / "libhetlora_python.so"
needs_bridge = pytest.mark.skipif(not BRIDGE.is_file(), reason=f"{BRIDGE} is not built (python3-dev, make build)")
ZEROPAD = {"preset": "zeropad", "prune_gamma": None, "prune_lambda": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    return SimpleNamespace(folder=folder, files=micro.build(folder))


@pytest.fixture(scope="module")
def run(world):
    """run(name, strategy keys, mpi_ranks) -> run folder of a finished run of two rounds."""

    def start(name: str, strategy: dict | None = None, mpi_ranks: int = 0) -> Path:
        changes = {"experiment": {"rounds": 2}, "strategy": strategy or {}}
        ini = program.write_ini(world.folder / f"{name}.ini", world.files, changes)
        folder = world.folder / f"{name}-{mpi_ranks}"
        if (folder / "COMPLETE").exists():  # several tests compare with the same run
            return folder
        done = program.start("run", "--config", ini, "--output", folder, mpi_ranks=mpi_ranks)
        assert done.returncode == 0, done.stderr
        return folder

    return start


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def tensors(folder: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def values(folder: Path) -> dict:
    """The tensors of an adapter's file, without its header (which holds the run's id)."""
    return {name: tensor.tobytes() for name, tensor in tensors(folder).items()}


def assert_same(one: Path, other: Path) -> None:
    assert values(one) == values(other)
    here, there = program.columns(one / "run.h5"), program.columns(other / "run.h5")
    assert [name for name in here if here[name] != there[name]] == []


def assert_close(one: Path, other: Path) -> None:
    here, there = tensors(one), tensors(other)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-6, err_msg=name)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@needs_bridge
@program.needs_mpirun
def test_hetloras_weights_in_python_are_equal_to_the_bit(run):
    example = PYTHON_EXAMPLES / "hetlora_weights.py"
    assert len(example.read_text().splitlines()) < 40
    builtin = run("builtin")
    for mpi_ranks in (0, 2):
        own = run("own", {"plugin": example}, mpi_ranks)
        assert_same(own, builtin)
    with h5py.File(builtin / "run.h5") as file:
        assert np.ptp(file["participation/weight"][:]) > 0
    with h5py.File(own / "run.h5") as file, h5py.File(builtin / "run.h5") as plain:
        assert file.attrs["run_id"] != plain.attrs["run_id"]  # the plugin's content is part of the identity
        text = file["provenance"].attrs["plugin"]
        assert re.search(r"weight of .*hetlora_weights\.py \(sha256 [0-9a-f]{64}\)", str(text))


@needs_bridge
@program.needs_mpirun
def test_all_examples_give_the_same_bits_on_any_number_of_mpi_ranks(run, world):
    # One method of all the examples' functions.
    parts = [path.read_text() for path in sorted(PYTHON_EXAMPLES.glob("*.py"))]
    assert len(parts) == 4
    everything = write(world.folder / "everything.py", "\n".join(parts))
    strategy = ZEROPAD | {"plugin": everything}
    alone = run("everything", strategy)
    for mpi_ranks in (2, 3):
        several = run("everything", strategy, mpi_ranks)
        assert adapter(several) == adapter(alone)
        assert_same(several, alone)
    with h5py.File(alone / "run.h5") as file:
        contributors = file["slots/n_contributors"][:]
        assert contributors[2, 1] == 6 > contributors[2, 0]  # in round 2 the window begins at slot 1
        text = str(file["provenance"].attrs["plugin"])
    assert "select, weight, merge, penalty of" in text
    assert values(alone) != values(run("zeropad", ZEROPAD))


@needs_bridge
def test_a_penalty_in_python_is_the_proximal_term(run, world):
    example = (PYTHON_EXAMPLES / "proximal_penalty.py").read_text()
    strong = write(world.folder / "strong.py", example.replace("MU = 0.01", "MU = 1.0"))
    own = run("penalty", ZEROPAD | {"plugin": strong})
    assert_close(own, run("proximal", ZEROPAD | {"local_extra": "proximal", "prox_mu": 1.0}))
    with pytest.raises(AssertionError):
        assert_close(own, run("zeropad", ZEROPAD))


PLAIN = """
import torch
def select(context):
    return torch.arange(context.run.rank_max) < context.lora_rank.unsqueeze(1)
def merge(context):
    w = context.weight.view(-1, 1, 1)
    return [((w * a).sum(0), (w * b).sum(0)) for a, b in context.factors]
"""


@needs_bridge
def test_leading_slots_and_the_mean_in_python_are_zeropad(run, world):
    own = run("plain", ZEROPAD | {"plugin": write(world.folder / "plain.py", PLAIN)})
    assert_close(own, run("zeropad", ZEROPAD))


@pytest.fixture(scope="module")
def refused(world):
    """refused(plugin, code, *fragments): the run ends with the exit code and one message that has the fragments."""

    def start(plugin: Path, code: int, *fragments: str, mpi_ranks: int = 0, env: dict | None = None, exe=None) -> None:
        ini = program.write_ini(world.folder / "bad.ini", world.files, {"strategy": ZEROPAD | {"plugin": plugin}})
        words = ["run", "--config", ini, "--output", world.folder / f"bad-{plugin.parent.name}-{plugin.name}"]
        if exe is None:
            done = program.start(*words, mpi_ranks=mpi_ranks, env=env)
        else:
            done = subprocess.run([exe, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert len(program.messages(done.stderr)) == 1, done.stderr
        for fragment in (str(plugin), *fragments):
            assert fragment in done.stderr, done.stderr

    return start


@needs_bridge
@pytest.mark.parametrize(
    ("text", "code", "fragments"),
    [
        ("def weight(context:\n", INPUT, ("SyntaxError", "line 1")),
        ("import no_such_module\n", INPUT, ("ModuleNotFoundError", "no_such_module", "line 1")),
        ("weights = 1\n", INPUT, ("none of select, weight, merge and penalty",)),
        ("weight = 1\n", INPUT, ("weight is not a function",)),
        ("def weight(context):\n    return [1.0]\n", TRAINING, ("weight in round 1", "type list", "torch.Tensor")),
        ("def merge(context):\n    return 3\n", TRAINING, ("merge in round 1", "type int", "(A, B)")),
    ],
)
def test_a_wrong_python_file_is_refused(refused, tmp_path, text, code, fragments):
    refused(write(tmp_path / "wrong.py", text), code, *fragments)


@needs_bridge
@program.needs_mpirun
def test_an_error_in_python_ends_all_mpi_ranks_and_names_the_line(refused, tmp_path):
    text = "def inner(x):\n    return 1 / (x - x)\n\ndef penalty(context):\n    return inner(context.round)\n"
    plugin = write(tmp_path / "throws.py", text)
    refused(plugin, TRAINING, "penalty in round 1", "ZeroDivisionError", "function inner, line 2", mpi_ranks=2)


@needs_bridge
def test_a_gradient_that_is_not_finite_is_refused(refused, tmp_path):
    text = "def penalty(context):\n    return sum(b.square().sum(dim=(1, 2)).sqrt() for _, b in context.factors)\n"
    plugin = write(tmp_path / "root.py", text)  # B is 0 at the start: the root has no gradient there
    refused(plugin, TRAINING, "penalty in round 1", "gradient", "not finite")


def test_no_python_where_the_bridge_needs_it(refused, tmp_path):
    plugin = write(tmp_path / "fine.py", "def weight(context):\n    return context.n_samples\n")
    if BRIDGE.is_file():
        missing = program.environment(HETLORA_PYTHON="/nowhere/python")
        refused(
            plugin, ENVIRONMENT, "no Python where the bridge needs it", "/nowhere/python", "make setup", env=missing
        )
    alone = shutil.copy(program.PROGRAM, tmp_path / "hetlora")
    refused(
        plugin, ENVIRONMENT, "no Python where the bridge needs it", "python3-dev", env=program.environment(), exe=alone
    )


def test_what_is_no_plugin_is_refused(refused, tmp_path):
    refused(tmp_path / "missing.so", INPUT, "no such file")
    refused(write(tmp_path / "text.so", "not a library"), INPUT, "cannot be loaded")
    source = write(tmp_path / "other.c", "int f(void) { return 0; }\n")
    refused(shared_library(source), INPUT, "not a plugin of hetlora", "hetlora_plugin_abi")


@pytest.mark.parametrize(
    ("abi", "fragment"),
    [('{99, 2, 13, 1, "x"}', "plugin interface 99"), ('{1, 1, 0, 1, "x"}', "LibTorch 1.0")],
)
def test_a_plugin_for_another_version_is_refused(refused, tmp_path, abi, fragment):
    text = f"static struct {{ int v, major, minor, abi; const char* compiler; }} abi = {abi};\n"
    source = write(tmp_path / "old.c", text + "const void* hetlora_plugin_abi(void) { return &abi; }\n")
    refused(shared_library(source), INPUT, "built for another version", fragment)


def shared_library(source: Path) -> Path:
    library = source.with_suffix(".so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return library


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_a_cpp_plugin_builds_against_the_installed_headers_and_runs(run, tmp_path):
    def cmake(*words: object) -> None:
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    prefix, build = tmp_path / "prefix", tmp_path / "build"
    cmake("--install", BUILD, "--prefix", prefix)
    launcher = [f"-DCMAKE_CXX_COMPILER_LAUNCHER={ccache}"] if (ccache := shutil.which("ccache")) else []
    cmake("-S", EXAMPLES / "cpp-plugin", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", *launcher)
    cmake("--build", build)
    folder = run("cpp", ZEROPAD | {"plugin": build / "libloss_weights.so"})
    with h5py.File(folder / "run.h5") as file:
        events = {name: file[f"participation/{name}"][:] for name in ("round", "weight", "loss_last")}
    for round_ in (1, 2):
        here = events["round"] == round_
        loss = events["loss_last"][here]
        np.testing.assert_allclose(events["weight"][here], loss / loss.sum(), rtol=1e-12)
    environment = program.environment()
    version = subprocess.run(
        [prefix / "bin" / "hetlora", "--version"], env=environment, capture_output=True, check=False
    )
    assert version.returncode == 0, version.stderr
    assert os.path.isfile(prefix / "lib" / BRIDGE.name) == BRIDGE.is_file()
