// What happens to one client's adapter after the backward of a local step: tail regulariser, clipping, optimiser.
#pragma once

#include <cstdint>
#include <span>

#include "hetlora/model/lora.hpp"
#include "hetlora/train/local_training.hpp"

namespace hetlora {

/// First and second moments of a group's clients, laid out like the adapters; empty for SGD. Fresh at each
/// participation.
struct OptimizerState {
    OptimizerState() = default;
    OptimizerState(const AdapterGroup& adapters, OptimizerKind kind);
    at::Tensor moment1_CP;
    at::Tensor moment2_CP;
    at::Tensor factor_P;  ///< update_clients_aten's map of a row, made when it is first needed
    at::Tensor slot_P;
};

struct ClientStep {
    std::int64_t lora_rank = 0;
    std::int64_t tail_start = 0;
    std::int64_t step = 1;  ///< 1-based step of this participation
};

/// gradient += d/dtheta of lambda * sum_m ||B_m tail|| ||A_m tail||; then gradient *= min(1, clip / (norm + 1e-6));
/// then one optimiser step on the client's row. @pre the adapters live on the CPU
void update_client(AdapterGroup& adapters, OptimizerState& state, std::int64_t client, const AdapterLayout& layout,
                   const ClientStep& step, const LocalOptions& options);

/// update_client for the first clients of a group. On another device than the CPU it is update_clients_aten.
void update_clients(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                    std::span<const ClientStep> clients, const LocalOptions& options);

/// The same on any device: whole arenas at once, every norm a client's own, and nothing waits for the device.
/// @pre all clients are at the same step
void update_clients_aten(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                         std::span<const ClientStep> clients, const LocalOptions& options);

}  // namespace hetlora
