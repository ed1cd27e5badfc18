// The server's optimiser against its equations, value by value, and what it must not touch.
#include "hetlora/fed/server_state.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace hetlora {
namespace {

const AdapterLayout& layout() {
    static const AdapterLayout tiny{.matrices = {{"m", 0, "q_proj", 1, 2}}};
    return tiny;
}

/// lora_rank 1: A has two values, B one.
ServerStep step(Factors sent = {}) { return {.layout = layout(), .rank_max = 1, .sent = sent, .round_to_fp32 = false}; }

TEST(ServerState, momentum_is_fedavgm) {
    Strategy strategy;
    strategy.server_optimizer = ServerOptimizer::momentum;
    strategy.server_beta1 = 0.5;
    strategy.server_learning_rate = 0.25;
    ServerState state{.global = {1.0, 2.0, 3.0}};
    std::vector<double> merged{2.0, 2.0, 1.0};
    apply_server_optimizer(strategy, step(), state, merged);
    EXPECT_EQ(merged, (std::vector<double>{1.25, 2.0, 2.5}));
    state.global = merged;
    merged = {1.25, 3.0, 2.5};
    apply_server_optimizer(strategy, step(), state, merged);
    EXPECT_EQ(merged, (std::vector<double>{1.25 + 0.25 * 0.5, 2.25, 2.5 - 0.25 * 1.0}));
}

TEST(ServerState, momentum_without_memory_at_rate_one_is_no_optimiser) {
    Strategy strategy;
    strategy.server_optimizer = ServerOptimizer::momentum;
    strategy.server_beta1 = 0.0;
    ServerState state{.global = {0.5, -1.0, 8.0}};
    std::vector<double> merged{0.75, 3.0, -0.125};
    const std::vector<double> plain = merged;
    apply_server_optimizer(strategy, step(), state, merged);
    EXPECT_EQ(merged, plain);
}

TEST(ServerState, adam_is_fedadam) {
    Strategy strategy;
    strategy.server_optimizer = ServerOptimizer::adam;
    ServerState state{.global = {0.0, 0.0, 0.0}};
    std::vector<double> m(3), v(3);
    for (int round = 0; round < 4; ++round) {
        std::vector<double> merged = state.global;
        std::vector<double> expected = state.global;
        for (std::size_t i = 0; i < 3; ++i) {
            const double change = 0.1 * static_cast<double>(i) - 0.05 * round;
            merged[i] += change;
            const double seen = merged[i] - state.global[i];
            m[i] = 0.9 * m[i] + (1.0 - 0.9) * seen;
            v[i] = 0.99 * v[i] + (1.0 - 0.99) * seen * seen;
            expected[i] += m[i] / (std::sqrt(v[i]) + 1e-3);
        }
        apply_server_optimizer(strategy, step(), state, merged);
        for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(merged[i], expected[i], 1e-14);
        state.global = merged;
    }
}

TEST(ServerState, a_factor_that_nobody_sent_stays_with_its_moments) {
    for (const auto optimizer : {ServerOptimizer::momentum, ServerOptimizer::adam}) {
        Strategy strategy;
        strategy.server_optimizer = optimizer;
        ServerState state{.global = {1.0, 1.0, 1.0}};
        std::vector<double> merged{2.0, 2.0, 2.0};
        apply_server_optimizer(strategy, step(), state, merged);
        const ServerState before = state;
        state.global = merged;
        std::vector<double> next = merged;
        next[2] += 1.0;
        apply_server_optimizer(strategy, step({.a = false, .b = true}), state, next);
        EXPECT_EQ(next[0], merged[0]);
        EXPECT_EQ(next[1], merged[1]);
        EXPECT_NE(next[2], merged[2]);
        EXPECT_EQ(state.moment1[0], before.moment1[0]);
        EXPECT_NE(state.moment1[2], before.moment1[2]);
    }
}

}  // namespace
}  // namespace hetlora
