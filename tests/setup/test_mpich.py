"""Another MPI library: everything that sees mpi.h is built with Debian's MPICH, and its tests run on 1 to 4 MPI ranks.

With HETLORA_TEST_LONG=1 the whole program is built with it too, and its runs compared with Open MPI's, bit for bit.
"""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build-mpich"
TESTS = ["comm_transport", "comm_agree", "comm_launch_check", "fed_exchange"]
LONG = os.environ.get("HETLORA_TEST_LONG") == "1"

if shutil.which("mpicc.mpich") is None:
    warnings.warn("SKIPPED: no build with MPICH, mpicc.mpich is not installed (libmpich-dev, mpich)", stacklevel=1)
pytestmark = pytest.mark.skipif(shutil.which("mpicc.mpich") is None, reason="mpicc.mpich is not installed")


def run(*command: object, **options) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def linked_libraries(program: Path) -> str:
    return run("ldd", program)


@pytest.fixture(scope="module")
def configured():
    """build-mpich, configured with the LibTorch and the warnings of build/: the same flags, so that ccache helps."""
    lines = (ROOT / "build" / "CMakeCache.txt").read_text().splitlines()
    same = [f"-D{line}" for line in lines if line.startswith(("TORCH_DIR:", "HETLORA_WERROR:"))]
    run(
        "cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *same,
        "-DMPI_C_COMPILER=mpicc.mpich", f"-DMPIEXEC_EXECUTABLE={shutil.which('mpiexec.mpich')}",
    )  # fmt: skip
    return BUILD


def test_collectives_and_exchange(configured):
    run("cmake", "--build", configured, "-j", "2", "--target", *TESTS)
    assert "libmpich" in linked_libraries(configured / "tests" / "comm_transport")
    assert "openmpi" not in linked_libraries(configured / "tests" / "comm_transport")
    pattern = f"^({'|'.join(TESTS)})"
    told = run("ctest", "--test-dir", configured, "-R", pattern, "--no-tests=error", "--output-on-failure")
    assert "fed_exchange.mpi3" in told


@pytest.mark.skipif(not LONG, reason="builds the whole program: HETLORA_TEST_LONG=1")
def test_the_program_gives_the_same_bits(configured, tmp_path):
    run("cmake", "--build", configured, "-j", "2", "--target", "hetlora")
    assert "libmpich" in linked_libraries(configured / "hetlora")
    launchers = tmp_path / "bin"
    launchers.mkdir()
    # Not a link: Hydra looks for its helper programs beside the name it was started by.
    (launchers / "mpirun").write_text(f'#!/bin/sh\nexec {shutil.which("mpirun.mpich")} "$@"\n')
    (launchers / "mpirun").chmod(0o755)
    changes = {"HETLORA_PROGRAM": str(configured / "hetlora"), "PATH": f"{launchers}:{os.environ['PATH']}"}
    told = run(
        sys.executable, "-m", "pytest", "-q", "tests/python/test_run_ranks.py", "tests/python/test_bad_input_mpi.py",
        cwd=ROOT, env=os.environ | changes,
    )  # fmt: skip
    assert " passed" in told
