// What the server keeps from round to round, beside the clients' lora_ranks: the global adapter and the moments of its
// optimiser. (What went into the frozen base is in the engine of every mpi_rank.)
//
// D = merged - previous is the mean change of a round (aggregate = deltas); the optimiser replaces it by
//   momentum   m <- beta1 m + D;                     previous + lr m
//   adam       m <- beta1 m + (1 - beta1) D,  v <- beta2 v + (1 - beta2) D^2;   previous + lr m / (sqrt(v) + epsilon)
// (FedAvgM; FedAdam of Reddi et al., ICLR 2021, without bias correction). lr = 1 and beta1 = 0 in `momentum` is no
// optimiser at all, to the bit.
#pragma once

#include <span>
#include <vector>

#include "hetlora/fed/strategy.hpp"

namespace hetlora {

struct ServerState {
    std::vector<double> global{};   ///< canonical form at rank_max; root's counts
    std::vector<double> moment1{};  ///< root only; empty without a server optimiser
    std::vector<double> moment2{};  ///< root only; empty but for adam
};

/// Replaces `merged` by what the server's optimiser makes of its distance to state.global (unchanged without one).
/// @param round_to_fp32 what a run in fp32 computes with
void apply_server_optimizer(const Strategy& strategy, ServerState& state, std::vector<double>& merged,
                            bool round_to_fp32);

}  // namespace hetlora
