"""The audit's own parts on cases small enough to work out by hand."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "analysis")]

pytest.importorskip("h5py")

from hetlora.audit_config import Settings  # noqa: E402
from hetlora.audit_data import cut_windows, hash_seed, mix64  # noqa: E402
from hetlora.audit_report import Report  # noqa: E402
from hetlora.audit_server import Upload, aggregate, client_weights  # noqa: E402
from hetlora.audit_trace import join, relative_difference, resize, split  # noqa: E402

LAYOUT = [("model.layers.0.self_attn.q_proj", 2, 3)]


def test_hash_is_that_of_the_program():
    # printed by a C++ program that includes hetlora/base/random.hpp
    assert mix64(0) == 16294208416658607535
    assert hash_seed(7, 5, 3, 2, 1, 11) == 15871811551699172390
    assert hash_seed(0, 5, 0, 1, 0, 0) == 4058839798278803605


def test_windows_by_hand():
    # length 4, overlap 1: windows start at 0, 3, 6 and reach targets 1..4, 4..7, 7..10
    mask = np.array([0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1])
    windows = cut_windows(mask, 4, 1)
    assert [(w.number, w.start, w.positions, w.stop) for w in windows] == [
        (0, 0, (2, 4), 4), (1, 3, (5,), 5), (2, 6, (10,), 10)]  # fmt: skip


def test_windows_without_targets_keep_their_number():
    mask = np.zeros(12, dtype=int)
    mask[11] = 1
    windows = cut_windows(mask, 3, 0)
    assert [(w.number, w.start, w.positions) for w in windows] == [(3, 9, (11,))]
    assert cut_windows(np.zeros(5), 3, 0) == []


@pytest.mark.parametrize(("length", "overlap"), [(4, 0), (4, 3), (7, 2), (100, 10)])
def test_each_target_is_in_exactly_one_window(length, overlap):
    mask = np.random.default_rng(1).integers(0, 2, 50)
    mask[0] = 0
    windows = cut_windows(mask, length, overlap)
    assert sorted(p for w in windows for p in w.positions) == np.flatnonzero(mask).tolist()
    assert all(w.start < p <= w.start + length for w in windows for p in w.positions)


@pytest.mark.parametrize(("gamma", "lora_rank", "start"), [
    (0.99, 32, 31), (0.99, 100, 99), (0.7, 90, 63), (0.29, 100, 29), (0.85, 10, 8), (0.85, 2, 2), (1.0, 8, 8),
])  # fmt: skip
def test_tail_start(gamma, lora_rank, start):
    settings = Settings({"strategy.prune_gamma": gamma, "lora.rank_min": 2})
    assert settings.tail_start(lora_rank) == start


def test_learning_rate_schedule():
    values = {"local.learning_rate": 1.0, "local.lr_warmup_rounds": 2, "experiment.rounds": 6,
              "local.lr_final_fraction": 0.2}  # fmt: skip
    linear = Settings(values | {"local.lr_schedule": "linear"})
    assert [round(linear.learning_rate(t), 12) for t in range(1, 7)] == [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    cosine = Settings(values | {"local.lr_schedule": "cosine"})
    assert [round(cosine.learning_rate(t), 12) for t in (2, 4, 6)] == [1.0, 0.6, 0.2]


def adapter(lora_rank, value):
    return np.full(lora_rank * 5, float(value))


def test_sparsity_weights_by_hand():
    # ||B A||_F of rank-1 factors of ones (2 x 3) is sqrt(6); of twos 4 sqrt(6); weights 1/5 and 4/5
    uploads = [Upload(adapter(1, 0), 1, adapter(1, 1), 1, 9), Upload(adapter(2, 0), 2, join([(
        np.array([[2.0] * 3, [0.0] * 3]), np.array([[2.0] * 2, [0.0] * 2]))]), 2, 1)]  # fmt: skip
    weights = client_weights(Settings({}), LAYOUT, uploads)
    assert weights[:, 0] == pytest.approx([0.2, 0.8])
    nothing = [Upload(u.received, u.lora_rank_before, 0 * u.sent, u.lora_rank_after, 1) for u in uploads]
    assert client_weights(Settings({}), LAYOUT, nothing)[:, 0].tolist() == [0.5, 0.5]
    samples = Settings({"strategy.client_weight": "samples"})
    assert client_weights(samples, LAYOUT, uploads)[:, 0] == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(("changes", "slots"), [
    ({}, [2.0, 1.5, 0.0]),  # (1 + 3) / 2, (0 + 3) / 2, nobody
    ({"slot_norm": "contributors"}, [2.0, 3.0, 0.0]),
    ({"keep_uncovered": "last"}, [2.0, 1.5, 7.0]),
    ({"aggregate": "deltas"}, [7 + (0.5 + 2.5) / 2, 7 + 2.5 / 2, 7.0]),
    ({"aggregate": "deltas", "slot_norm": "contributors"}, [7 + (0.5 + 2.5) / 2, 7 + 2.5, 7.0]),
])  # fmt: skip
def test_aggregation_by_hand(changes, slots):
    settings = Settings({"strategy.client_weight": "uniform"} | {f"strategy.{k}": v for k, v in changes.items()})
    uploads = [Upload(adapter(1, 0.5), 1, adapter(1, 1), 1, 1), Upload(adapter(2, 0.5), 2, adapter(2, 3), 2, 1)]
    new, weights = aggregate(settings, LAYOUT, adapter(3, 7), 3, uploads)
    a, bt = split(new, LAYOUT, 3)[0]
    assert a[:, 0].tolist() == bt[:, 1].tolist() == slots
    assert weights.tolist() == [0.5, 0.5]


def test_all_dropped_leaves_the_global_unchanged():
    new, _ = aggregate(Settings({}), LAYOUT, adapter(3, 7), 3, [])
    assert (new == 7).all()


def test_resize_truncates_and_pads():
    values = np.arange(10.0)  # A = [[0..2], [3..5]], Bt = [[6, 7], [8, 9]]
    assert resize(values, LAYOUT, 2, 1).tolist() == [0, 1, 2, 6, 7]
    assert resize(resize(values, LAYOUT, 2, 1), LAYOUT, 1, 2).tolist() == [0, 1, 2, 0, 0, 0, 6, 7, 0, 0]


def test_relative_difference():
    assert relative_difference(adapter(1, 0), adapter(1, 0), LAYOUT, 1) == (0.0, "")
    value, where = relative_difference(adapter(1, 1.1), adapter(1, 1), LAYOUT, 1)
    assert value == pytest.approx(0.1) and "q_proj" in where
    assert math.isinf(relative_difference(adapter(1, math.nan), adapter(1, 1), LAYOUT, 1)[0])
    assert math.isinf(relative_difference(adapter(1, 1), adapter(1, 0), LAYOUT, 1)[0])


def test_a_report_that_compared_nothing_fails():
    report = Report()
    report.declare("step loss", 1e-4)
    report.declare("chain", None)
    assert report.passed
    report.required.add("step loss")
    assert not report.passed and report.failed() == ["step loss"]
    report.relative("step loss", 1.00005, 1.0, "round 1")
    report.difference("chain", 3.0, "round 1")
    assert report.passed
    report.difference("step loss", math.nan, "round 2")
    assert not report.passed and "TOO LARGE" in report.table() and "round 2" in report.table()
