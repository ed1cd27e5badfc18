"""`hetlora report`: what the page says of runs, finished and broken, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hetlora.__main__ import main
from hetlora.report import rows
from hetlora.report.rows import methods_of
from hetlora.run_record import GROUPS, read_run
from hetlora.runs_settings import read_runs
from synthetic_runs import Made, write_run, write_sweep

MOST_BYTES = 5_000_000
CHARTS_OF_ONE_RUN = {"perplexity", "train-loss", "perplexity-by-bytes", "slots-alive", "effective-rank", "weights",
                     "fairness", "time", "slot-energy", "lora-ranks"}  # fmt: skip


def page_of(tmp_path: Path, *runs: Path, title: str | None = None) -> str:
    out = tmp_path / "page.html"
    arguments = ["report", *map(str, runs), "--output", str(out)] + (["--title", title] if title else [])
    assert main(arguments) == 0
    return out.read_text(encoding="utf-8")


def specs_in(page: str) -> dict[str, list[dict]]:
    line = re.search(r"^const SPECS = (.*);$", page, re.MULTILINE).group(1)
    return json.loads(line.replace("<\\/", "</"))


def text_in(page: str) -> str:
    """The visible part: without scripts and tags."""
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", " ", body)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    made = [
        Made(rounds=4, curve=lambda t, base=base, seed=seed: base - t - seed,
             settings={"strategy.preset": preset, "experiment.seed": seed})
        for preset, base in (("hetlora", 100.0), ("rbla", 90.0)) for seed in (0, 1)
    ]  # fmt: skip
    return write_sweep(tmp_path_factory.mktemp("report") / "sweep", made)


def test_further_metrics_have_a_chart_each(tmp_path):
    run = write_run(tmp_path / "run", Made(rounds=3, extra_metrics=("macro_f1", "rougeL", "test_rougeL")))
    specs = specs_in(page_of(tmp_path, run))["tasks"]
    assert [spec["title"] for spec in specs] == ["macro F1", "ROUGE-L"]
    logged = read_run(run).rounds["eval_rougeL"]
    assert {row["round"]: row["mean"] for row in specs[1]["data"]["values"]} == {
        i: pytest.approx(value, rel=1e-4) for i, value in enumerate(logged)
    }


def test_one_run_has_all_charts_and_its_numbers(tmp_path):
    run = write_run(tmp_path / "run", Made(rounds=3))
    page = page_of(tmp_path, run)
    specs = specs_in(page)
    assert set(specs) == CHARTS_OF_ONE_RUN
    drawn = {row["round"]: row["mean"] for row in specs["perplexity"][0]["data"]["values"]}
    logged = read_run(run).rounds["eval_perplexity"]
    assert drawn == {i: pytest.approx(value, rel=1e-4) for i, value in enumerate(logged)}
    assert "One seed: no interval" in page
    assert "97.000" in text_in(page)  # perplexity after round 3, in the table


def test_the_page_is_small_and_loads_nothing(tmp_path, sweep):
    page = page_of(tmp_path, sweep)
    assert len(page.encode()) < MOST_BYTES
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", outside)


def test_a_sweep_is_drawn_by_method_with_intervals(tmp_path, sweep):
    page = page_of(tmp_path, sweep)
    values = specs_in(page)["perplexity"][0]["data"]["values"]
    assert {row["method"] for row in values} == {"hetlora", "rbla"}
    last = next(row for row in values if row["method"] == "hetlora" and row["round"] == 4)
    assert last["seeds"] == 2 and last["mean"] == pytest.approx(95.5)
    assert last["low"] < 95.5 < last["high"]
    # Two seeds, 96 and 95: mean +- 12.706 s / sqrt(2) with s = 0.7071
    assert last["high"] == pytest.approx(95.5 + 6.353, rel=1e-3)
    assert "4 runs of 2 methods, 4 rounds." in text_in(page)


def test_unfinished_damaged_and_empty_runs_are_marked_and_the_rest_is_shown(tmp_path, sweep):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep, folder)
    runs = sorted(one for one in folder.iterdir() if one.is_dir())
    (runs[0] / "run.h5").write_bytes((runs[0] / "run.h5").read_bytes()[:700])
    (runs[1] / "COMPLETE").unlink()
    status = json.loads((runs[1] / "status.json").read_text())
    (runs[1] / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    (runs[2] / "run.h5").write_bytes(b"")
    (runs[2] / "progress.jsonl").unlink()
    text = text_in(page_of(tmp_path, folder))
    assert "run.h5" in text and "progress.jsonl" in text  # the first one, read from its second copy
    assert "stopped (can go on)" in text
    assert "damaged" in text
    assert "4 runs" in text


def test_all_nan_and_different_lengths_are_said(tmp_path):
    nan = float("nan")
    never = write_run(tmp_path / "never", Made(rounds=2, columns={"eval_perplexity": [nan] * 3},
                                               settings={"strategy.preset": "rbla"}))  # fmt: skip
    longer = write_run(tmp_path / "longer", Made(rounds=5))
    text = text_in(page_of(tmp_path, never, longer))
    assert "never: perplexity was never measured" in text
    assert "different numbers of rounds" in text


def test_dead_slots_are_told_in_a_sentence(tmp_path):
    run = write_run(tmp_path / "run", Made(rounds=2, columns={"slots_alive": [4, 3, 1]}))
    assert "3 of 4 slots died" in text_in(page_of(tmp_path, run))


def test_names_cannot_become_markup(tmp_path):
    evil = "</script><b onload=alert(1)>"
    run = write_run(tmp_path / "run", Made(settings={"experiment.name": evil, "strategy.preset": evil}))
    page = page_of(tmp_path, run, title=evil)
    assert "<b onload" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "</script><b" not in page
    assert specs_in(page)["time"][0]["data"]["values"][0]["method"] == evil


def test_replies_of_methods_stand_under_their_conversation(tmp_path):
    folders = []
    for preset, base, tuned in (("hetlora", "hm", "yes, <b>two</b>"), ("flora", None, "no")):
        run = write_run(tmp_path / preset, Made(settings={"strategy.preset": preset}))
        sample = {"prompt": "do you have a dog?", "real": "two of them", "base": base, "tuned": tuned}
        (run / "samples.jsonl").write_text(json.dumps(sample) + "\n" + '{"prompt": "cut sho', encoding="utf-8")
        folders.append(run)
    page = page_of(tmp_path, *folders)
    assert page.count("do you have a dog?") == 1
    replies = re.search(r'<dl class="replies">.*?</dl>', page, re.DOTALL).group(0)
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", replies) == [
        ("the person", "two of them"), ("base", "hm"), ("hetlora", "yes, &lt;b&gt;two&lt;/b&gt;"), ("flora", "no")
    ]  # fmt: skip
    assert page.count("line 2 of samples.jsonl is damaged") == 2
    assert 'id="replies"' not in page_of(tmp_path, write_run(tmp_path / "none", Made()))


def test_ranks_over_time_follow_the_pruning(tmp_path):
    # Clients 0 and 1 start at 2 and 4 and leave every round with 1 and 2.
    methods = methods_of(read_runs([write_run(tmp_path / "run", Made(rounds=1))], GROUPS))
    cells = {(row["round"], row["lora_rank"]): row["clients"] for row in rows.lora_ranks(methods)}
    assert cells == {(0, 2): 1, (0, 4): 1, (1, 1): 1, (1, 2): 1}


def test_weights_are_shares_of_the_cohort(tmp_path):
    methods = methods_of(read_runs([write_run(tmp_path / "run", Made(rounds=2))], GROUPS))
    assert {row["lora_rank"]: row["mean"] for row in rows.weights(methods)} == {1: 0.5}
    # Of two clients one was dropped: 0.5 of a cohort of one.


def test_the_time_of_a_round_adds_up(tmp_path):
    columns = {"t_round_s": [9, 2.0, 4.0], "t_train_s": [0, 1.0, 2.0], "t_comm_s": [0] * 3, "t_aggregate_s": [0] * 3,
               "t_eval_s": [9, 0.5, 0.5], "t_io_s": [0] * 3}  # fmt: skip
    methods = methods_of(read_runs([write_run(tmp_path / "run", Made(rounds=2, columns=columns))], GROUPS))
    seconds = {row["part"]: row["seconds"] for row in rows.time_budget(methods)}
    assert seconds["local training"] == 1.5 and seconds["evaluation"] == 0.5 and seconds["other"] == 1.0


def test_figures_for_print(tmp_path):
    run = write_run(tmp_path / "run", Made(rounds=2))
    out = tmp_path / "figures"
    assert main(["report", str(run), "--output", str(tmp_path / "page.html"), "--figures", str(out)]) == 0
    assert {file.stem for file in out.glob("*.svg")} == CHARTS_OF_ONE_RUN == {f.stem for f in out.glob("*.png")}
    assert all(file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in out.glob("*.png"))


def test_where_and_only_choose(tmp_path, sweep, capsys):
    out = str(tmp_path / "page.html")
    assert main(["report", str(sweep), "--output", out, "--where", "strategy.preset=rbla", "--only", "time"]) == 0
    page = Path(out).read_text(encoding="utf-8")
    assert set(specs_in(page)) == {"time"} and "2 runs of 1 method" in text_in(page)
    assert main(["report", str(sweep), "--output", out, "--where", "strategy.preset~lora", "--only", "time"]) == 0
    assert "hetlora" in text_in(Path(out).read_text(encoding="utf-8"))
    for wrong in (["--where", "strategy.preset=flora"], ["--where", "preset"], ["--only", "nothing"]):
        assert main(["report", str(sweep), "--output", out, *wrong]) == 2
    assert "their values: hetlora, rbla" in capsys.readouterr().err


def test_nothing_to_show_is_one_message(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 3
    assert "holds no runs" in capsys.readouterr().err
    broken = write_run(tmp_path / "broken")
    (broken / "run.h5").write_bytes(b"")
    (broken / "progress.jsonl").write_text("")
    assert main(["report", str(broken)]) == 3
    assert "has a round to show" in capsys.readouterr().err
    assert not (broken / "report.html").exists()
