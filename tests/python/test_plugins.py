"""Own methods: the examples, the bridge to Python, resume, and a C++ plugin built outside of the project."""

import os
import re
import shutil
import signal
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

USAGE = 2
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
def test_hetloras_weights_in_python_are_equal_to_the_bit(run):
    example = PYTHON_EXAMPLES / "hetlora_weights.py"
    assert len(example.read_text().splitlines()) < 40
    builtin = run("builtin")
    own = run("own", {"plugin": example})
    assert_same(own, builtin)
    with h5py.File(builtin / "run.h5") as file:
        assert np.ptp(file["participation/weight"][:]) > 0
    with h5py.File(own / "run.h5") as file, h5py.File(builtin / "run.h5") as plain:
        assert file.attrs["run_id"] != plain.attrs["run_id"]  # the plugin's content is part of the identity
        text = file["provenance"].attrs["plugin"]
        assert b"client_weight=plugin" in np.bytes_(file["provenance"].attrs["strategy_policies"])
        assert re.search(r"weight of .*hetlora_weights\.py \(sha256 [0-9a-f]{64}\)", str(text))


# Kills its process in a function of the second round, as long as the environment says so.
DEADLY = """
import os
import signal


def die(context, where):
    if context.round == 2 and os.environ.get("DIE_IN") == where:
        os.kill(os.getpid(), signal.SIGKILL)


own_weight = weight


def weight(context):
    die(context, "weight")
    return own_weight(context)
"""


@pytest.fixture(scope="module")
def everything(world):
    """One method of all the examples' functions."""
    parts = [path.read_text() for path in sorted(PYTHON_EXAMPLES.glob("*.py"))]
    assert len(parts) == 4
    return write(world.folder / "everything.py", "\n".join([*parts, DEADLY]))


@needs_bridge
@program.needs_mpirun
def test_all_examples_give_the_same_bits_on_any_number_of_mpi_ranks(run, everything):
    strategy = ZEROPAD | {"plugin": everything}
    alone, several = run("everything", strategy), run("everything", strategy, 3)
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


@needs_bridge
def test_a_penalty_of_a_client_does_not_depend_on_its_pack(run, world):
    """Root of a sum: its gradient would show a neighbour's share. Several packs, and one of all six clients."""
    text = """
def penalty(context):
    total = sum(a.square().sum(dim=(1, 2)) + b.square().sum(dim=(1, 2)) for a, b in context.factors)
    return 0.3 * total.sqrt() * context.lora_rank
"""
    strategy = ZEROPAD | {"plugin": write(world.folder / "root.py", text)}
    changes = {"experiment": {"rounds": 2}, "strategy": strategy, "compute": {"pack_tokens": 100_000}}
    ini = program.write_ini(world.folder / "one-pack.ini", world.files, changes)
    done = program.start("run", "--config", ini, "--output", world.folder / "one-pack")
    assert done.returncode == 0, done.stderr
    folders = [run("root", strategy), world.folder / "one-pack"]
    packs = []
    for folder in folders:
        with h5py.File(folder / "run.h5") as file:
            packs.append(len(set(file["participation/pack"][:6])))
    assert packs[0] > packs[1] == 1
    assert_close(*folders)


@needs_bridge
@program.needs_mpirun
def test_resume_after_a_kill_is_exact_and_another_content_is_refused(run, world, everything):
    whole = run("everything", ZEROPAD | {"plugin": everything})
    ini, folder = world.folder / "everything.ini", world.folder / "killed"
    killed = program.start("run", "--config", ini, "--output", folder, env=program.environment(DIE_IN="weight"))
    assert killed.returncode == -signal.SIGKILL
    with h5py.File(folder / "run.h5") as file:
        assert file.attrs["committed_rounds"] == 2  # round 0 and round 1

    content = everything.read_text()
    everything.write_text(content + "\n# changed\n")
    try:
        other = program.start("run", "--config", ini, "--output", folder, "--resume")
    finally:
        everything.write_text(content)
    assert other.returncode == USAGE, other.stderr
    assert "another run" in other.stderr and "plugin_sha256=" in other.stderr

    done = program.start("run", "--config", ini, "--output", folder, "--resume", mpi_ranks=2)
    assert done.returncode == 0, done.stderr
    assert "going on after round 1" in done.stdout + done.stderr
    assert_same(folder, whole)


@needs_bridge
def test_the_method_in_the_documentation_runs(run, world):
    text = (program.ROOT / "docs" / "plugins.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL).group(1)
    assert len(block.splitlines()) <= 40
    own = run("documented", ZEROPAD | {"plugin": write(world.folder / "robust.py", block)})
    assert values(own) != values(run("zeropad", ZEROPAD))
    with h5py.File(own / "run.h5") as file:
        assert np.isfinite(file["rounds/eval_loss"][:]).all()


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


@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd is not installed")
def test_the_program_itself_needs_no_python():
    libraries = subprocess.run(["ldd", program.PROGRAM], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in libraries
    assert "python" not in "".join(line.split("=>")[0] for line in libraries.splitlines())
    if BRIDGE.is_file():
        bridge = subprocess.run(["ldd", BRIDGE], capture_output=True, text=True, check=True).stdout
        assert "libpython" in bridge


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
    # A C++ plugin does not bring Python in: the program alone, without bridge and without a Python, gives the same.
    lonely = shutil.copy(program.PROGRAM, tmp_path / "hetlora")
    done = subprocess.run(
        [lonely, "run", "--config", folder / "config.ini", "--output", tmp_path / "lonely"], capture_output=True,
        text=True, timeout=60, check=False, env=program.environment(HETLORA_PYTHON="/nowhere/python"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "lonely") == values(folder)
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
