// N threads of one process that act as N MPI ranks: the federated loop is tested at several "sizes" without mpirun.
// Not for production: it says nothing about memory or speed.
#pragma once

#include <functional>

#include "hetlora/comm/transport.hpp"

namespace hetlora {

/// Runs `body` on `n_threads` threads, each with its own Transport of mpi_size n_threads, and waits for all.
/// If a thread leaves with an exception, the others get a TransportError at their next collective instead of hanging;
/// the exception of the lowest mpi_rank that is not such a TransportError is rethrown.
void run_threaded(int n_threads, const std::function<void(Transport&)>& body);

}  // namespace hetlora
