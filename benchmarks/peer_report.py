"""peers.md: tables of peers.json for people, and the facts of the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
from datetime import datetime, timezone

from peer_process import LIMITS, SYSTEMS
from workloads import GATE_ROUNDS

DEVIATIONS = (
    "Peers pad windows on the right to the longest of the batch; attention is causal, so no mask is needed.",
    "Only `batched` and `onednn` (and hetlora) leave rows without loss out of the head; bare loop and pfl compute all "
    "logits, as transformers does.",
    "Attention: each peer tries its implementations at the start and keeps the fastest; the choice is in peers.json.",
    "hetlora's round time is `t_round_s - t_eval_s` of run.h5: training, aggregation and writing the log. A peer's is "
    "training and averaging; it writes nothing and evaluates nothing.",
    "All processes keep freed memory (the same malloc thresholds that hetlora sets for itself).",
    "Start-up: from the start of the process to the first training step, with imports and packing of weights, without "
    "evaluation and the choice of attention.",
    "Flower trains in a Ray process beside the server's: that one loads the model in the first round, which does not "
    "count, and not before what is given as start-up.",
    "APPFL's garbage collection after every call is switched off: with it a client step of T takes forty times as "
    "long.",
    "bf16 systems are gated against the fp32 bare loop with wider limits.",
)


def machine_facts(arguments: argparse.Namespace) -> dict:
    """What the numbers depend on."""
    model = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown")
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0.0)
    packages = {}
    for name in ("torch", "transformers", "peft", "pfl"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    program = subprocess.run([arguments.program, "--version"], capture_output=True, text=True).stdout
    return {
        "cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "load": os.getloadavg(),
        "system": platform.platform(), "python": platform.python_version(), "packages": packages,
        "hetlora": program.strip(), "threads": arguments.threads,
        "when_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.readlines()
    except OSError:
        return []


def counts(entry: dict) -> bool:
    """Does this system's time count?"""
    return bool(entry.get("gate", {}).get("passed") and entry["round_s"])


def rows(result: dict) -> list[dict]:
    """One row per system: medians and ratios; times only of systems that passed the gate."""
    systems = result["systems"]
    tokens = statistics.mean(result["tokens_per_round"])
    tokens /= result["workload"]["clients_per_round"] * result["workload"]["steps"]
    # Rounds of ragged windows differ in tokens: what counts is the time per token, for the mean client step's tokens.
    samples = {
        name: [1000 * s / n * tokens for s, n in zip(entry["round_s"], entry["round_tokens"], strict=True)]
        for name, entry in systems.items()
        if counts(entry)
    }
    ms = {name: statistics.median(values) for name, values in samples.items()}
    out = []
    for name, entry in systems.items():
        row = {"system": name, "precision": SYSTEMS[name].precision, "entry": entry}
        if name in ms:
            same = [s for s in ms if SYSTEMS[s].module and SYSTEMS[s].precision == SYSTEMS[name].precision]
            best = min(same, key=ms.get, default=None)
            bare = "bare" if SYSTEMS[name].precision == "fp32" else "bare-autocast"
            row |= {
                "ms": ms[name], "low": min(samples[name]), "high": max(samples[name]), "samples": len(samples[name]),
                "tokens_per_s": 1000 * tokens / ms[name],
                "x_bare": ms[bare] / ms[name] if bare in ms else None, "best": best,
                "x_best": ms[best] / ms[name] if best else None,
                "start_s": statistics.median(entry["start_s"]), "peak_mib": statistics.median(entry["peak_mib"]),
            }  # fmt: skip
        out.append(row)
    return out


def table(name: str, result: dict) -> list[str]:
    """Lines of one workload."""
    w = result["workload"]
    lines = [f"## {name}", ""]
    if "not_run" in result:
        return [*lines, f"Not run: {result['not_run']}", ""]
    what = "conversations, windows of up to" if w["conversations"] else "random tokens, windows of"
    lines += [
        f"{result['weights']}; {what} {w['sequence_length']} tokens, {w['batch_size']} a client step; "
        f"{w['clients_per_round']} clients x {w['steps']} steps a round; SGD {w['learning_rate']:g}.",
        "",
        "| system | precision | ms a client step | lowest - highest | rounds | tokens/s | against bare | "
        "against best Python | peak MiB | start s | gate: loss, adapter |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(result):
        entry = row["entry"]
        gate = entry.get("gate")
        differences = f"{gate['loss']:.0e}, {gate['adapter']:.0e}" if gate else ""
        head = f"| {row['system']} | {row['precision']} "
        if "ms" not in row:
            why = "gate failed" if gate and not gate["passed"] else f"not run: {entry.get('not_run', 'no time')}"
            lines.append(f"{head}| {why} | | | | | | | | {differences} |")
            continue
        ratios = [f"{row[key]:.2f}x" if row[key] else "-" for key in ("x_bare", "x_best")]
        ratios[1] += f" ({row['best']})" if row["best"] else ""
        lines.append(
            f"{head}| {row['ms']:.3g} | {row['low']:.3g} - {row['high']:.3g} | {row['samples']} "
            f"| {row['tokens_per_s']:,.0f} | {ratios[0]} | {ratios[1]} | {row['peak_mib']:,.0f} "
            f"| {row['start_s']:.1f} | {differences} |"
        )
    return [*lines, ""]


def markdown(report: dict) -> str:
    """The whole page."""
    machine = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    limits = "; ".join(
        f"{precision}: loss {limit['loss']:g}, adapter {limit['adapter']:g}" for precision, limit in LIMITS.items()
    )
    lines = [
        "# hetlora beside other ways to run the same training", "",
        f"{machine['when_utc']} · {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB "
        f"· {machine['system']} · {machine['threads']} thread(s) each · load at the end {machine['load'][0]:.1f}",
        f"Python {machine['python']}, {packages}",
        f"{machine['hetlora'].splitlines()[0] if machine['hetlora'] else 'hetlora'}", "",
        f"Gate: over {GATE_ROUNDS} rounds the mean loss of each round and the adapter's change must equal the bare "
        f"loop's, relative limits {limits}. Times are medians over rounds, the first of each process left out; "
        "\"against\" is the ratio of medians within a precision, above 1 = faster than; bf16 systems against "
        "`bare-autocast`.", "",
    ]  # fmt: skip
    used = dict.fromkeys(system for result in report["workloads"].values() for system in result["systems"])
    lines += [*(f"- **{name}**: {SYSTEMS[name].what}" for name in used), ""]
    for name, result in report["workloads"].items():
        lines += table(name, result)
    return "\n".join([*lines, "## Deviations", "", *(f"- {text}" for text in DEVIATIONS), ""])
