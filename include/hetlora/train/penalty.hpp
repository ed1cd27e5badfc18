// A plugin's penalty: its gradient with respect to the clients' factors, by autograd, added to the losses' gradients.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "hetlora/plugin/method.hpp"
#include "hetlora/train/client_update.hpp"

namespace hetlora {

/// One call of a plugin's penalty: the first clients of a group, all at the same step.
struct PenaltyStep {
    plugin::Method& method;
    const std::string& name;  ///< for messages
    std::int64_t round = 0;
    std::span<const std::int64_t> clients;
    std::span<const ClientStep> steps;
    at::Tensor received_CP;  ///< the adapters as received
};

/// gradient_CP += d/dtheta of the sum of the clients' penalties; padded slots stay at 0.
/// @throws Error (training) naming the client if its gradient is not finite, and what the plugin throws
void add_penalty(const PenaltyStep& step, const AdapterLayout& layout, AdapterGroup& adapters);

}  // namespace hetlora
