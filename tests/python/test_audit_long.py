"""Audits that take too long for every change (`make test-long`): 50 rounds, and SmolLM2 over 200 AdamW steps."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from test_audit_program import PROGRAM, ROOT, main, program_config, run_program, world, write_ini  # noqa: E402, F401

pytestmark = [
    pytest.mark.skipif(not os.environ.get("HETLORA_TEST_LONG"), reason="long: make test-long"),
    pytest.mark.skipif(not PROGRAM.is_file(), reason=f"{PROGRAM} is not built (make build)"),
]
SMOLLM2 = ROOT / "build" / "test-models" / "smollm2"


def test_fifty_rounds(world, tmp_path, capsys):  # noqa: F811
    changes = {
        "experiment": {"rounds": 50},
        "model": {"precision": "fp64"},
        "local": {"optimizer": "adamw", "learning_rate": 0.005},
    }
    folder = tmp_path / "run"
    done = run_program(write_ini(tmp_path / "run.ini", program_config(world, changes, folder)), 2)
    assert done.returncode == 0, done.stderr
    code = main([str(folder), "--evaluate", "--chain", "--threads", "1", "--tolerance", "1e-4"])
    table = capsys.readouterr().out
    print(table)
    assert code == 0, table


@pytest.mark.skipif(
    not (SMOLLM2 / "config.json").is_file(), reason=f"NOT TESTED: no {SMOLLM2} (scripts/test_models.sh)"
)
# In fp64 nothing but a mistake can make a difference. In fp32 AdamW divides gradients that are nearly 0 by their own
# size, so that roundings (transformers' own fp32 gradient is 4.6e-5 from its fp64 one here) grow over 200 steps.
@pytest.mark.parametrize(("precision", "batch_size", "tolerance"), [("fp64", 1, "1e-6"), ("fp32", 2, "2e-2")])
def test_one_client_of_smollm2_for_200_adamw_steps(tmp_path, capsys, precision, batch_size, tolerance):
    data = tmp_path / "chitchat.h5"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "hetlora",
            "prepare",
            "chitchat",
            "--tokenizer",
            str(SMOLLM2),
            "--max-clients",
            "40",
            "--out",
            str(data),
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    folder = tmp_path / "run"
    words = [
        f"model.path={SMOLLM2}",
        f"data.path={data}",
        f"model.precision={precision}",
        "experiment.rounds=1",
        "experiment.clients_per_round=1",
        "data.sequence_length=64",
        "data.overlap=16",
        "local.steps=200",
        f"local.batch_size={batch_size}",
        "local.learning_rate=3e-4",
        "lora.rank_distribution=fixed",
        "lora.rank_max=8",
        "evaluation.sequences=8",
        f"output.dir={folder}",
        "output.trace=true",
    ]
    done = subprocess.run([str(PROGRAM), "run", *words], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    code = main([str(folder), "--tolerance", tolerance])
    table = capsys.readouterr().out
    print(table)
    assert code == 0, table
