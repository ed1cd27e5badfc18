#include "hetlora/fed/server_state.hpp"

#include <cmath>

namespace hetlora {

namespace {

/// One value's step; moves the moments.
double step_of(const Strategy& strategy, ServerState& state, std::size_t i, double change) {
    double& m = state.moment1[i];
    if (strategy.server_optimizer == ServerOptimizer::momentum) {
        m = strategy.server_beta1 * m + change;
        return m;
    }
    double& v = state.moment2[i];
    m = strategy.server_beta1 * m + (1.0 - strategy.server_beta1) * change;
    v = strategy.server_beta2 * v + (1.0 - strategy.server_beta2) * change * change;
    return m / (std::sqrt(v) + strategy.server_epsilon);
}

}  // namespace

void apply_server_optimizer(const Strategy& strategy, const ServerStep& round, ServerState& state,
                            std::vector<double>& merged) {
    if (strategy.server_optimizer == ServerOptimizer::none) return;
    state.moment1.resize(merged.size());
    if (strategy.server_optimizer == ServerOptimizer::adam) state.moment2.resize(merged.size());
    std::size_t i = 0;
    for (const AdaptedMatrix& matrix : round.layout.matrices) {
        for (const bool is_a : {true, false}) {
            const auto end = i + static_cast<std::size_t>(round.rank_max * (is_a ? matrix.d_in : matrix.d_out));
            if (is_a ? round.sent.a : round.sent.b) {
                for (; i < end; ++i) {
                    const double step = step_of(strategy, state, i, merged[i] - state.global[i]);
                    const double value = state.global[i] + strategy.server_learning_rate * step;
                    merged[i] = round.round_to_fp32 ? static_cast<double>(static_cast<float>(value)) : value;
                }
            }
            i = end;
        }
    }
}

}  // namespace hetlora
