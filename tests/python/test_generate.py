"""Generation with the key-value cache against `transformers` on SmolLM2-135M-Instruct: 64 greedy tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "analysis"))
MODEL = ROOT / "build" / "test-models" / "smollm2"
PROGRAM = ROOT / "build" / "hetlora"
PROMPTS = ["The capital of France is Paris, and the capital of Italy is", "Once upon a time there was a"]

pytestmark = pytest.mark.skipif(
    not (MODEL / "config.json").is_file() or not PROGRAM.is_file(),
    reason=f"NOT TESTED: needs {MODEL} (scripts/test_models.sh) and {PROGRAM} (make build)",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few lines prepared with SmolLM2's tokenizer: the program prints text by the data's vocabulary."""
    folder = tmp_path_factory.mktemp("generate")
    lines = [f'{{"who": "p{i % 6}", "prompt": "hello {i}", "response": "good day {i}"}}' for i in range(60)]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        "-m",
        "hetlora",
        "prepare",
        "jsonl",
        folder / "lines.jsonl",
        "--client-field",
        "who",
        "--prompt-field",
        "prompt",
        "--response-field",
        "response",
        "--tokenizer",
        MODEL,
        "--held-out-fraction",
        "0.4",
        "--out",
        folder / "lines.h5",
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=ROOT)
    return folder / "lines.h5"


def test_greedy_output_equals_transformers(corpus):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the sea?"}], add_generation_prompt=True, tokenize=False
    )
    for text in [*PROMPTS, chat]:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            expected = model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)[
                0, ids.shape[1] :
            ].tolist()
        stop = model.generation_config.eos_token_id
        stop = {stop} if isinstance(stop, int) else set(stop or [])
        expected = expected[: next((i for i, t in enumerate(expected) if t in stop), len(expected))]
        prompt = ",".join(map(str, ids[0].tolist()))
        command = [
            PROGRAM,
            "generate",
            f"model.path={MODEL}",
            f"data.path={corpus}",
            "evaluation.sample_tokens=64",
            "data.min_windows=1",
            "experiment.clients_per_round=2",
            "compute.threads=1",
            "--prompt",
            prompt,
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert done.returncode == 0, done.stderr
        tokens = next(line for line in done.stdout.splitlines() if line.startswith("tokens "))
        assert list(map(int, tokens.split()[1].split(","))) == expected
        assert len(expected) > 5
