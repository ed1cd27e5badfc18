"""The examples of docs/analysis.md run, on small sweeps of the same names."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import micro
import program
import pytest
from hetlora.__main__ import main
from sweeps import Sweep
from synthetic_runs import Made, write_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "analysis.md").read_text()
PRESETS = ("hetlora", "zeropad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with results/methods (by the program where it is built) and results/rates (made up)."""
    folder = tmp_path_factory.mktemp("page")
    results = folder / "results"
    results.mkdir()
    if program.PROGRAM.is_file():
        sweep = Sweep(
            folder / "sweep", micro.build(folder), "strategy.preset = hetlora, zeropad\nexperiment.seed = 0..1"
        )
        sweep.run()
        sweep.output.rename(results / "methods")
    else:
        runs = [Made(settings={"strategy.preset": p, "experiment.seed": s}) for p in PRESETS for s in (0, 1)]
        write_sweep(results / "methods", runs)
    axes = [(p, r, part, s) for p in PRESETS for r in (1e-3, 3e-3) for part in ("valid", "test") for s in (0, 1)]
    keys = ("strategy.preset", "local.learning_rate", "evaluation.part", "experiment.seed")
    rates = [Made(settings=dict(zip(keys, one, strict=True)), described=False) for one in axes]
    write_sweep(results / "rates", rates)
    return folder


def test_python_examples(folder, monkeypatch):
    monkeypatch.chdir(folder)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    shared: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for example in examples:
            exec(compile(example, "docs/analysis.md", "exec"), shared)
    assert len(examples) == 5 and "4 of 4 runs are done" in said.getvalue()


def test_command_examples(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.replace("\\\n", " "), re.S)
    commands = [
        shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("hetlora compare")
    ]
    assert len(commands) == 2
    for words in commands:
        code = main(words[1:])
        said = capsys.readouterr()
        assert code == 0 and "zeropad" in said.out, said.err
        assert not said.err


def test_the_output_on_the_page_is_that_of_today(folder, monkeypatch, capsys):
    """Sentences and headings; the numbers are those of a larger sweep."""
    monkeypatch.chdir(folder)
    main(shlex.split(re.search(r"^hetlora compare results/methods.*$", PAGE, re.M)[0])[1:])
    today = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = PAGE.split("hetlora compare results/methods", 1)[1].split("```")[2]
    for line in shown.splitlines():
        if line.startswith(("method  seeds", "  device-seconds", "  to the target", "  intervals")):
            assert line.split() in today, line
    assert "intervals" in shown
