// Brings what a trace records (adapters sent, windows and losses of every step) from all mpi_ranks to root.
#pragma once

#include <span>
#include <vector>

#include "hetlora/comm/transport.hpp"
#include "hetlora/fed/round.hpp"

namespace hetlora {

/// @return on root all traced clients in cohort order, elsewhere nothing
[[nodiscard]] std::vector<TracedClient> gather_trace(Transport& transport, std::span<const TracedClient> mine);

}  // namespace hetlora
