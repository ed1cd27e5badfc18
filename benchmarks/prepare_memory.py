"""What `hetlora prepare jsonl` costs by the size of its input: time, tokens a second, largest memory.

    python benchmarks/prepare_memory.py [--megabytes 10,100,1000] [--clients 10000] [--template alpaca]

Makes JSON lines of prompts and answers of random words with the clients mixed, and prepares them with the tokenizer of
models/tiny-chat. `--package DIR` measures another copy of the Python package.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the a rain tea yes no hill moss pear and so it goes to be kind when you are here today what is this".split()


def write_records(path: Path, megabytes: float, clients: int) -> None:
    """JSON lines of about so many megabytes; every record is another one."""
    generator = random.Random(3)
    pool = [" ".join(generator.choices(WORDS, k=30)) for _ in range(5000)]
    size, number = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            record = {
                "who": f"client-{generator.randrange(clients)}",
                "ask": f"{number} {generator.choice(pool)}",
                "reply": f"{generator.choice(pool)} {number}",
            }
            size += file.write(json.dumps(record) + "\n")
            number += 1


def prepare(source: Path, out: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """(seconds, largest memory in MiB) of one preparation."""
    words = ["--client-field", "who", "--prompt-field", "ask", "--response-field", "reply"]
    if arguments.template:
        words += ["--template", arguments.template]
    command = [sys.executable, "-m", "hetlora", "prepare", "jsonl", source, *words, "--model"]
    environment = os.environ | {"PYTHONPATH": arguments.package, "TOKENIZERS_PARALLELISM": "true"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command), str(ROOT / "models/tiny-chat"), "--output", str(out)], env=environment,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"prepare failed: {command}")
    return time.perf_counter() - began, used.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="10,100,1000")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--template")
    parser.add_argument("--package", default=str(ROOT / "analysis"))
    arguments = parser.parse_args()
    print(f"{'input MB':>9} {'records':>10} {'tokens':>13} {'seconds':>8} {'tokens/s':>10} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for megabytes in map(float, arguments.megabytes.split(",")):
            source, out = Path(scratch) / "own.jsonl", Path(scratch) / "own.h5"
            write_records(source, megabytes, arguments.clients)
            seconds, peak = prepare(source, out, arguments)
            with h5py.File(out) as file:
                tokens, records = len(file["tokens/ids"]), len(file["sequences/part"])
            print(
                f"{megabytes:9,.0f} {records:10,} {tokens:13,} {seconds:8.1f} {tokens / seconds:10,.0f} {peak:9,.0f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
