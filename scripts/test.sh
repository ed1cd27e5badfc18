#!/usr/bin/env bash
# `make test`: builds everything, then CTest (C++, MPI at several sizes), then pytest. Both run even if the first fails;
# the exit code is non-zero if either does. HETLORA_TEST_LONG=1 (`make test-long`) is passed on to every test.
set -uo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.." || exit 4

cmake --build --preset release -j "${JOBS:-2}" || exit

# Two at a time: a test under mpirun counts as two (PROCESSORS in cmake/Testing.cmake), so it runs by itself.
scripts/test_models.sh

ctest --preset release -j 2 --output-on-failure --no-tests=error
ctest_code=$?
# Three files at a time, the longest first (tests/conftest.py): most of them wait for programs of one thread, those of
# tests/slurm for a Slurm of their own.
.venv/bin/python -m pytest -q -n "${HETLORA_TEST_WORKERS:-3}" --dist loadfile --no-loadscope-reorder \
    tests/python tests/setup tests/slurm
pytest_code=$?

[ $ctest_code -eq 0 ] || echo "make test: CTest failed (exit code $ctest_code): see its summary above pytest's" >&2
[ $pytest_code -eq 0 ] || echo "make test: pytest failed (exit code $pytest_code)" >&2
exit $((ctest_code != 0 ? ctest_code : pytest_code))
