#include "hetlora/fed/server_state.hpp"

#include <cmath>

namespace hetlora {

void apply_server_optimizer(const Strategy& strategy, ServerState& state, std::vector<double>& merged,
                            bool round_to_fp32) {
    if (strategy.server_optimizer == ServerOptimizer::none) return;
    const bool adam = strategy.server_optimizer == ServerOptimizer::adam;
    const double beta1 = strategy.server_beta1;
    const double beta2 = strategy.server_beta2;
    state.moment1.resize(merged.size());
    if (adam) state.moment2.resize(merged.size());
    for (std::size_t i = 0; i < merged.size(); ++i) {
        const double change = merged[i] - state.global[i];
        double& m = state.moment1[i];
        double step = 0.0;
        if (adam) {
            double& v = state.moment2[i];
            m = beta1 * m + (1.0 - beta1) * change;
            v = beta2 * v + (1.0 - beta2) * change * change;
            step = m / (std::sqrt(v) + strategy.server_epsilon);
        } else {
            m = beta1 * m + change;
            step = m;
        }
        const double value = state.global[i] + strategy.server_learning_rate * step;
        merged[i] = round_to_fp32 ? static_cast<double>(static_cast<float>(value)) : value;
    }
}

}  // namespace hetlora
