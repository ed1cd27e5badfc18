"""Runs tests/setup/no_root_test.sh (scripts/setup* in a made-up machine) and shows its output on failure."""

import subprocess
from pathlib import Path


def test_setup_without_root_and_without_network():
    script = Path(__file__).with_name("no_root_test.sh")

    result = subprocess.run(["bash", script], capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stdout + result.stderr
