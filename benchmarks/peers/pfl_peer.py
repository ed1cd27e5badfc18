"""pfl 0.6 (pfl-research) with the bare loop's model: its own FedAvg, simulated backend and local SGD.

Users and their data come in the order of the schedule; a user's data are the windows of its local steps. One process.
"""

from __future__ import annotations

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.postprocessor.base import Postprocessor

from peers import recorder as rec
from peers.bare import BareLoop
from peers.schedule import IGNORED, Schedule


class UserWeight(Postprocessor):
    """Weighs each user's update as the schedule says; the user's id is (round, place in the round)."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def postprocess_one_user(self, *, stats, user_context):
        """Called by the backend for every user."""
        stats.reweight(float(self.weights[user_context.user_id]))
        return stats, Metrics()


class Recording(TrainingProcessCallback):
    """Hands each round's time and loss to the recorder."""

    def __init__(self, recorder: rec.Recorder, sums: list) -> None:
        self.recorder, self.sums = recorder, sums

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Called by pfl after every round."""
        self.recorder.round_done(float(sum(self.sums[0])) / sum(self.sums[1]))
        self.sums[:] = [[], []]
        return False, Metrics()


def user_data(schedule: Schedule, user: tuple[int, int]) -> PyTorchTensorDataset:
    """(inputs, targets) of all local steps of one participation, in order."""
    rows = schedule.windows[user].reshape(-1)
    return PyTorchTensorDataset([torch.from_numpy(x) for x in schedule.batch(rows)], user_id=user)


def main() -> None:
    """Command line."""
    parser = rec.parser("pfl, one process")
    parser.set_defaults(precision="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recorder = rec.Recorder(arguments)
    schedule = Schedule.load(arguments.schedule)
    loop = BareLoop(arguments, schedule, recorder)
    module, parameters = loop.model, loop.parameters
    sums: list = [[], []]  # losses and counts of the round's steps

    def loss(inputs, targets):
        logits = module(input_ids=inputs).logits
        value = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        count = int((targets != IGNORED).sum())
        sums[0].append(value.detach() * count)
        sums[1].append(count)
        return value

    # What pfl asks of a module. It evaluates in its first round, which doesn't count, and never again.
    module.loss = loss
    module.metrics = lambda inputs, targets, **_: {"nothing": Weighted(0.0, 1)}
    model = PyTorchModel(
        module,
        lambda _, lr: torch.optim.SGD(parameters, lr=lr, foreach=True),  # of the adapters only
        torch.optim.SGD(parameters, lr=1.0, foreach=True),
    )
    n_rounds, n_clients, n_steps, n_windows = schedule.windows.shape
    users = ((number, k) for number in range(n_rounds) for k in range(n_clients))
    data = FederatedDataset(lambda user: user_data(schedule, user), lambda: next(users))
    backend = SimulatedBackend(training_data=data, val_data=None, postprocessors=[UserWeight(schedule.weights)])
    algorithm_params = NNAlgorithmParams(
        central_num_iterations=arguments.rounds, evaluation_frequency=1 << 30, train_cohort_size=n_clients,
        val_cohort_size=None,
    )  # fmt: skip
    train_params = NNTrainHyperParams(
        local_batch_size=n_windows, local_num_epochs=None, local_num_steps=n_steps,
        local_learning_rate=schedule.learning_rate,
    )  # fmt: skip
    recorder.ready()
    FederatedAveraging().run(
        algorithm_params, backend, model, train_params, callbacks=[Recording(recorder, sums)],
        send_metrics_to_platform=False,
    )  # fmt: skip
    recorder.write(parameters)


if __name__ == "__main__":
    main()
