// What happens to one client's adapter after the backward of a local step: tail regulariser, proximal term, frozen
// elements, clipping, optimiser.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/model/lora.hpp"
#include "hetlora/train/local_training.hpp"
#include "hetlora/train/trained_elements.hpp"

namespace hetlora {

/// What the updates of a group's clients keep from step to step. Fresh at each participation.
struct OptimizerState {
    OptimizerState() = default;
    OptimizerState(const AdapterGroup& adapters, OptimizerKind kind);
    at::Tensor moment1_CP;  ///< first and second moments, laid out like the adapters; undefined for SGD
    at::Tensor moment2_CP;
    at::Tensor received_CP;                ///< the adapters as received; needed where options.prox_mu > 0
    std::vector<TrainedElements> trained;  ///< by client; empty: everything trains. Fixed from the first update on
    at::Tensor frozen_CP;                  ///< update_clients_aten's form of `trained`, made when it is first needed
    at::Tensor factor_P;                   ///< update_clients_aten's map of a row, made when it is first needed
    at::Tensor slot_P;
};

struct ClientStep {
    std::int64_t lora_rank = 0;
    std::int64_t tail_start = 0;
    std::int64_t step = 1;  ///< 1-based step of this participation
};

/// gradient += d/dtheta of lambda * sum_m ||B_m tail|| ||A_m tail|| + mu/2 ||theta - received||^2; then gradient = 0
/// where nothing trains; then gradient *= min(1, clip / (norm + 1e-6)); then one optimiser step on what trains of the
/// client's row. The norms of the tails are over frozen elements, too. @pre the adapters live on the CPU
void update_client(AdapterGroup& adapters, OptimizerState& state, std::int64_t client, const AdapterLayout& layout,
                   const ClientStep& step, const LocalOptions& options);

/// update_client for the first clients of a group; without kernels for them (ops::has_kernels) update_clients_aten.
void update_clients(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                    std::span<const ClientStep> clients, const LocalOptions& options);

/// The same on any device: whole arenas at once, every norm a client's own, and nothing waits for the device.
/// @pre all clients are at the same step
void update_clients_aten(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                         std::span<const ClientStep> clients, const LocalOptions& options);

}  // namespace hetlora
