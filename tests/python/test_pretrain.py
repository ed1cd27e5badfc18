"""`hetlora pretrain`: the loss falls, a killed run resumes to the same bits, `transformers` loads the result."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro  # noqa: E402
import program  # noqa: E402

pytestmark = program.needs_program

SETTINGS = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 48,
    "sequence_length": 16,
    "batch_tokens": 256,
    "micro_batch": 4,
    "learning_rate": 0.02,
    "warmup_steps": 4,
    "checkpoint_every": 10,
    "eval_every": 10,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return micro.build_corpus(tmp_path_factory.mktemp("pretrain") / "text.h5")


def pretrain(corpus, folder, steps, *words, **changes):
    settings = SETTINGS | {"data": corpus, "output": folder, "steps": steps} | changes
    keys = [f"pretrain.{key}={value}" for key, value in settings.items()]
    return program.start("pretrain", *keys, "compute.threads=1", *words)


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_transformers_loads_the_model(corpus, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    done = pretrain(corpus, tmp_path / "model", 40)
    assert done.returncode == 0, done.stderr
    losses = [point["train_loss"] for point in curve(tmp_path / "model")]
    assert losses[-1] < losses[0] - 0.3
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) < 20000
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_a_killed_run_resumes_to_the_same_bits(corpus, tmp_path):
    settings = SETTINGS | {"data": corpus, "output": tmp_path / "killed", "steps": 60}
    keys = [f"pretrain.{key}={value}" for key, value in settings.items()]
    process = subprocess.Popen(
        [str(program.PROGRAM), "pretrain", *keys, "compute.threads=1"],
        env=program.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "killed" / "checkpoint" / "state.safetensors"
    for _ in range(600):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    resumed = pretrain(corpus, tmp_path / "killed", 60, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = pretrain(corpus, tmp_path / "whole", 60)
    assert whole.returncode == 0, whole.stderr
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bad_resumes_are_refused(corpus, tmp_path):
    nothing = pretrain(corpus, tmp_path / "none", 20, "--resume")
    assert nothing.returncode == 3
    assert "no checkpoint" in nothing.stderr
    assert pretrain(corpus, tmp_path / "some", 10).returncode == 0
    other = pretrain(corpus, tmp_path / "some", 10, "--resume", learning_rate=0.5)
    assert other.returncode == 3
    assert "another config" in other.stderr
