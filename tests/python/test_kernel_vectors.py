"""Every kernel loop that asks for vectors gets them: a scalar loop is right, five times slower, and silent."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted((ROOT / "src" / "tensor").glob("kernels*.inc"))
COMMANDS = ROOT / "build" / "compile_commands.json"


def command() -> tuple[list[str], str]:
    """How kernels_avx2.cpp is compiled, and where."""
    for entry in json.loads(COMMANDS.read_text()) if COMMANDS.is_file() else []:
        if entry["file"].endswith("kernels_avx2.cpp"):
            words = shlex.split(entry["command"])
            start = next(i for i, word in enumerate(words) if re.search(r"(g\+\+|c\+\+|clang\+\+)[-\d.]*$", word))
            return words[start:], entry["directory"]
    pytest.skip("NOT TESTED: no build for x86 here (make build)")


def test_every_simd_loop_is_vectorised():
    words, folder = command()
    if "Free Software Foundation" not in subprocess.run([words[0], "--version"], capture_output=True, text=True).stdout:
        pytest.skip("NOT TESTED: GCC's report on vectors is needed")
    words = words[: words.index("-o")] + ["-o", "/dev/null"] + words[words.index("-o") + 2 :]
    done = subprocess.run([*words, "-fopt-info-vec-optimized"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(kernels\w*\.inc):(\d+):\d+: optimized:.*loop vectorized", done.stderr)
    vectorised = {(name, int(n)) for name, n in found}
    scalar, n_loops = [], 0
    for path in KERNELS:
        lines = path.read_text().splitlines()
        for n, line in enumerate(lines, start=1):
            if not line.lstrip().startswith("#pragma omp simd"):
                continue
            n_loops += 1
            if not vectorised & {(path.name, n), (path.name, n + 1), (path.name, n + 2)}:
                scalar.append(f"{path.name}:{n}: {lines[n].strip()}")
    assert n_loops > 10
    assert not scalar, f"loops that the compiler left scalar: {scalar}"
