"""hetlora compare: numbers against SciPy's own, fairness, what is left out, and what is refused."""

import csv
import io
import json
import math

import h5py
import numpy as np
import pytest
from hetlora.compare_result import compare
from hetlora.compare_runs import Question
from hetlora.compare_statistics import holm
from hetlora.errors import InputError, UsageError
from prepare_fixtures import run
from scipy import stats
from synthetic_runs import Made, write_run, write_sweep

# Perplexity at the last round (5), by method and seed.
VALUES = {
    "hetlora": [80.0, 83.5, 78.25, 81.0],
    "zeropad": [82.0, 84.0, 79.5, 84.75],
    "fedavg": [79.0, 83.0, 79.0, 80.5],
}
ROUNDS = 5


def falling(last: float):
    """A curve that falls by 4 a round and ends in `last`."""
    return lambda t: last + 4.0 * (ROUNDS - t)


def made(preset: str, seed: int, last: float, **more) -> Made:
    settings = {"strategy.preset": preset, "experiment.seed": seed} | more.pop("settings", {})
    return Made(**{"rounds": ROUNDS, "described": False, "curve": falling(last), "settings": settings} | more)


def sweep_of(folder, values: dict[str, list[float]], **more):
    return write_sweep(folder, [made(p, s, v, **dict(more)) for p, own in values.items() for s, v in enumerate(own)])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return sweep_of(tmp_path_factory.mktemp("results") / "sweep", VALUES, mpi_size=2)


def by_name(result):
    return {method.name: method for method in result.methods}


def test_means_intervals_and_paired_differences_below_ten_seeds(sweep):
    result = compare(sweep, Question(baseline="hetlora"))
    methods = by_name(result)
    p_values = []
    for name, values in VALUES.items():
        method = methods[name]
        np.testing.assert_allclose([seed.value for seed in method.seeds], values)
        half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / math.sqrt(4)
        np.testing.assert_allclose(
            [method.mean.low, method.mean.high], [np.mean(values) - half, np.mean(values) + half]
        )
        assert method.mean.how == "Student's t"
        if name != "hetlora":
            test = stats.ttest_rel(values, VALUES["hetlora"])
            interval = test.confidence_interval(0.95)
            assert math.isclose(method.difference.p, test.pvalue) and method.difference.how == "paired t"
            np.testing.assert_allclose([method.difference.low, method.difference.high], interval)
            p_values.append(test.pvalue)
    # Two comparisons: the smaller p is doubled, the larger stays unless the doubled one is larger.
    smaller, larger = sorted(p_values)
    expected = {smaller: 2 * smaller, larger: max(larger, 2 * smaller)}
    for name in ("zeropad", "fedavg"):
        assert math.isclose(methods[name].p_holm, min(1, expected[methods[name].difference.p]))
    assert methods["hetlora"].difference is None and result.common_round == ROUNDS and result.part == "valid"


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04: 3 x 0.01 = 0.03, 2 x 0.02 = 0.04, 1 x 0.04 = 0.04.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm([0.5, 0.9, math.nan]), [1.0, 1.0, math.nan])
    np.testing.assert_allclose(holm([0.03, 0.04, 0.5]), [0.09, 0.09, 0.5])


def test_bootstrap_from_ten_seeds_on(tmp_path):
    draw = np.random.default_rng(3)
    one = 80 + draw.exponential(2.0, 10)
    other = one + 1.0 + 0.5 * draw.normal(size=10)
    question = Question(baseline="hetlora")
    sweep_of(tmp_path / "s", {"hetlora": one, "zeropad": other})
    method = by_name(compare(tmp_path / "s", question))["zeropad"]
    assert "bootstrap" in method.difference.how and "bootstrap" in method.mean.how
    # Another generator's seed: the interval agrees within the noise of resampling.
    again = stats.bootstrap((other - one,), np.mean, n_resamples=20000, method="BCa").confidence_interval
    np.testing.assert_allclose([method.difference.low, method.difference.high], again, atol=0.05)
    # Sign flips, all 2^10 of them by hand.
    gaps = other - one
    signs = 1 - 2 * ((np.arange(1024)[:, None] >> np.arange(10)) & 1)
    extreme = np.abs((signs * gaps).mean(1)) >= abs(gaps.mean()) - 1e-12
    assert math.isclose(method.difference.p, extreme.mean(), abs_tol=2 / 1024)
    assert by_name(compare(tmp_path / "s", question))["zeropad"] == method  # nothing is left to chance


