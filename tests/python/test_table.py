"""`python -m hetlora`: the table of runs, verbs, hand-over to the program, and exit codes."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from prepare_fixtures import run


def write_run(folder, perplexity, committed=None, alive=(32.0, 30.0, 28.0), config=None):
    folder.mkdir()
    n = len(perplexity)
    with h5py.File(folder / "run.h5", "w") as file:
        file.attrs["schema_name"] = np.bytes_("hetlora-run")
        file.attrs["committed_rounds"] = n if committed is None else committed
        columns = {
            "eval_perplexity": perplexity,
            "bytes_up_true": [0.0] + [1.5e6] * (n - 1),
            "t_round_s": [0.5] * n,
            "slots_alive": list(alive)[:n],
        }
        for name, values in columns.items():
            file[f"rounds/{name}"] = np.array(values, dtype="f8")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


NESTED = {"strategy": {"preset": "hetlora"}, "lora": {"rank_distribution": "powerlaw", "rank_min": 2, "rank_max": 32}}
FLAT = {"strategy.preset": "fedavg", "lora.rank_distribution": "fixed", "lora.rank_max": 8}


def test_one_line_per_run(capsys, tmp_path):
    first = write_run(tmp_path / "first", [43.8, 30.0, 25.25], config=NESTED)
    second = write_run(tmp_path / "second", [43.8, float("nan"), float("nan")], config=FLAT)
    code, text, err = run(capsys, "table", first, second)
    assert code == 0, err
    lines = [line.split() for line in text.splitlines()]
    assert lines[2] == ["first", "hetlora", "powerlaw", "2-32", "2", "43.80", "25.25", "3.00", "28", "1.5"]
    assert lines[3] == ["second", "fedavg", "fixed", "8", "2", "43.80", "43.80", "3.00", "28", "1.5"]


def test_rows_of_an_interrupted_round_do_not_count(capsys, tmp_path):
    _, text, _ = run(capsys, "table", write_run(tmp_path / "r", [40.0, 30.0, 9.0], committed=2, config=NESTED))
    assert "30.00" in text and "9.00" not in text and "1.50" in text


def test_a_run_without_config_or_rounds_is_shown_with_gaps(capsys, tmp_path):
    code, text, _ = run(capsys, "table", write_run(tmp_path / "r", [40.0]))
    assert code == 0 and text.splitlines()[2].split()[:6] == ["r", "?", "?", "0", "40.00", "-"]


def test_what_is_no_run_is_refused(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "run.h5").write_text("hello")
    (tmp_path / "other").mkdir()
    h5py.File(tmp_path / "other" / "run.h5", "w").close()
    cases = {
        "none": "no such folder",
        "empty": "has no run.h5",
        "text": "cannot be read as HDF5",
        "other": "not a run log",
    }
    for name, message in cases.items():
        code, _, err = run(capsys, "table", tmp_path / name)
        assert code == 3 and message in err and err.count("\n") == 1


def test_help_version_and_unknown_verbs(capsys, tmp_path, monkeypatch):
    assert run(capsys, "--help")[0] == 0 and run(capsys)[0] == 2
    assert "0.1.0" in run(capsys, "--version")[1]
    for verb in ("prepare", "convert", "table"):
        code, text, _ = run(capsys, verb, "--help")
        assert code == 0 and f"hetlora {verb}" in text
        assert run(capsys, verb)[0] == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HETLORA_PROGRAM", raising=False)
    code, _, err = run(capsys, "fly")
    assert code == 2 and "unknown verb 'fly'" in err and "HETLORA_PROGRAM" in err


def hetlora(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hetlora", *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_other_verbs_are_handed_to_the_program(tmp_path):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "program got $*"\nexit 5\n')
    program.chmod(0o755)
    found = hetlora("run", "--config", "x.ini", HETLORA_PROGRAM=str(program))
    assert found.returncode == 5 and found.stdout == "program got run --config x.ini\n"
    found = hetlora("run", HETLORA_PROGRAM=str(tmp_path / "none"))
    assert found.returncode == 4 and "cannot start" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("module", ["torch", "transformers", "h5py", "xarray", "tokenizers", "numpy"])
def test_help_imports_nothing_heavy(module):
    code = f"import sys, hetlora.__main__ as m; m.main(['--help']); sys.exit('{module}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_output_into_a_closed_pipe_is_no_error(tmp_path):
    folder = write_run(tmp_path / "r", [40.0, 30.0], config=NESTED)
    command = f"{sys.executable} -m hetlora table {' '.join([str(folder)] * 500)} | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in found.stderr
