// What the server keeps from round to round, beside the clients' lora_ranks: the global adapter and the moments of its
// optimiser. (What went into the frozen base is in the engine of every mpi_rank.)
//
// D = merged - previous is the mean change of a round (aggregate = deltas); the optimiser replaces it by
//   momentum   m <- beta1 m + D;                     previous + lr m
//   adam       m <- beta1 m + (1 - beta1) D,  v <- beta2 v + (1 - beta2) D^2;   previous + lr m / (sqrt(v) + epsilon)
// A factor that nobody sent in the round (trainable = alternate) stays as it is, with its moments.
// (FedAvgM; FedAdam of Reddi et al., ICLR 2021, without bias correction). lr = 1 and beta1 = 0 in `momentum` is no
// optimiser at all, to the bit.
#pragma once

#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

struct ServerState {
    std::vector<double> global{};   ///< canonical form at rank_max; root's counts
    std::vector<double> head{};     ///< classification: the head's values; root's count. Else empty
    std::vector<double> moment1{};  ///< root only; empty without a server optimiser
    std::vector<double> moment2{};  ///< root only; empty but for adam
    /// Of the last round's change of the base, which every client of the next cohort receives; root only.
    std::int64_t base_delta_bytes = 0;
};

/// What a step of the server's optimiser is about.
struct ServerStep {
    const AdapterLayout& layout;
    std::int64_t rank_max = 0;
    Factors sent;                ///< the factors of the round
    bool round_to_fp32 = false;  ///< what a run in fp32 computes with
};

/// Replaces `merged` by what the server's optimiser makes of its distance to state.global (unchanged without one).
void apply_server_optimizer(const Strategy& strategy, const ServerStep& round, ServerState& state,
                            std::vector<double>& merged);

}  // namespace hetlora
