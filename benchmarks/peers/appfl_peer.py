"""APPFL 1.12 with the bare loop's model: its own agents, scheduler and FedAvg, run serially in one process.

A client agent is a place of the round; what it trains comes in the order of the schedule. All of them share the bare
loop's model: each loads the global adapter into it, trains, and hands a copy to the server agent.
"""

from __future__ import annotations

import copy
import sys
import types

import torch
from omegaconf import OmegaConf

# Rates images in appfl's data reports, not used here, and needs a torchvision built for the same kind of torch.
sys.modules["piq"] = types.ModuleType("piq")

from appfl.agent import ClientAgent, ServerAgent  # noqa: E402
from appfl.algorithm.trainer import BaseTrainer  # noqa: E402

from peers import recorder as rec  # noqa: E402
from peers.bare import BareLoop  # noqa: E402
from peers.schedule import Schedule  # noqa: E402

EXAMPLES = 1 << 30  #: of a round: APPFL weighs by whole numbers of examples

#: APPFL's own switch: unless told not to, it collects Python's garbage after every call, forty times the training in T.
OPTIONS = {"optimize_memory": False}


class LocalSteps(BaseTrainer):
    """The bare loop's local steps of one place, a round at a call; its model is the adapter."""

    def __init__(self, loop: BareLoop, adapter: torch.nn.Module, place: int) -> None:
        super().__init__(model=adapter)
        self.loop, self.place = loop, place

    def train(self, **_):
        """Called by the client agent."""
        self.nll, self.count = self.loop.local_steps(self.loop.schedule.windows[self.round, self.place])
        self.round += 1

    def get_parameters(self):
        """(adapter, facts): a copy, because the next client trains in the same place."""
        adapter = {name: values.clone() for name, values in self.model.state_dict().items()}
        return adapter, {"nll": float(self.nll), "count": self.count}


class Client(ClientAgent):
    """A client agent with a trainer at hand."""

    def __init__(self, trainer: LocalSteps) -> None:
        self.trainer = trainer
        train_configs = {"logging_output_filename": ""}  # it writes nothing
        super().__init__(
            OmegaConf.create({"client_id": f"client-{trainer.place}", "train_configs": train_configs} | OPTIONS)
        )


class Server(ServerAgent):
    """A server agent whose model is the initial adapter."""

    def __init__(self, adapter: torch.nn.Module, n_clients: int, n_rounds: int) -> None:
        self.adapter = adapter
        configs = {
            "num_clients": n_clients, "num_global_epochs": n_rounds,
            "scheduler": "SyncScheduler", "scheduler_kwargs": OPTIONS,
            "aggregator": "FedAvgAggregator",
            "aggregator_kwargs": {"client_weights_mode": "sample_size"} | OPTIONS,
        }  # fmt: skip
        super().__init__(OmegaConf.create({"client_configs": {}, "server_configs": configs | OPTIONS}))

    def _load_model(self) -> None:
        """Called by APPFL, which would read a Python file."""
        self.model = self.adapter


def main() -> None:
    """Command line."""
    parser = rec.parser("APPFL, serially in one process")
    parser.set_defaults(precision="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recorder = rec.Recorder(arguments)
    schedule = Schedule.load(arguments.schedule)
    loop = BareLoop(arguments, schedule, recorder)
    adapter = torch.nn.ParameterList(loop.parameters)  # the same tensors, which the loop's model computes with
    n_clients = schedule.weights.shape[1]
    server = Server(copy.deepcopy(adapter), n_clients, arguments.rounds)
    clients = [Client(LocalSteps(loop, adapter, place)) for place in range(n_clients)]
    received = [server.get_parameters(serial_run=True)] * n_clients
    recorder.ready()
    while not server.training_finished():
        weights = schedule.weights[len(recorder.losses)]
        futures, nll, count = [], 0.0, 0
        for client, parameters, weight in zip(clients, received, weights, strict=True):
            client.load_parameters(parameters)
            client.train()
            trained, facts = client.get_parameters()
            server.set_sample_size(client.get_id(), round(float(weight) * EXAMPLES))
            futures.append(server.global_update(client.get_id(), trained, **facts))
            nll += facts["nll"]
            count += facts["count"]
        received = [future.result() for future in futures]
        recorder.round_done(nll / count)
    recorder.write(list(received[0].values()))


if __name__ == "__main__":
    main()
