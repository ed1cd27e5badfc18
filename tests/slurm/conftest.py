"""The fixtures of every file here: one Slurm and one reference run for all of them."""

import pytest
from slurm_cluster import Slurm
from world import ROUNDS, World


@pytest.fixture(scope="session")
def slurm():
    cluster = Slurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("slurm"), ROUNDS)
