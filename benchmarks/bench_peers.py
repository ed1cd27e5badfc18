"""hetlora beside what users have today: the same federated LoRA training, the same weights, tokens and schedule.

    make bench-peers                                              # at most 30 minutes
    make bench-peers BENCH="--workloads S --systems bare,hetlora --repeats 5"

1. Every system trains the gate's 5 rounds. Its mean loss per round and its final adapter must equal the bare loop's,
   else its times are refused.
2. The rounds of the gate count as times, and more repeats follow while there is time: each a new process, the systems
   in alternating order, the first round of each process left out.

Writes build/bench/peers.json and build/bench/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from peer_process import SYSTEMS, Outcome, Runner, gate  # noqa: E402
from peer_report import machine_facts, markdown  # noqa: E402
from workloads import GATE_ROUNDS, WORKLOADS, NotAvailable, Workload, make  # noqa: E402

FULL = ("bare", "bare-autocast", "bare-bf16", "batched", "onednn", "onednn-bf16", "pfl", "hetlora", "hetlora-bf16")
SHORT = ("bare", "batched", "onednn", "hetlora")
DEFAULT_SYSTEMS = {name: FULL if name in ("T", "S", "M") else SHORT for name in WORKLOADS}


def parse() -> argparse.Namespace:
    """The command line."""

    def names(known):
        def convert(text: str) -> list[str]:
            wanted = [name.strip() for name in text.split(",") if name.strip()]
            if unknown := [name for name in wanted if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
            return wanted

        return convert

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", type=names(WORKLOADS), default=list(WORKLOADS), metavar="A,B", help="of these: "
                        + ", ".join(WORKLOADS))  # fmt: skip
    parser.add_argument("--systems", type=names(SYSTEMS), default=None, metavar="A,B", help="of these: "
                        + ", ".join(SYSTEMS) + "; the bare loop always runs; default: all but flower and appfl for "
                        + "T, S, M, " + ", ".join(SHORT) + " for the others")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="processes of each system at most, the gate's included")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop in time")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of a timed process (default: by workload)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "hetlora")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "bench")
    arguments = parser.parse_args()
    if not arguments.program.is_file():
        parser.error(f"{arguments.program} is not there: make build")
    arguments.to, arguments.program = arguments.to.resolve(), arguments.program.resolve()
    return arguments


class Bench:
    """All workloads and systems of one call."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.runner = Runner(arguments.program, arguments.to, arguments.threads)
        self.results: dict[str, dict] = {}

    def seconds_left(self) -> float:
        """Until everything must have stopped."""
        return self.deadline - time.monotonic()

    def systems_of(self, name: str) -> list[str]:
        """The bare loop first: the others are compared with it."""
        wanted = self.arguments.systems or DEFAULT_SYSTEMS[name]
        return ["bare", *(system for system in wanted if system != "bare")]

    def run(self) -> None:
        """Gates of all workloads, then repeats in turn until the time is up."""
        for name in self.arguments.workloads:
            workload = WORKLOADS[name]
            if self.arguments.rounds:
                workload = replace(workload, rounds=self.arguments.rounds)
            self.gates(workload)
            self.write()
        for repeat in range(1, self.arguments.repeats):
            for name, result in self.results.items():
                if "folder" in result:
                    self.repeat(name, repeat)
                    self.write()

    def gates(self, workload: Workload) -> None:
        """Makes the workload and puts every system through its gate."""
        result = self.results[workload.name] = {"workload": asdict(workload), "systems": {}}
        try:
            folder = make(workload, self.arguments.to, self.arguments.program)
        except NotAvailable as reason:
            result["not_run"] = str(reason)
            print(f"{workload.name}: not run: {reason}", file=sys.stderr)
            return
        result["folder"] = str(folder)
        made = json.loads((folder / "made.json").read_text())
        result |= {key: made[key] for key in ("weights", "model", "tokens_per_round", "loss_tokens_per_round")}
        reference = None
        for system in self.systems_of(workload.name):
            entry = result["systems"][system] = {"round_s": [], "round_tokens": [], "start_s": [], "peak_mib": []}
            if reason := self.runner.missing(system, folder):
                entry["not_run"] = reason
            elif self.seconds_left() < 5:
                entry["not_run"] = "out of time"
            elif system != "bare" and reference is None:
                entry["not_run"] = "there is no bare loop to compare with"
            else:
                outcome = self.runner.run(system, folder, GATE_ROUNDS, self.seconds_left())
                if outcome.error:
                    entry["not_run"] = outcome.error
                else:
                    reference = reference or outcome
                    entry["gate"] = gate(system, reference, outcome, folder / "schedule.npz")
                    entry["facts"] = outcome.facts
                    self.count(result, entry, outcome)
            self.say(workload.name, system, entry)

    def repeat(self, name: str, repeat: int) -> None:
        """One more process of every system that passed; every other time in reverse order."""
        result = self.results[name]
        systems = [system for system, entry in result["systems"].items() if entry.get("gate", {}).get("passed")]
        rounds = result["workload"]["rounds"]
        for system in systems if repeat % 2 == 0 else reversed(systems):
            entry = result["systems"][system]
            expected = max(entry["start_s"]) + 5 + rounds * max(entry["round_s"])
            if expected > self.seconds_left():
                continue
            attention = entry["facts"].get("attention", "auto")
            outcome = self.runner.run(system, Path(result["folder"]), rounds, self.seconds_left(), attention)
            if outcome.error:
                entry.setdefault("failed_repeats", []).append(outcome.error)
            else:
                self.count(result, entry, outcome)
            self.say(name, system, entry)

    @staticmethod
    def count(result: dict, entry: dict, outcome: Outcome) -> None:
        """Adds a process to its system's samples; its first round doesn't count."""
        entry["round_s"] += outcome.round_s[1:]
        entry["round_tokens"] += result["tokens_per_round"][1 : len(outcome.round_s)]
        entry["start_s"].append(outcome.start_s)
        entry["peak_mib"].append(outcome.peak_mib)

    def say(self, name: str, system: str, entry: dict) -> None:
        """One line for people."""
        if "not_run" in entry:
            text = f"not run: {entry['not_run']}"
        else:
            steps = WORKLOADS[name].client_steps
            passed = entry["gate"]["passed"]
            last = 1000 * entry["round_s"][-1] / steps
            text = (
                f"{last:.3g} ms a client step" if passed else "gate failed"
            ) + f", losses within {entry['gate']['loss']:.1e}, adapter within {entry['gate']['adapter']:.1e}"
        print(f"{name:8} {system:14} {text}", flush=True)

    def write(self) -> None:
        """peers.json and peers.md, after every step: a stopped benchmark has what it had."""
        report = {"machine": machine_facts(self.arguments), "workloads": self.results}
        (self.arguments.to / "peers.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
        (self.arguments.to / "peers.md").write_text(markdown(report))


def main() -> int:
    """Command line; returns the exit code: 1 when a gate failed."""
    arguments = parse()
    arguments.to.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    bench = Bench(arguments)
    bench.run()
    print((arguments.to / "peers.md").read_text())
    entries = [entry for result in bench.results.values() for entry in result["systems"].values()]
    return 1 if any(not entry.get("gate", {"passed": True})["passed"] for entry in entries) else 0


if __name__ == "__main__":
    raise SystemExit(main())
