"""The benchmark's equality gate on a tiny world: hetlora, the bare loop and batched Python train the same thing.

Runs $HETLORA_PROGRAM (default: build/hetlora); without it every test here is skipped, with a warning (program.py).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]

import program  # noqa: E402
import workloads  # noqa: E402
from peer_process import Outcome, Runner, gate  # noqa: E402
from peers import bare, batched, recorder  # noqa: E402
from peers.schedule import IGNORED, Schedule  # noqa: E402

pytestmark = program.needs_program

TINY = replace(workloads.WORKLOADS["T"], name="tiny", n_clients=6, clients_per_round=3, steps=2, rounds=2)
PEERS = {
    "bare": (bare.BareLoop, {"precision": "fp32"}),
    "batched": (batched.Batched, {"precision": "fp32", "onednn": False, "pack_tokens": 256}),  # packs of 2 and 1
    "onednn": (batched.Batched, {"precision": "fp32", "onednn": True, "pack_tokens": 2048}),
    "onednn-bf16": (batched.Batched, {"precision": "bf16", "onednn": True, "pack_tokens": 2048}),
    "bare-autocast": (bare.BareLoop, {"precision": "autocast"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny workload, traced by hetlora."""
    torch.set_num_threads(1)
    return workloads.make(TINY, tmp_path_factory.mktemp("bench"), program.PROGRAM)


def train(folder: Path, system: str, schedule: Schedule | None = None) -> Outcome:
    """The gate's rounds with one peer, in this process."""
    make_peer, options = PEERS[system]
    model = folder.parent / "models" / "T"
    arguments = argparse.Namespace(model=model, attention="sdpa", started=0.0, **options)
    schedule = schedule or Schedule.load(folder / "schedule.npz")
    peer = make_peer(arguments, schedule, recorder.Recorder(arguments))
    losses = [peer.train_round(number) for number in range(workloads.GATE_ROUNDS)]
    return Outcome(losses, adapter=[x.detach().numpy().copy() for x in peer.adapter()])


@pytest.fixture(scope="module")
def reference(folder):
    """What the bare loop computes."""
    return train(folder, "bare")


def test_hetlora_passes_the_gate(folder, reference):
    outcome = Runner(program.PROGRAM, folder.parent, threads=1).run("hetlora", folder, workloads.GATE_ROUNDS, 60)
    assert not outcome.error
    result = gate("hetlora", reference, outcome, folder / "schedule.npz")
    assert result["passed"], result
    assert 0 < outcome.start_s < 60 and len(outcome.round_s) == workloads.GATE_ROUNDS


@pytest.mark.parametrize("system", [name for name in PEERS if name != "bare"])
def test_peers_pass_the_gate(folder, reference, system):
    if system == "onednn-bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16 arithmetic that oneDNN's packed weights could use")
    result = gate(system, reference, train(folder, system), folder / "schedule.npz")
    assert result["passed"], result


@pytest.mark.parametrize("system", ["batched", "onednn"])
def test_ragged_windows_and_short_batches_pass_the_gate(folder, system):
    schedule = ragged(Schedule.load(folder / "schedule.npz"))
    result = gate(
        system, train(folder, "bare", schedule), train(folder, system, schedule), folder / "schedule.npz"
    )  # fmt: skip
    assert result["passed"], result


def ragged(schedule: Schedule) -> Schedule:
    """Windows of unequal lengths, loss on some rows only, unequal weights, and one batch with one window less."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 65, len(schedule.lengths))
    targets = np.where(np.arange(64) < lengths[:, None], schedule.targets, IGNORED)
    targets = np.where(rng.random(targets.shape) < 0.5, targets, IGNORED)
    windows = schedule.windows.copy()
    windows[0, 0, 0, -1] = -1
    weights = rng.random(schedule.weights.shape)
    weights /= weights.sum(axis=1, keepdims=True)
    return replace(schedule, lengths=lengths, targets=targets, windows=windows, weights=weights)


@pytest.mark.parametrize("mistake", ["learning rate", "a client's weight", "other windows", "no training"])
def test_another_training_fails_the_gate(folder, reference, mistake):
    schedule = Schedule.load(folder / "schedule.npz")
    if mistake == "learning rate":
        schedule = replace(schedule, learning_rate=1.05 * schedule.learning_rate)
    elif mistake == "no training":
        schedule = replace(schedule, learning_rate=0.0)
    elif mistake == "a client's weight":
        schedule.weights[0, :2] = (2 / 3, 0)
    else:
        schedule.windows[0] = schedule.windows[1]
    assert not gate("onednn", reference, train(folder, "onednn", schedule), folder / "schedule.npz")["passed"]
