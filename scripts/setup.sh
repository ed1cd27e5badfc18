#!/usr/bin/env bash
# `make setup`: everything that hetlora needs to build and to run its tests, in two steps:
#   1. scripts/setup/system.sh   compiler, CMake, MPI, HDF5, Boost, fmt, GoogleTest (apt-get, conda or modules)
#   2. scripts/setup/python.sh   .venv with the pinned packages of requirements.txt, LibTorch among them
# A second call finds both done, takes about a second and needs no network. Settings: docs/install.md.
set -euo pipefail

here=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$here/.."
bash scripts/setup/system.sh
bash scripts/setup/python.sh