def test_welch_where_seeds_differ_and_pairs_where_some_are_common(tmp_path):
    for i, (preset, seed, value) in enumerate(
        [("hetlora", 1, 80.0), ("hetlora", 2, 83.0), ("hetlora", 3, 85.0), ("zeropad", 4, 84.0), ("zeropad", 5, 88.0),
         ("fedavg", 1, 81.0), ("fedavg", 3, 87.5), ("flora", 3, 70.0)]
    ):  # fmt: skip
        write_run(tmp_path / f"run{i}", made(preset, seed, value))
    result = compare(tmp_path, Question(baseline="hetlora"))
    methods = by_name(result)
    welch = stats.ttest_ind([84.0, 88.0], [80.0, 83.0, 85.0], equal_var=False)
    assert "Welch" in methods["zeropad"].difference.how and math.isclose(methods["zeropad"].difference.p, welch.pvalue)
    partly = stats.ttest_rel([81.0, 87.5], [80.0, 85.0])
    assert math.isclose(methods["fedavg"].difference.p, partly.pvalue) and methods["fedavg"].paired_seeds == 2
    assert math.isnan(methods["flora"].difference.p) and math.isnan(methods["flora"].p_holm)
    assert "fedavg has no run for seed 2" in "\n".join(result.notes)
    assert any("one seed only, so no interval and no test: flora" in note for note in result.notes)


def test_one_seed_has_no_interval_and_says_so(capsys, tmp_path):
    sweep_of(tmp_path / "s", {"hetlora": [80.0], "zeropad": [82.0]})
    code, text, err = run(capsys, "compare", tmp_path / "s", "--baseline", "hetlora")
    assert code == 0 and "one seed only, so no interval and no test: hetlora, zeropad" in text
    line = next(line for line in text.splitlines() if line.startswith("zeropad")).split()
    assert line == ["zeropad", "1", "82.000", "2.0000", "-", "-", "6"] or line[2:5] == ["82.000", "2.0000", "-"]
    assert "[" not in line


def test_costs_to_a_target(sweep):
    methods = by_name(compare(sweep, Question(target=81.0)))
    # hetlora ends in 80, 83.5, 78.25, 81: seed 1 never reaches 81, the others in their last round but 0.
    rounds = [seed.rounds_to_target for seed in methods["hetlora"].seeds]
    assert rounds == [5, math.inf, 5, 5] and methods["hetlora"].reached == 3
    assert methods["hetlora"].median("bytes_up_to_target") == 5000  # 1000 a round, none for round 0
    assert methods["hetlora"].median("bytes_down_to_target") == 10000
    assert methods["zeropad"].reached == 1 and math.isinf(methods["zeropad"].median("rounds_to_target"))
    assert methods["hetlora"].device_seconds == 6 * 0.5 * 2  # rounds 0 to 5, two MPI ranks


