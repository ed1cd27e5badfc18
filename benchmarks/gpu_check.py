"""Checks and times hetlora on a GPU; benchmarks/gpu_check.sh builds it first and says how to call this.

Checks, on the micro world of the tests, in fp32 and bf16: losses on the device equal those on the CPU, and a run in
small packs equals one in large packs (a client cannot tell that it was batched); to 1e-4, in bf16 to 1e-2. Times:
`hetlora bench` and a bare transformers + peft loop (one client after another, the same geometry, random weights and
tokens, LoRA and SGD) on the device. Nothing is timed unless every check passed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "analysis"), str(ROOT / "tests" / "python")]

LORA_RANK, TARGETS = 8, ["q_proj", "v_proj"]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Workload:
    """A model's shape, and what a client step trains on."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    clients: int
    steps: int
    sequences: int
    tokens: int
    precisions: tuple[str, ...] = ("fp32", "bf16")


WORKLOADS = (
    Workload("T", 256, 64, 192, 2, 4, 4, clients=64, steps=4, sequences=2, tokens=64),
    Workload("S", 8192, 512, 1408, 8, 8, 8, clients=32, steps=4, sequences=2, tokens=64),
    Workload("M", 49152, 576, 1536, 30, 9, 3, clients=32, steps=4, sequences=2, tokens=64),
    Workload("135M", 49152, 576, 1536, 30, 9, 3, clients=32, steps=4, sequences=2, tokens=128),
    Workload("1.1B", 32000, 2048, 5632, 22, 32, 4, clients=8, steps=4, sequences=2, tokens=256, precisions=("bf16",)),
)
TINY = (Workload("tiny", 64, 32, 64, 2, 4, 2, clients=3, steps=2, sequences=2, tokens=8),)


