"""`pip install ./analysis` in a fresh environment gives a `hetlora` command that works without the program."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from synthetic_runs import Made, write_sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """The command of a fresh environment; its dependencies are those of this one, so that no network is needed."""
    folder = tmp_path_factory.mktemp("fresh")
    source = shutil.copytree(ROOT / "analysis", folder / "analysis", ignore=shutil.ignore_patterns("*.egg-info"))
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    # A path in a .pth file: packages are found there, but its own .pth files (an installation for editing) are not.
    (Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation",
         "--ignore-installed", source],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "venv" / "bin" / "hetlora"


def call(command: Path, *words: object, cwd: Path):
    bare = {"PATH": f"{command.parent}:/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8")}
    return subprocess.run([command, *map(str, words)], capture_output=True, text=True, env=bare, cwd=cwd, check=False)


def test_the_command_works_without_the_program(command, tmp_path):
    where = subprocess.run(
        [command.parent / "python", "-c", "import hetlora; print(hetlora.__file__, hetlora.open_runs.__name__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert where.stdout.startswith(str(command.parents[1])) and where.stdout.endswith("open_runs\n")
    presets = ("hetlora", "zeropad")
    write_sweep(
        tmp_path / "s", [Made(settings={"strategy.preset": p, "experiment.seed": s}) for p in presets for s in (1, 2)]
    )
    for words in (["table", *(tmp_path / "s").iterdir()], ["compare", tmp_path / "s"]):
        done = call(command, *words, cwd=tmp_path)
        assert done.returncode == 0 and "zeropad" in done.stdout, done.stderr
    done = call(command, "run", "--config", "x.ini", cwd=tmp_path)
    assert done.returncode == 2 and "the hetlora program" in done.stderr and "HETLORA_PROGRAM" in done.stderr
