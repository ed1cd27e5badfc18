"""Flower 1.41 with the bare loop's model: its own FedAvg and simulation engine (Ray), one client at a time.

Clients come in the order of the schedule; adapters travel as Flower sends them, as NumPy arrays between the server's
process and the one that trains, which keeps its model between clients.
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.client import ClientApp
from flwr.common import Context, FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

from peers import recorder as rec
from peers.flower_client import Participant
from peers.schedule import Schedule


class Recorded(FedAvg):
    """Flower's FedAvg, told who trains, with the clock and the losses of the recorder."""

    def __init__(self, schedule: Schedule, recorder: rec.Recorder) -> None:
        self.schedule, self.recorder = schedule, recorder
        self.adapter = schedule.initial
        super().__init__(fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters(schedule.initial))

    def configure_fit(self, server_round, parameters, client_manager):
        """Every place of the round to one of Flower's nodes."""
        n_clients = self.schedule.weights.shape[1]
        client_manager.wait_for(n_clients)
        if server_round == 1:
            self.recorder.ready()
        nodes = client_manager.sample(n_clients)
        return [
            (node, FitIns(parameters, {"number": server_round - 1, "place": place})) for place, node in enumerate(nodes)
        ]

    def aggregate_fit(self, server_round, results, failures):
        """Flower's average; then the round is over."""
        if failures:
            raise RuntimeError(f"round {server_round}: {failures[0]}")
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        facts = [answer.metrics for _, answer in results]
        self.adapter = parameters_to_ndarrays(mean)
        self.recorder.round_done(sum(x["nll"] for x in facts) / sum(x["count"] for x in facts))
        self.recorder.peak_elsewhere_mib = max(x["peak_mib"] for x in facts)
        self.recorder.facts |= {key: facts[0][key] for key in facts[0].keys() - {"nll", "count", "peak_mib"}}
        return mean, metrics


def main() -> None:
    """Command line."""
    arguments = rec.parser("Flower's simulation").parse_args()
    torch.set_num_threads(arguments.threads)
    recorder = rec.Recorder(arguments)
    schedule = Schedule.load(arguments.schedule)
    strategy = Recorded(schedule, recorder)
    options = tuple({**vars(arguments), "precision": "fp32"}.items())

    def client_fn(_context: Context):
        return Participant(options).to_client()

    def server_fn(_context: Context) -> ServerAppComponents:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=arguments.rounds))

    run_simulation(
        ServerApp(server_fn=server_fn), ClientApp(client_fn=client_fn), num_supernodes=schedule.weights.shape[1],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 1, "include_dashboard": False},
        },
    )  # fmt: skip
    recorder.write([torch.from_numpy(np.asarray(values)) for values in strategy.adapter])


if __name__ == "__main__":
    main()
