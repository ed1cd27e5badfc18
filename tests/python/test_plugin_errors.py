"""Own methods that cannot be used: one clear message that names the plugin, the exit code on every MPI rank, and
nothing half-written."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402
from test_plugins import BRIDGE, ZEROPAD, needs_bridge, write  # noqa: E402

pytestmark = program.needs_program

USAGE, INPUT, ENVIRONMENT, TRAINING = 2, 3, 4, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin-errors")
    return SimpleNamespace(folder=folder, files=micro.build(folder))


def assert_nothing_half_written(output: Path, code: int, committed: int) -> None:
    """Refused before the run: no folder. Failed in a round: known as failed, its log readable up to there."""
    if code != TRAINING:
        assert not output.exists()
        return
    assert json.loads((output / "status.json").read_text())["state"] == "failed"
    assert not (output / "COMPLETE").exists()
    assert not (output / "adapter").exists()
    with h5py.File(output / "run.h5") as file:
        assert file.attrs["committed_rounds"] == committed


@dataclass(frozen=True)
class How:
    """How a run that ends badly is started."""

    mpi_ranks: int = 0
    environment: dict = field(default_factory=dict)
    program: Path = program.PROGRAM
    strategy: dict = field(default_factory=dict)
    committed: int = 1  #: rows of the log; row 0 is the state before training


@pytest.fixture(scope="module")
def refused(world):
    """refused(plugin, code, *fragments): the run ends with the exit code and one message that has the fragments."""

    def start(plugin: Path, code: int, *fragments: str, how: How = How()) -> None:
        ini = program.write_ini(
            world.folder / "bad.ini", world.files, {"strategy": ZEROPAD | {"plugin": plugin} | how.strategy}
        )
        output = plugin.parent / "run"
        shutil.rmtree(output, ignore_errors=True)
        command = [*(program.mpirun(how.mpi_ranks) if how.mpi_ranks else []), how.program, "run", "--config", ini]
        done = subprocess.run(
            [*command, "--output", output], env=program.environment(**how.environment), capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert len(program.messages(done.stderr)) == 1, done.stderr
        for alien in ("Traceback", "terminate called", "Exception raised from", "c10::"):
            assert alien not in done.stderr
        for fragment in (str(plugin), *fragments):
            assert fragment in done.stderr, done.stderr
        assert_nothing_half_written(output, code, how.committed)

    return start


@needs_bridge
@pytest.mark.parametrize(
    ("text", "code", "fragments"),
    [
        ("def weight(context:\n", INPUT, ("SyntaxError", "line 1")),
        ("weights = 1\n", INPUT, ("none of select, weight, merge and penalty",)),
        ("def weight(context):\n    return [1.0]\n", TRAINING, ("weight in round 1", "type list", "torch.Tensor")),
        ("def merge(context):\n    return 3\n", TRAINING, ("merge in round 1", "type int", "(A, B)")),
        ("def weight(context):\n    return context.n_samples[1:]\n", TRAINING, ("weight", "shape [5] instead of [6]")),
        ("def weight(context):\n    return context.n_samples / 0 * 0\n", TRAINING, ("weight in round 1", "NaN")),
        ("def select(context):\n    import sys\n    sys.exit(0)\n", TRAINING, ("select in round 1", "SystemExit")),
    ],
)
def test_a_wrong_python_file_is_refused(refused, tmp_path, text, code, fragments):
    refused(write(tmp_path / "wrong.py", text), code, *fragments)


@needs_bridge
@program.needs_mpirun
def test_an_error_in_python_ends_all_mpi_ranks_and_names_the_line(refused, tmp_path):
    text = """
import os
def inner(x):
    return 1 / (x - x)
def penalty(context):
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        inner(context.round)
    return sum(a.square().sum(dim=(1, 2)) for a, _ in context.factors)
"""
    plugin = write(tmp_path / "throws.py", text)
    refused(plugin, TRAINING, "penalty in round 1", "ZeroDivisionError", "function inner, line 4", how=How(mpi_ranks=3))


@needs_bridge
@program.needs_mpirun
def test_an_error_on_root_in_a_later_round_keeps_the_rounds_before(refused, tmp_path):
    text = "def weight(context):\n    assert context.round < 2, 'enough'\n    return context.n_samples\n"
    how = How(mpi_ranks=2, committed=2)
    refused(write(tmp_path / "later.py", text), TRAINING, "weight in round 2", "AssertionError: enough", how=how)


@needs_bridge
def test_an_error_in_a_backward_of_its_own_names_the_plugin(refused, tmp_path):
    text = """
import torch
class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum(dim=(1, 2))
    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no way back")
def penalty(context):
    return Broken.apply(context.factors[0][0])
"""
    refused(write(tmp_path / "broken.py", text), TRAINING, "penalty in round 1: its gradient", "no way back")


@needs_bridge
@pytest.mark.parametrize(
    ("part", "strategy", "fragments"),
    [
        ("weight", {"client_weight": "uniform"}, ("its weight takes the place of strategy.client_weight",)),
        ("merge", {"preset": "flora"}, ("its merge cannot go with preset flora", "frozen base")),
    ],
)
def test_a_plugin_beside_policies_that_say_otherwise_is_refused(refused, tmp_path, part, strategy, fragments):
    plugin = write(tmp_path / "own.py", f"def {part}(context):\n    return None\n")
    refused(plugin, USAGE, *fragments, how=How(strategy=strategy))


@needs_bridge
def test_a_gradient_that_is_not_finite_is_refused(refused, tmp_path):
    text = "def penalty(context):\n    return sum(b.square().sum(dim=(1, 2)).sqrt() for _, b in context.factors)\n"
    plugin = write(tmp_path / "root.py", text)  # B is 0 at the start: the root has no gradient there
    refused(plugin, TRAINING, "penalty in round 1", "gradient", "not finite")


def test_no_python_where_the_bridge_needs_it(refused, tmp_path):
    plugin = write(tmp_path / "fine.py", "def weight(context):\n    return context.n_samples\n")
    if BRIDGE.is_file():
        missing = How(environment={"HETLORA_PYTHON": "/nowhere/python"})
        refused(
            plugin, ENVIRONMENT, "no Python where the bridge needs it", "/nowhere/python", "make setup", how=missing
        )
    alone = How(program=shutil.copy(program.PROGRAM, tmp_path / "hetlora"))
    refused(plugin, ENVIRONMENT, "no Python where the bridge needs it", "python3-dev", how=alone)


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
