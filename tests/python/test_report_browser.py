"""The report's page in a real browser: no console messages, marks in every chart, two widths, light and dark."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hetlora.__main__ import main
from synthetic_runs import Made, write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
MARK = re.compile(r'class="mark-(?:line|rect|symbol|area|rule|group)[^"]*role-mark[^"]*"[^>]*>\s*<path')


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    made = [
        Made(rounds=4, curve=lambda t, seed=seed: 100.0 - t - seed,
             settings={"strategy.preset": preset, "experiment.seed": seed},
             columns={"slots_alive": [4, 4, 3, 3, 2]})
        for preset in ("hetlora", "rbla") for seed in (0, 1)
    ]  # fmt: skip
    sweep = write_sweep(folder / "sweep", made)
    assert main(["report", str(sweep), "--output", str(folder / "page.html")]) == 0
    return folder / "page.html"


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """(standard output, console messages) of a headless browser on the page."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--hide-scrollbars",
         "--virtual-time-budget=10000", "--enable-logging=stderr", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_every_chart_has_marks_and_the_console_is_silent(page, tmp_path):
    document, console = browse(page, tmp_path, "--dump-dom", "--window-size=1280,2000")
    assert console == []
    charts = document.split("<script>")[0].split('data-figure="')[1:]
    assert len(charts) >= 11
    for chart in charts:
        name = chart.split('"')[0]
        assert "could not be drawn" not in chart, name
        assert MARK.search(chart), f"{name} has no marks"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn_at_two_widths_in_light_and_dark(page, tmp_path, width, dark):
    shot = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _, console = browse(page, tmp_path / "p", f"--screenshot={shot}", f"--window-size={width},1600", *scheme)
    assert console == []
    assert shot.stat().st_size > 20_000  # an empty page compresses to a few kilobytes
