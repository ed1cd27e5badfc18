"""`hetlora watch`: what it reads from the folders of runs, whole, running, silent and broken."""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time

import pytest
from hetlora.__main__ import main
from hetlora.watch import Tail, Watched, duration, spark
from synthetic_runs import Made, write_run, write_sweep


def watched(folder) -> Watched:
    run = Watched(folder.name, folder, Tail(folder / "progress.jsonl"))
    run.look()
    return run


def set_status(folder, **changes) -> None:
    file = folder / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_finished_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", Made(rounds=3, curve=lambda t: 100.0 - t))
    seen = watched(run)
    assert (seen.state, seen.rounds, seen.wanted, seen.perplexity, seen.left) == ("done", 3, 3, "97.000", "-")
    assert seen.rate == "0.5 s"
    assert main(["watch", str(run)]) == 0  # not a terminal: printed once
    text = capsys.readouterr().out
    assert "1 done" in text and "3/3" in text and "97.000" in text
    assert "\x1b" not in text


def test_a_sweep_counts_states_and_puts_trouble_first(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "sweep", [Made(settings={"experiment.seed": seed}) for seed in (0, 1, 2)])
    runs = sorted(one for one in sweep.iterdir() if one.is_dir())
    (runs[2] / "COMPLETE").unlink()
    set_status(runs[2], state="failed", message="round 2: the loss is nan", round=1)
    assert main(["watch", str(sweep), "--once"]) == 0
    text = capsys.readouterr().out
    assert "1 failed, 2 done" in text
    assert text.index("failed", text.index("note")) < text.index("done", text.index("note"))


def test_a_running_run_says_its_time_left_and_a_silent_one_that_it_is_silent(tmp_path):
    run = write_run(tmp_path / "run", Made(rounds=3))
    (run / "COMPLETE").unlink()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    set_status(run, host=socket.gethostname(), state="running", round=3, rounds=9, seconds_left=120.0, updated_utc=now)
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seen = watched(run)
        assert (seen.state, seen.rounds, seen.wanted, seen.left, seen.note) == ("running", 3, 9, "2 min", "")
        long_ago = time.time() - 600
        os.utime(run / ".lock", (long_ago, long_ago))
        set_status(run, updated_utc="2020-01-01T00:00:00Z")
        assert watched(run).note == "no sign of life for 10 min"


def test_only_new_lines_are_read_and_a_cut_file_is_read_anew(tmp_path):
    file = tmp_path / "progress.jsonl"
    tail = Tail(file)
    tail.look()
    assert tail.losses == []
    file.write_text('{"eval_loss": 4.0, "t_round_s": 1.0}\n{"eval_loss": null, "train_loss": 3.0}\n{"eval_lo')
    tail.look()
    assert tail.losses == [4.0, 3.0]
    with open(file, "a") as more:
        more.write('ss": null, "train_loss": null}\n')
    tail.look()
    assert tail.losses[:2] == [4.0, 3.0] and math.isnan(tail.losses[2])
    file.write_text('{"eval_loss": 5.0}\n')
    tail.look()
    assert tail.losses == [5.0]


def labels(**more) -> Made:
    columns = {"eval_accuracy": [0.5, 0.625, 0.75], "eval_loss": [0.7, 0.6, 0.5125]}
    return Made(rounds=2, columns=columns, settings={"model.task": "classification"} | more)


def test_runs_of_labels_show_accuracy_and_loss(tmp_path, capsys):
    run = write_run(tmp_path / "run", labels())
    seen = watched(run)
    assert (seen.accuracy, seen.loss) == ("0.7500", "0.5125")
    assert main(["watch", str(run)]) == 0
    text = capsys.readouterr().out
    assert "accuracy" in text and "0.7500" in text and "0.5125" in text and "perplexity" not in text
    with open(run / "progress.jsonl", "a") as more:  # rounds without an evaluation leave it as it is
        more.write('{"eval_loss": null, "eval_accuracy": null, "train_loss": 0.4}\n')
    seen = watched(run)
    assert (seen.accuracy, seen.loss) == ("0.7500", "0.4000")


def test_runs_of_both_kinds_have_the_columns_of_both(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    write_run(tmp_path / "all" / "words", Made(rounds=3, curve=lambda t: 100.0 - t))
    write_run(tmp_path / "all" / "labels", labels())
    assert main(["watch", str(tmp_path / "all")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[1] for name in ("perplexity", "accuracy", "loss"))
    words, of_labels = (next(line for line in lines if line.startswith(name)) for name in ("words", "labels"))
    assert "97.000" in words and "0.7500" not in words
    assert "0.7500" in of_labels and "0.5125" in of_labels


def test_damaged_folders_are_shown_not_hidden(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "status.json").write_text("{")
    assert main(["watch", str(run), "--once"]) == 0
    assert "run" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "nowhere"), "--once"]) == 3
    assert "no such folder" in capsys.readouterr().err


def test_bars_and_durations():
    assert spark([4.0, 3.0, 2.0], plain=False) == "█▅▁"
    assert spark([1.0], plain=True) == ""
    assert len(spark([float(i) for i in range(1000)], plain=True)) <= 20
    assert [duration(s) for s in (47, 720, 12240, 180000)] == ["47 s", "12 min", "3.4 h", "2.1 d"]


@pytest.mark.parametrize("width", [60, 120])
def test_narrow_terminals_keep_every_run(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    sweep = write_sweep(tmp_path / "sweep", [Made(settings={"experiment.seed": seed}) for seed in (0, 1)])
    assert main(["watch", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines)
    assert sum("3/3" in line for line in lines) == 2
