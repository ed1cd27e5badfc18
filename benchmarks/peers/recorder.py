"""The common command line of the peers, and what a peer's process leaves behind for the driver."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from peers.schedule import Schedule


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every peer has."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the base model")
    out.add_argument("--schedule", type=Path, required=True, help="schedule.npz")
    out.add_argument("--rounds", type=int, required=True)
    out.add_argument("--out", type=Path, required=True, help="JSON file to write; the adapter goes beside it")
    out.add_argument("--threads", type=int, default=1)
    out.add_argument("--attention", default="auto", help="name of an implementation; auto = the fastest of a short try")
    out.add_argument("--started", type=float, default=0.0, help="time.time() when the process was started")
    return out


class Recorder:
    """Seconds and mean loss of each round; the adapter at the end."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.round_s: list[float] = []
        self.losses: list[float] = []
        self.not_startup_s = 0.0  #: spent on choosing an implementation
        self.start_s = 0.0
        self.peak_elsewhere_mib = 0.0  #: of the process that trains, where it is another one
        self.facts: dict = {}

    def ready(self) -> None:
        """The next thing is the first training step."""
        if self.arguments.started:
            self.start_s = time.time() - self.arguments.started - self.not_startup_s
        self._clock = time.perf_counter()

    def round_done(self, mean_loss: float) -> None:
        """A round has ended, its average is made."""
        self.round_s.append(time.perf_counter() - self._clock)
        self.losses.append(mean_loss)
        self._clock = time.perf_counter()

    def write(self, adapter: list[torch.Tensor]) -> None:
        """Writes the JSON file and the final global adapter (A and B of each matrix in turn)."""
        out = self.arguments.out
        np.savez(out.with_suffix(".npz"), *[tensor.detach().float().numpy() for tensor in adapter])
        result = {
            "round_s": self.round_s, "losses": self.losses, "start_s": self.start_s,
            "peak_mib": max(peak_mib(), self.peak_elsewhere_mib),
            "facts": self.facts | {"torch": torch.__version__},
        }  # fmt: skip
        out.write_text(json.dumps(result))


def peak_mib() -> float:
    """Largest resident memory of this process. (ru_maxrss begins at the size of the process which started it.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


def fastest(candidates: dict[str, Callable[[], object]], recorder: Recorder, name: str, tries: int = 2) -> str:
    """The name of the candidate with the shortest run; after one run each that doesn't count."""
    begin = time.perf_counter()
    seconds = dict.fromkeys(candidates, float("inf"))
    for attempt in range(tries + 1):
        for key, run in candidates.items():
            clock = time.perf_counter()
            run()
            if attempt > 0:
                seconds[key] = min(seconds[key], time.perf_counter() - clock)
    recorder.not_startup_s += time.perf_counter() - begin
    best = min(seconds, key=seconds.get)
    recorder.facts[name] = best
    return best


def run(arguments: argparse.Namespace, make_peer: Callable[[argparse.Namespace, Schedule, Recorder], object]) -> None:
    """Trains all rounds with a peer that has `train_round(number) -> mean loss` and `adapter()`."""
    torch.set_num_threads(arguments.threads)
    recorder = Recorder(arguments)
    schedule = Schedule.load(arguments.schedule)
    peer = make_peer(arguments, schedule, recorder)
    recorder.ready()
    for number in range(arguments.rounds):
        recorder.round_done(peer.train_round(number))
    recorder.write(peer.adapter())
