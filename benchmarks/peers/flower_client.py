"""What a training process of the Flower peer holds: a module of its own, so that Ray's processes import it by name."""

from __future__ import annotations

import argparse
import functools

import torch
from flwr.client import NumPyClient

from peers import recorder as rec
from peers.bare import BareLoop
from peers.schedule import Schedule

EXAMPLES = 1 << 30  #: of a round: Flower weighs by whole numbers of examples


@functools.cache
def bare_loop(options: tuple) -> tuple[BareLoop, rec.Recorder]:
    """The model of a training process, made once in each."""
    arguments = argparse.Namespace(**dict(options))
    torch.set_num_threads(arguments.threads)
    recorder = rec.Recorder(arguments)
    return BareLoop(arguments, Schedule.load(arguments.schedule), recorder), recorder


class Participant(NumPyClient):
    """Whoever trains in this place of this round."""

    def __init__(self, options: tuple) -> None:
        self.options = options

    def fit(self, parameters, config):
        """The client's local steps. Called by Flower."""
        loop, recorder = bare_loop(self.options)
        with torch.no_grad():
            torch._foreach_copy_(loop.parameters, [torch.from_numpy(values) for values in parameters])
        nll, count = loop.local_steps(loop.schedule.windows[config["number"], config["place"]])
        weight = loop.schedule.weights[config["number"], config["place"]]
        facts = {"nll": float(nll), "count": count, "peak_mib": rec.peak_mib()} | recorder.facts
        return [values.detach().numpy() for values in loop.parameters], round(float(weight) * EXAMPLES), facts
