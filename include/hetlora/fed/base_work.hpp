// The clients' side of a round where the base itself is trained (trainable = base): one client after another trains a
// copy of all weights (train/full_training.hpp), and its change goes into the sums of this mpi_rank.
#pragma once

#include <cstdint>
#include <span>

#include "hetlora/fed/client_work.hpp"

namespace hetlora {

/// Trains the clients of these packs from the engine's weights, which stay as they are.
/// @pre work.base has as many sums as there are weights
void train_base_packs(const RoundContext& context, const RoundPlan& plan, std::span<const std::int64_t> packs,
                      ClientWork& work);

}  // namespace hetlora
