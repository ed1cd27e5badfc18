// The gradient of a plugin's penalty: by hand, with padding, and for two clients of one pack as for each alone.
#include "hetlora/train/penalty.hpp"

#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::hashed_factors;
using testing_train::odd_layout;
using testing_train::set_gradient;

/// weight_c/2 ||theta - received||^2 over A, and sum of B^4 over B; notes whom it was called for.
struct Quartic final : plugin::Method {
    [[nodiscard]] plugin::Parts parts() const override { return {.penalty = true}; }
    at::Tensor penalty(const plugin::PenaltyContext& context) override {
        lora_ranks = context.lora_rank_C;
        at::Tensor sum_C;
        for (std::size_t m = 0; m < context.factors.size(); ++m) {
            const at::Tensor a_C = (context.factors[m].a - context.received[m].a).square().sum({1, 2}) / 2;
            const at::Tensor both_C =
                a_C + context.factors[m].b.pow(4).sum({1, 2}) + beyond * context.factors[m].a.sum();
            sum_C = sum_C.defined() ? sum_C + both_C : both_C;
        }
        return sum_C;
    }
    at::Tensor lora_ranks;
    double beyond = 0.0;  ///< pulls at all slots, padded ones too
};

/// A pack of clients with hashed adapters, and what they had received.
struct PenalisedPack {
    AdapterLayout layout = odd_layout();
    std::vector<std::int64_t> lora_ranks;
    AdapterGroup group;
    at::Tensor received_CP;
    std::vector<std::int64_t> clients;
    std::vector<ClientStep> steps;

    explicit PenalisedPack(const std::vector<int>& numbers)
        : group(layout, std::ssize(numbers), 8, true, at::TensorOptions().dtype(at::kDouble)) {
        for (const int number : numbers) {
            const auto c = std::ssize(clients);
            lora_ranks.push_back(3 + 2 * number);
            clients.push_back(number);
            steps.push_back({.lora_rank = lora_ranks.back(), .tail_start = lora_ranks.back(), .step = 2});
            group.set(c, hashed_factors(layout, 10 + number, lora_ranks.back()), lora_ranks.back());
        }
        received_CP = group.theta_CP.clone();
        for (std::size_t c = 0; c < clients.size(); ++c) {
            const auto number = static_cast<int>(clients[c]);
            group.set(static_cast<std::int64_t>(c), hashed_factors(layout, number, lora_ranks[c]), lora_ranks[c]);
            set_gradient(group, layout, static_cast<std::int64_t>(c),
                         hashed_factors(layout, 20 + number, lora_ranks[c]), lora_ranks[c]);
        }
    }
    void add(plugin::Method& method) {
        add_penalty({.method = method,
                     .name = "my.so",
                     .round = 4,
                     .clients = clients,
                     .steps = steps,
                     .received_CP = received_CP},
                    layout, group);
    }
    [[nodiscard]] std::vector<double> gradient(std::int64_t c) const {
        return group.get_gradient(c, lora_ranks[static_cast<std::size_t>(c)]);
    }
};

/// The loss's gradient plus theta - received on A and 4 b^3 on B.
std::vector<double> by_hand(const AdapterLayout& layout, int number) {
    const std::int64_t lora_rank = 3 + 2 * number;
    const auto theta = hashed_factors(layout, number, lora_rank);
    const auto received = hashed_factors(layout, 10 + number, lora_rank);
    auto gradient = hashed_factors(layout, 20 + number, lora_rank);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto first_a = static_cast<std::size_t>(layout.offset_a(m, lora_rank));
        const auto first_b = static_cast<std::size_t>(layout.offset_b(m, lora_rank));
        const auto end = first_b + static_cast<std::size_t>(lora_rank * layout.matrices[m].d_out);
        for (std::size_t i = first_a; i < first_b; ++i) gradient[i] += theta[i] - received[i];
        for (std::size_t i = first_b; i < end; ++i) gradient[i] += 4.0 * theta[i] * theta[i] * theta[i];
    }
    return gradient;
}

TEST(Penalty, gradients_of_a_pack_are_those_by_hand) {
    PenalisedPack pack({0, 1, 2});
    Quartic method;
    pack.add(method);
    EXPECT_EQ(method.lora_ranks[2].item<std::int64_t>(), 7);
    for (int c = 0; c < 3; ++c) {
        const auto expected = by_hand(pack.layout, c);
        const auto found = pack.gradient(c);
        ASSERT_EQ(found.size(), expected.size());
        for (std::size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-14) << c << " " << i;
    }
}

TEST(Penalty, a_client_cannot_tell_that_it_was_batched) {
    PenalisedPack pack({0, 1});
    Quartic method;
    pack.add(method);
    for (int c = 0; c < 2; ++c) {
        PenalisedPack alone({c});
        alone.add(method);
        EXPECT_EQ(pack.gradient(c), alone.gradient(0));
    }
}

TEST(Penalty, clients_whose_steps_are_over_and_padded_slots_get_nothing) {
    PenalisedPack pack({0, 1});
    const auto before = pack.gradient(1);
    pack.clients.pop_back();  // the second client has fewer steps
    pack.steps.pop_back();
    Quartic method;
    method.beyond = 1.0;
    pack.add(method);
    EXPECT_EQ(pack.gradient(1), before);
    EXPECT_NE(pack.gradient(0), by_hand(pack.layout, 0));
    const auto padded = pack.group.get_gradient(0, 8);
    const std::vector<double> own = pack.gradient(0);
    double all = 0.0, of_own = 0.0;
    for (const double x : padded) all += std::abs(x);
    for (const double x : own) of_own += std::abs(x);
    EXPECT_DOUBLE_EQ(all, of_own);
}

TEST(Penalty, a_gradient_that_is_not_finite_names_the_client) {
    struct Root final : plugin::Method {
        [[nodiscard]] plugin::Parts parts() const override { return {.penalty = true}; }
        at::Tensor penalty(const plugin::PenaltyContext& context) override {
            return (context.factors[1].b - context.received[1].b).square().sum({1, 2}).sqrt();
        }
    } root;
    PenalisedPack pack({0, 1});
    pack.received_CP[1].copy_(pack.group.theta_CP[1]);  // a root of 0 has no gradient
    try {
        pack.add(root);
        FAIL() << "not refused";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::training);
        const std::string text = error.what();
        EXPECT_NE(text.find("strategy.plugin my.so: penalty in round 4: its gradient for client 1"), std::string::npos)
            << text;
    }
}

}  // namespace
}  // namespace hetlora