def test_higher_may_be_better(tmp_path):
    columns = {"eval_accuracy": [0.1, 0.2, 0.5, 0.3, 0.2, 0.1]}
    write_run(tmp_path / "a", made("hetlora", 1, 80.0, columns=columns))
    question = Question(metric="eval_accuracy", at="best-valid", target=0.3, lower_is_better=False)
    (seed,) = compare(tmp_path, question).methods[0].seeds
    assert (seed.value, seed.round, seed.rounds_to_target) == (0.5, 2, 2)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two methods x two rates x two seeds x valid and test; on valid 0.1 is best, on test 0.2 would be."""
    runs = []
    for preset, shift in (("hetlora", 0.0), ("zeropad", 2.0)):
        for rate, valid, test in ((0.1, 80.0, 90.0), (0.2, 85.0, 70.0)):
            for seed in (1, 2):
                for part, value in (("valid", valid), ("test", test)):
                    settings = {"local.learning_rate": rate, "evaluation.part": part}
                    # On valid the best round is 3; test goes on falling.
                    curve = (lambda t, v=value + shift + seed: v + abs(t - 3)) if part == "valid" else (
                        lambda t, v=value + shift + seed: v - t)  # fmt: skip
                    runs.append(made(preset, seed, value, settings=settings, curve=curve))
    return write_sweep(tmp_path_factory.mktemp("results") / "tuned", runs)


def test_tuned_on_valid_and_reported_on_test(capsys, tuned):
    question = Question(tune=("local.learning_rate",), baseline="hetlora")
    result = compare(tuned, question)
    assert result.part == "test" and [method.chosen for method in result.methods] == ["0.1", "0.1"]
    assert [seed.value for seed in by_name(result)["zeropad"].seeds] == [90 + 2 + 1 - 5, 90 + 2 + 2 - 5]
    best = compare(tuned, Question(tune=("local.learning_rate",), at="best-valid"))
    assert [(seed.value, seed.round) for seed in by_name(best)["hetlora"].seeds] == [(90 + 1 - 3, 3), (90 + 2 - 3, 3)]
    code, text, _ = run(capsys, "compare", tuned, "--tune", "local.learning_rate", "--at", "best-valid")
    assert code == 0 and "on test, at each run's best round on valid up to round 5" in text
    assert "local.learning_rate chosen for each method on valid; the numbers are on test" in text
    assert "it is the smallest of the grid" in text


def test_tuning_without_test_runs_says_so_and_on_test_alone_is_refused(tuned):
    question = Question(tune=("local.learning_rate",), where=("evaluation.part=valid",))
    result = compare(tuned, question)
    assert result.part == "valid" and any("so they are too good" in note for note in result.notes)
    with pytest.raises(UsageError, match="chosen on valid, but every run has evaluation.part = test"):
        compare(tuned, Question(tune=("local.learning_rate",), where=("evaluation.part=test",)))


def test_unequal_grids_are_refused_but_a_failed_try_counts(tmp_path):
    tries = [("hetlora", 0.1, "done"), ("hetlora", 9, "done"), ("zeropad", 0.1, "done"), ("zeropad", 9, "failed")]
    runs = [made(preset, 1, 80.0, settings={"local.learning_rate": rate}, state=end) for preset, rate, end in tries]
    write_sweep(tmp_path / "equal", runs)
    result = compare(tmp_path / "equal", Question(tune=("local.learning_rate",)))
    assert by_name(result)["zeropad"].chosen == "0.1" and any("failed after 5 of 5" in note for note in result.notes)
    write_sweep(tmp_path / "unequal", runs[:3])
    with pytest.raises(UsageError, match=r"unequal tuning grids.*\n?.*hetlora: 0.1, 9; zeropad: 0.1"):
        compare(tmp_path / "unequal", Question(tune=("local.learning_rate",)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data_sha256": "e" * 64}, "other data (data_sha256): dddddddd in a; eeeeeeee in b"),
        ({"base_sha256": "e" * 64}, "other base model (base_sha256): bbbbbbbb in a; eeeeeeee in b"),
        ({"settings": {"data.partition": "iid"}}, "data.partition differs: natural in a; iid in b; name it in --by"),
        (
            {"settings": {"evaluation.sequences": 50}},
            "evaluation.sequences differs, so they are measured on other text",
        ),
        (
            {"settings": {"data.sequence_length": 32}},
            "data.sequence_length differs, so they are measured on other text",
        ),
        ({"settings": {"lora.rank_max": 8, "local.steps": 9}}, "local.steps differs: 2 in a; 9 in b"),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(capsys, tmp_path, change, message):
    write_run(tmp_path / "a", made("hetlora", 1, 80.0))
    write_run(tmp_path / "b", made("zeropad", 1, 82.0, **change))
    code, text, err = run(capsys, "compare", tmp_path)
    assert code == 2 and not text and message in err
    if "rank_max" in str(change):
        assert "lora.rank_max differs: 4 in a; 8 in b" in err  # all reasons at once


def test_differences_that_change_no_result_are_no_reason(tmp_path):
    write_run(tmp_path / "a", made("hetlora", 1, 80.0))
    settings = {"compute.threads": 4, "model.path": "/elsewhere", "experiment.tags": "x", "evaluation.clients": "final"}
    write_run(tmp_path / "b", made("zeropad", 1, 82.0, settings=settings))
    result = compare(tmp_path, Question())
    assert len(result.methods) == 2 and any("seconds do not compare" in note for note in result.notes)


def test_a_key_named_in_by_is_part_of_the_method(tmp_path):
    write_run(tmp_path / "a", made("hetlora", 1, 80.0))
    write_run(tmp_path / "b", made("hetlora", 1, 82.0, settings={"lora.rank_max": 8}))
    with pytest.raises(UsageError, match="lora.rank_max differs"):
        compare(tmp_path, Question())
    result = compare(tmp_path, Question(by=("strategy.preset", "lora.rank_max")))
    assert [method.name for method in result.methods] == ["hetlora 4", "hetlora 8"]
    assert len(compare(tmp_path, Question(where=("lora.rank_max=8",))).methods) == 1


def test_runs_that_cannot_be_used_are_named_and_the_rest_is_shown(capsys, tmp_path):
    sweep_of(tmp_path / "s", {"hetlora": [80.0, 81.0], "zeropad": [82.0, 84.0]})
    extra = {"cut": {"rounds": 2, "state": "stopped", "settings": {"experiment.rounds": 5}}, "bad": {"state": "failed"},
             "nan": {"columns": {"eval_perplexity": [math.nan] * 6}}}  # fmt: skip
    for i, (name, more) in enumerate(extra.items()):
        write_run(tmp_path / "s" / name, made("hetlora", 5 + i, 80.0, **more))
    write_run(tmp_path / "s" / "torn", made("zeropad", 8, 83.0))
    (tmp_path / "s" / "torn" / "run.h5").write_bytes(b"")
    write_run(tmp_path / "s" / "lost", made("zeropad", 9, 83.0))
    (tmp_path / "s" / "lost" / "config.json").unlink()
    newer = write_run(tmp_path / "s" / "newer", made("zeropad", 10, 83.0))
    with h5py.File(newer / "run.h5", "r+") as file:
        file.attrs["schema_version"] = 2
    code, text, err = run(capsys, "compare", tmp_path / "s", "--baseline", "hetlora")
    assert code == 0, err
    for line in (
        "left out: cut: stopped after 2 of 5 rounds",
        "left out: bad: failed after 5 of 5 rounds (non-finite loss)",
        "left out: nan: its eval_perplexity was never measured (all NaN)",
        "left out: lost: done, its settings are not known",
        "left out: newer: damaged after 0 of 5 rounds",
        "torn: ",
    ):
        assert line in text, text
    rows = {row.split()[0]: row.split()[1:4] for row in text.splitlines() if "[" in row}
    assert rows["hetlora"] == ["2", "of", "5"] and rows["zeropad"] == ["3", "of", "4"]  # torn counts: it is complete


def test_runs_with_different_rounds(tmp_path):
    write_run(tmp_path / "a", Made(rounds=5, settings={"strategy.preset": "hetlora"}))
    holes = [100.0, 99.0, math.nan, 97.0]
    write_run(
        tmp_path / "b", Made(rounds=3, settings={"strategy.preset": "zeropad"}, columns={"eval_perplexity": holes})
    )
    result = compare(tmp_path, Question())
    assert result.common_round == 3 and {method.mean.mean for method in result.methods} == {97.0}
    assert any("the runs have 3 to 5 rounds: compared at round 3" in note for note in result.notes)
    for name in "ab":  # with a schedule, the number of rounds changes every round
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text())
        config["local"]["lr_schedule"] = "cosine"
        file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="experiment.rounds differs"):
        compare(tmp_path, Question())


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--metric", "eval_perplexty"], 2, "no run has the metric eval_perplexty; they have: "),
        (["--by", "strategy.presets"], 2, "did you mean strategy.preset?"),
        (["--where", "strategy.preset"], 2, "write section.key=value"),
        (["--where", "strategy.preset~nix"], 3, "none of the 12 runs has strategy.preset~nix"),
        (["--where", "strategy.preset=none"], 3, "none of the 12 runs has strategy.preset=none"),
        (["--baseline", "none"], 2, "the methods are "),
        (["--level", "95"], 2, "give a number between 0 and 1"),
        (["--tune", "local.rate"], 2, "no run's config has the key local.rate"),
    ],
)
def test_questions_that_do_not_fit(capsys, sweep, words, code, message):
    found, text, err = run(capsys, "compare", sweep, *words)
    assert found == code and message in err and not text and err.count("\n") == 1


def test_nothing_to_compare(tmp_path):
    for metric in ("eval_perplexity", "train_loss"):
        with pytest.raises(InputError, match="holds no runs"):
            compare(tmp_path, Question(metric=metric))
    write_run(tmp_path / "a", made("hetlora", 1, 80.0, columns={"eval_perplexity": [math.nan] * 6}))
    with pytest.raises(InputError, match=r"none of the 1 runs can be compared[^\n]*\n  left out: a: .*all NaN"):
        compare(tmp_path, Question())


def test_forms(capsys, sweep):
    code, text, err = run(capsys, "compare", sweep, "--csv", "--target", "81")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert code == 0 and len(rows) == 12 and "intervals: Student's t" in err
    assert {row["method"]: float(row["mean"]) for row in rows} == {n: np.mean(v) for n, v in VALUES.items()}
    assert [row["rounds_to_target"] for row in rows if row["method"] == "hetlora"] == ["5", "inf", "5", "5"]
    _, text, _ = run(capsys, "compare", sweep, "--latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2 and r"eval\_perplexity" in text
    _, text, _ = run(capsys, "compare", sweep, "--markdown")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (3 + 2) and "| seed 0 |" in tables[5]


def test_test_columns_of_a_run_on_valid_are_what_is_reported(capsys, tmp_path):
    """evaluation.test = best: test is measured where valid is the best so far, and nowhere else."""
    nan = float("nan")
    made = [
        Made(rounds=3, curve=lambda t, base=base: base - [0, 3, 1, 2][t], extra_metrics=("test_perplexity",),
             columns={"eval_test_perplexity": [nan, base + 7.0, nan, base + 9.0]},
             settings={"strategy.preset": preset, "experiment.seed": 0, "evaluation.test": "best"})
        for preset, base in (("hetlora", 50.0), ("zeropad", 60.0))
    ]  # fmt: skip
    sweep = write_sweep(tmp_path / "sweep", made)
    last = compare(sweep, Question())
    assert last.part == "test"
    assert [seed.value for seed in by_name(last)["hetlora"].seeds] == [59.0]
    best = compare(sweep, Question(at="best-valid"))
    assert [(seed.value, seed.round) for seed in by_name(best)["zeropad"].seeds] == [(67.0, 1)]


def test_accuracy_is_tuned_on_valid_and_reported_on_test(capsys, tmp_path):
    """Runs of labels: the larger the better; on valid the rate 0.1 is best, on test 0.2 would be."""
    nan = float("nan")
    sweep = write_sweep(
        tmp_path / "sweep",
        [
            Made(rounds=2, extra_metrics=("test_accuracy",),
                 columns={"eval_accuracy": [0.5, 0.55, valid + shift], "eval_test_accuracy": [nan, nan, test + shift]},
                 settings={"model.task": "classification", "strategy.preset": preset, "local.learning_rate": rate,
                           "experiment.seed": 0, "evaluation.test": "last"})
            for preset, shift in (("hetlora", 0.0), ("zeropad", 0.02))
            for rate, valid, test in ((0.1, 0.8, 0.7), (0.2, 0.6, 0.75))
        ],
    )  # fmt: skip
    words = ("compare", sweep, "--metric", "eval_accuracy", "--tune", "local.learning_rate", "--csv")
    code, text, err = run(capsys, *words)
    assert code == 0, err
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert [float(rows[name]["eval_accuracy"]) for name in ("hetlora", "zeropad")] == pytest.approx([0.7, 0.72])
    code, text, _ = run(capsys, *words[:-1])
    assert code == 0 and "eval_accuracy on test" in text and "(higher is better)" in text
    question = Question(metric="eval_accuracy", tune=("local.learning_rate",), lower_is_better=False)
    assert [method.chosen for method in compare(sweep, question).methods] == ["0.1", "0.1"]


def test_metrics_without_a_test_column_are_those_of_valid(tmp_path):
    write_sweep(tmp_path / "s", [made("hetlora", 0, 80.0), made("zeropad", 0, 82.0)])
    for metric in ("eval_accuracy", "train_loss", "adapter_norm"):
        assert compare(tmp_path / "s", Question(metric=metric)).part == "valid"
