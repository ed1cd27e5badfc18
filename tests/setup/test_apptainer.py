"""jobs/hetlora.def: the steps of its recipe exist, and with HETLORA_TEST_LONG=1 Apptainer builds the container."""

import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "jobs" / "hetlora.def"
if shutil.which("apptainer") is None:
    warnings.warn("SKIPPED: the container was not built, apptainer is not installed", stacklevel=1)


def section(name: str) -> str:
    """The lines of one section of the recipe."""
    return re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", RECIPE.read_text(), flags=re.DOTALL | re.MULTILINE).group(1)


def test_recipe_calls_targets_and_verbs_that_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    called = re.findall(r"^ *make ([a-z-]+)", section("post"), flags=re.MULTILINE)
    assert called == ["setup", "build"]
    assert set(called) <= set(targets)
    assert "/opt/hetlora/build/hetlora" in section("runscript")


@pytest.mark.skipif(shutil.which("apptainer") is None, reason="apptainer is not installed")
@pytest.mark.skipif(os.environ.get("HETLORA_TEST_LONG") != "1", reason="needs a network: HETLORA_TEST_LONG=1")
def test_container_is_built_and_starts(tmp_path):
    clone = tmp_path / "hetlora"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    subprocess.run(["git", "bundle", "create", "jobs/hetlora.bundle", "HEAD"], cwd=clone, check=True)
    image = tmp_path / "hetlora.sif"
    subprocess.run(["apptainer", "build", image, "jobs/hetlora.def"], cwd=clone, check=True)
    told = subprocess.run(["apptainer", "run", image, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith("hetlora ")