def make_model(workload: Workload, folder: Path) -> Path:
    """A random Llama folder of this shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").is_file():
        config = LlamaConfig(
            vocab_size=workload.vocab, hidden_size=workload.hidden, intermediate_size=workload.intermediate,
            num_hidden_layers=workload.layers, num_attention_heads=workload.heads,
            num_key_value_heads=workload.kv_heads, head_dim=workload.hidden // workload.heads,
            max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )  # fmt: skip
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class RandomIds:
    """Stands for a tokenizer when a data file of random tokens is written."""

    vocab_size: int
    sha256: str = "0" * 64
    name: str = "random ids"
    bos_id: int = 0
    eos_id: int = 1

    def vocabulary(self) -> list[bytes]:
        """Bytes of every token."""
        return [f"<{token}>".encode() for token in range(self.vocab_size)]


def make_data(workload: Workload, path: Path) -> Path:
    """Random tokens: every sequence is one window with loss on all its targets."""
    from hetlora.prepare import data_file
    from hetlora.prepare.splits import TRAIN, VALID

    rng = np.random.default_rng(0)
    mask = np.ones(workload.tokens + 1, dtype=np.uint8)
    mask[0] = 0

    def client(name: str, sequences: int, part: int) -> data_file.Client:
        ids = rng.integers(0, workload.vocab, (sequences, workload.tokens + 1), dtype=np.int32)
        return data_file.Client(name, [data_file.Sequence(row, mask, part) for row in ids], held_out=part != TRAIN)

    per_client = workload.steps * workload.sequences
    clients = [client(f"client-{i:03d}", per_client, TRAIN) for i in range(workload.clients)]
    clients.append(client("held-out", 1, VALID))
    prepared = data_file.Prepared(workload.name, "random token ids", "0" * 64, "CC0-1.0", {}, clients)
    data_file.write(str(path), prepared, RandomIds(workload.vocab))
    return path


def hetlora(program: str, *words: object) -> str:
    """Output of a run of the program, which must succeed."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"hetlora {' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def write_config(path: Path, sections: dict) -> Path:
    """An INI file."""
    lines = []
    for section, keys in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    path.write_text("\n".join(lines))
    return path


def losses(program: str, config: Path, out: Path, **changes: str) -> np.ndarray:
    """Training and evaluation losses of a run with these compute.* and model.* settings."""
    words = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    hetlora(program, "run", "--config", config, "--output", out, *words)
    with h5py.File(out / "run.h5") as file:
        values = np.concatenate([file["rounds/train_loss"][:], file["rounds/eval_loss"][:]])
    return values[np.isfinite(values)]


def check(program: str, folder: Path, device: str) -> list[dict]:
    """Compares the device with the CPU, and small packs with large ones."""
    import micro

    model, data = micro.build(folder / "world")
    config = write_config(
        folder / "check.ini",
        {
            "experiment": {"name": "gpu-check", "seed": 7, "rounds": 4, "clients_per_round": 6},
            "model": {"path": model},
            "data": {"path": data, "sequence_length": 24, "overlap": 8},
            "lora": {"rank_min": 2, "rank_max": 16, "targets": "all-linear"},
            "local": {"steps": 4, "batch_size": 3, "learning_rate": 0.01, "clip_norm": 0.5},
            "strategy": {"preset": "hetlora"},
            "compute": {"threads": 1, "pack_tokens": 2048},
        },
    )
    found = []
    for precision in ("fp32", "bf16"):
        wanted = TOLERANCE if precision == "fp32" else 100 * TOLERANCE
        runs = folder / f"check-{precision}"
        common = {"model__precision": precision}
        on_cpu = losses(program, config, runs / "cpu", compute__device="cpu", **common)
        there = losses(program, config, runs / "device", compute__device=device, **common)
        alone = losses(program, config, runs / "alone", compute__device=device, compute__pack_tokens="24", **common)
        for name, a, b in ((f"{device} = cpu", there, on_cpu), ("small packs = large packs", alone, there)):
            difference = float(np.abs(a - b).max() / np.abs(b).max())
            found.append(
                {"check": name, "precision": precision, "difference": difference, "passed": difference <= wanted}
            )
    return found


def bare_loop(workload: Workload, model_folder: Path, precision: str, device: str, seconds: float) -> float:
    """Milliseconds of a client step of transformers + peft, median."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, attn_implementation="sdpa").to(device)
    base.config.use_cache = False
    model = get_peft_model(base, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=TARGETS)).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.002, foreach=True)
    rows = torch.randint(0, workload.vocab, (workload.sequences, workload.tokens + 1), device=device)

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        logits = model(input_ids=rows[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        synchronise()
        start = time.perf_counter()
        for _ in range(workload.steps):
            step()
        synchronise()
        times.append((time.perf_counter() - start) / workload.steps)
    return 1e3 * statistics.median(times)


def measure(program: str, folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """hetlora beside the bare loop, one row per workload and precision."""
    rows = []
    for workload in TINY if arguments.tiny else WORKLOADS:
        place = folder / workload.name
        place.mkdir(parents=True, exist_ok=True)
        model = make_model(workload, place / "model")
        data = make_data(workload, place / "data.h5")
        config = write_config(
            place / "config.ini",
            {
                "experiment": {"name": workload.name, "rounds": 1, "clients_per_round": workload.clients},
                "model": {"path": model},
                "data": {"path": data, "sequence_length": workload.tokens, "overlap": 0},
                "lora": {"targets": ",".join(TARGETS), "rank_distribution": "fixed", "rank_max": LORA_RANK},
                "local": {
                    "steps": workload.steps, "batch_size": workload.sequences, "optimizer": "sgd",
                    "learning_rate": 0.002, "weight_decay": 0, "clip_norm": 0,
                },
                "strategy": {"preset": "fedavg"},
                "evaluation": {"sequences": 1},
                "compute": {"device": arguments.device},
            },
        )  # fmt: skip
        for precision in workload.precisions:
            result = place / f"bench-{precision}.json"
            hetlora(
                program, "bench", "--config", config, f"model.precision={precision}",
                "--seconds", arguments.seconds, "--json", result,
            )  # fmt: skip
            own = json.loads(result.read_text())
            row = {"workload": workload.name, "precision": precision, "hetlora_ms": own["ms_per_client_step"],
                   "share_of_peak": own["share_of_peak"], "tokens_per_s": own["tokens_per_s"]}  # fmt: skip
            if arguments.peer:
                row["bare_ms"] = bare_loop(workload, model, precision, arguments.device, arguments.seconds)
                row["ratio"] = row["bare_ms"] / row["hetlora_ms"]
            rows.append(row | {"geometry": asdict(workload)})
            print(json.dumps({key: value for key, value in row.items() if key != "geometry"}), flush=True)
    return rows


def report(result: dict) -> str:
    """The Markdown table."""
    lines = [f"# hetlora on {result['device_name']}", "", "```", result["version"].strip(), "```", ""]
    lines += ["| check | precision | largest relative difference | |", "|---|---|---|---|"]
    lines += [
        f"| {c['check']} | {c['precision']} | {c['difference']:.1e} | {'passed' if c['passed'] else 'FAILED'} |"
        for c in result["checks"]
    ]
    lines += [
        "",
        "| workload | precision | ms a client step | bare loop | ratio | share of matmul peak |",
        "|---" * 6 + "|",
    ]
    for row in result["times"]:
        bare = f"{row['bare_ms']:.3f} | {row['ratio']:.1f}x" if "ratio" in row else "- | -"
        peak = f"{row['share_of_peak']:.0%}"
        lines.append(f"| {row['workload']} | {row['precision']} | {row['hetlora_ms']:.3f} | {bare} | {peak} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Checks, then times, then writes both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one very small workload")
    parser.add_argument("--seconds", type=int, default=10, help="measured per workload, precision and system")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without the bare loop")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_check: torch sees no GPU here (--device cpu --tiny tries the script without one)")
    folder = arguments.out / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "the CPU (a try of the script)"
    result = {"device_name": name, "torch": torch.__version__, "version": hetlora(arguments.program, "--version")}
    result["checks"] = check(arguments.program, folder, arguments.device)
    passed = all(c["passed"] for c in result["checks"])
    result["times"] = measure(arguments.program, folder, arguments) if passed else []
    (arguments.out / "gpu_check.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / "gpu_check.md").write_text(report(result))
    print(report(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
