// The update of many clients at once, as a GPU runs it, against the CPU's loop over clients.
#include <gtest/gtest.h>

#include <limits>

#include "hetlora/train/client_update.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::hashed_factors;
using testing_train::odd_layout;

constexpr std::array<std::int64_t, 4> ranks_of_clients{3, 8, 5, 6};

/// Four clients after `steps` updates; the last one stops a step early.
struct Updated {
    AdapterGroup group;
    OptimizerState state;

    template <typename Update>
    Updated(at::ScalarType dtype, const LocalOptions& options, std::int64_t steps, Update update)
        : group(odd_layout(), 4, 8, true, at::TensorOptions().dtype(dtype)), state(group, options.optimizer) {
        std::vector<std::vector<double>> start;
        std::vector<ClientFactors> factors;
        for (int c = 0; c < 4; ++c) start.push_back(hashed_factors(odd_layout(), c, ranks_of_clients[c]));
        for (std::size_t c = 0; c < 4; ++c)
            factors.push_back({.canonical = start[c], .lora_rank = ranks_of_clients[c]});
        group.set_all(factors);
        AdapterGroup gradient(odd_layout(), 4, 8, false, group.theta_CP.options());
        for (std::int64_t t = 1; t <= steps; ++t) {
            std::vector<ClientStep> clients;
            for (std::size_t c = 0; c < (t == steps ? 3 : 4); ++c) {
                const double size = c == 1 ? 50.0 : 1.0;
                gradient.set(static_cast<std::int64_t>(c),
                             hashed_factors(odd_layout(), static_cast<int>(9 * t) + static_cast<int>(c),
                                            ranks_of_clients[c], size),
                             ranks_of_clients[c]);
                const std::int64_t tail = c == 2 ? ranks_of_clients[c] : ranks_of_clients[c] - 2;  // client 2 has none
                clients.push_back({.lora_rank = ranks_of_clients[c], .tail_start = tail, .step = t});
            }
            group.gradient_CP.copy_(gradient.theta_CP);
            update(group, state, odd_layout(), clients, options);
        }
    }
};

void expect_the_loop(at::ScalarType dtype, const LocalOptions& options, double tolerance) {
    const Updated loop(dtype, options, 5, [](auto&&... arguments) { update_clients(arguments...); });
    const Updated aten(dtype, options, 5, [](auto&&... arguments) { update_clients_aten(arguments...); });
    EXPECT_LT((loop.group.theta_CP - aten.group.theta_CP).abs().max().item<double>(), tolerance);
    EXPECT_LT((loop.group.gradient_CP - aten.group.gradient_CP).abs().max().item<double>(), 10 * tolerance);
    // Padded slots are exactly 0 in both.
    EXPECT_TRUE(at::equal(loop.group.theta_CP.eq(0.0), aten.group.theta_CP.eq(0.0)));
}

TEST(UpdateClientsAten, equals_the_loop_over_clients) {
    for (const OptimizerKind optimizer : {OptimizerKind::adamw, OptimizerKind::sgd}) {
        LocalOptions options;
        options.optimizer = optimizer;
        options.learning_rate = 0.01;
        expect_the_loop(at::kDouble, options, 1e-13);
        options.weight_decay = 0.1;
        options.clip_norm = 1.5;
        options.tail_lambda = 0.3;
        expect_the_loop(at::kDouble, options, 1e-13);
        expect_the_loop(at::kFloat, options, 2e-6);
        options.tail_norm_epsilon = 0.02;
        expect_the_loop(at::kDouble, options, 1e-13);
    }
}

TEST(UpdateClientsAten, a_client_does_not_see_its_neighbours_nan) {
    LocalOptions options;
    options.clip_norm = 1.0;
    options.tail_lambda = 0.1;
    const auto train = [&](bool poisoned) {
        return Updated(at::kFloat, options, 3, [&](AdapterGroup& group, auto&&... rest) {
            if (poisoned) group.gradient_CP.select(0, 1).fill_(std::numeric_limits<double>::quiet_NaN());
            update_clients_aten(group, rest...);
        });
    };
    const Updated clean = train(false);
    const Updated poisoned = train(true);
    for (const std::int64_t c : {0, 2, 3}) EXPECT_TRUE(at::equal(clean.group.theta_CP[c], poisoned.group.theta_CP[c]));
    EXPECT_TRUE(poisoned.group.theta_CP[1].isnan().any().item<bool>());
}

TEST(UpdateClientsAten, is_zero_where_a_tail_is_zero) {
    LocalOptions options;
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 1.0;
    options.tail_lambda = 0.7;
    AdapterGroup group(odd_layout(), 1, 8, true, at::TensorOptions().dtype(at::kDouble));
    OptimizerState state(group, options.optimizer);
    const std::vector<ClientStep> clients{{.lora_rank = 8, .tail_start = 2, .step = 1}};
    update_clients_aten(group, state, odd_layout(), clients, options);
    EXPECT_EQ(group.theta_CP.abs().max().item<double>(), 0.0);
}

TEST(AdapterGroup, all_clients_in_one_copy_are_each_client_in_its_own) {
    std::vector<std::vector<double>> values;
    std::vector<ClientFactors> factors;
    for (int c = 0; c < 4; ++c) values.push_back(hashed_factors(odd_layout(), c, ranks_of_clients[c]));
    for (std::size_t c = 0; c < 4; ++c) factors.push_back({.canonical = values[c], .lora_rank = ranks_of_clients[c]});
    AdapterGroup one_by_one(odd_layout(), 4, 8, false, at::TensorOptions().dtype(at::kFloat));
    AdapterGroup together(odd_layout(), 4, 8, false, at::TensorOptions().dtype(at::kFloat));
    for (std::size_t c = 0; c < 4; ++c) one_by_one.set(static_cast<std::int64_t>(c), values[c], ranks_of_clients[c]);
    together.set_all(factors);
    EXPECT_TRUE(at::equal(one_by_one.theta_CP, together.theta_CP));
    const auto all = together.get_all(ranks_of_clients);
    for (std::size_t c = 0; c < 4; ++c)
        EXPECT_EQ(all[c], one_by_one.get(static_cast<std::int64_t>(c), ranks_of_clients[c]));
}

}  // namespace
}  // namespace hetlora
