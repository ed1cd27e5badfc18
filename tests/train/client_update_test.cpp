// One client's update after a backward, against loops written out by hand, PyTorch's numbers and finite differences.
#include "hetlora/train/client_update.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "hetlora/base/random.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::by_hand;
using testing_train::hashed_factors;
using testing_train::odd_layout;
using testing_train::set_gradient;
using testing_train::ValueByHand;

double norm(const std::vector<double>& values) {
    double sum = 0.0;
    for (const double x : values) sum += x * x;
    return std::sqrt(sum);
}

/// Options without decay, clipping or regulariser: tests switch on what they are about.
LocalOptions plain(OptimizerKind optimizer, double learning_rate) {
    LocalOptions options;
    options.optimizer = optimizer;
    options.learning_rate = learning_rate;
    return options;
}

void expect_updates_by_hand(at::ScalarType dtype, const LocalOptions& options, double tolerance) {
    const AdapterLayout layout = odd_layout();
    const std::int64_t lora_ranks[] = {3, 8, 5};
    AdapterGroup group(layout, 3, 8, true, at::TensorOptions().dtype(dtype));
    OptimizerState state(group, options.optimizer);
    std::vector<std::vector<ValueByHand>> expected;
    for (int c = 0; c < 3; ++c) {
        const auto start = hashed_factors(layout, c, lora_ranks[c]);
        expected.push_back(by_hand(start));
        group.set(c, start, lora_ranks[c]);
    }
    for (int t = 1; t <= 7; ++t) {
        for (int c = 0; c < 3; ++c) {
            if (t > 3 + 2 * c) continue;  // clients stop at different steps: 3, 5, 7
            const auto gradient = hashed_factors(layout, 100 * t + c, lora_ranks[c], std::pow(10.0, c - 1));
            set_gradient(group, layout, c, gradient, lora_ranks[c]);
            update_client(group, state, c, layout, {.lora_rank = lora_ranks[c], .tail_start = lora_ranks[c], .step = t},
                          options);
            auto& hand = expected[static_cast<std::size_t>(c)];
            for (std::size_t i = 0; i < hand.size(); ++i) hand[i].step(gradient[i], t, options);
        }
    }
    for (int c = 0; c < 3; ++c) {
        const auto theta = group.get(c, lora_ranks[c]);
        const auto& hand = expected[static_cast<std::size_t>(c)];
        for (std::size_t i = 0; i < theta.size(); ++i)
            ASSERT_NEAR(theta[i], hand[i].theta, tolerance) << "client " << c << ", value " << i;
    }
}

TEST(ClientUpdate, adamw_equals_the_loop_by_hand) {
    LocalOptions options = plain(OptimizerKind::adamw, 0.03);
    options.weight_decay = 0.2;
    options.beta1 = 0.8;
    options.beta2 = 0.95;
    options.epsilon = 1e-3;
    expect_updates_by_hand(at::kDouble, options, 1e-14);
    expect_updates_by_hand(at::kFloat, options, 1e-6);
}

TEST(ClientUpdate, sgd_equals_the_loop_by_hand) {
    LocalOptions options = plain(OptimizerKind::sgd, 0.03);
    options.weight_decay = 0.2;
    expect_updates_by_hand(at::kDouble, options, 1e-14);
    expect_updates_by_hand(at::kFloat, options, 1e-6);
}

TEST(ClientUpdate, adamw_has_the_numbers_of_pytorch) {
    // torch.optim.AdamW([0.5, -0.25, 2.0], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) in float64, after
    // the gradients [1, -2, 0.5], [0.1, 0.3, -4] and [0, 1e-3, 7].
    const std::vector<double> gradients[] = {{1.0, -2.0, 0.5}, {0.1, 0.3, -4.0}, {0.0, 1e-3, 7.0}};
    const double expected[] = {0.2674295419098106, -0.05163261908567122, 1.9295780893954595};
    const AdapterLayout layout{{{"m", 0, "q_proj", 1, 2}}};  // at lora_rank 1: two values of A, one of Bt
    AdapterGroup group(layout, 1, 8, true, at::TensorOptions().dtype(at::kDouble));
    LocalOptions options = plain(OptimizerKind::adamw, 0.1);
    options.weight_decay = 0.01;
    OptimizerState state(group, options.optimizer);
    group.set(0, std::vector<double>{0.5, -0.25, 2.0}, 1);
    for (int t = 1; t <= 3; ++t) {
        set_gradient(group, layout, 0, gradients[t - 1], 1);
        update_client(group, state, 0, layout, {.lora_rank = 1, .tail_start = 1, .step = t}, options);
    }
    const auto theta = group.get(0, 1);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(theta[i], expected[i], 1e-14);
}

constexpr std::int64_t tail_rank = 6;
constexpr std::int64_t tail_from = 4;

/// lambda * sum_m sqrt(||Bt tail||^2 + e) * sqrt(||A tail||^2 + e), from the canonical form.
double regulariser(const AdapterLayout& layout, const std::vector<double>& theta, double lambda, double epsilon) {
    double total = 0.0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto tail_norm = [&](std::int64_t offset, std::int64_t width) {
            double sum = epsilon;
            for (std::int64_t i = tail_from * width; i < tail_rank * width; ++i) {
                sum += theta[static_cast<std::size_t>(offset + i)] * theta[static_cast<std::size_t>(offset + i)];
            }
            return std::sqrt(sum);
        };
        total += tail_norm(layout.offset_a(m, tail_rank), layout.matrices[m].d_in) *
                 tail_norm(layout.offset_b(m, tail_rank), layout.matrices[m].d_out);
    }
    return lambda * total;
}

/// The gradient that update_client forms from a loss gradient of 0.
std::vector<double> tail_gradient(const AdapterLayout& layout, const std::vector<double>& theta, double lambda,
                                  double epsilon) {
    AdapterGroup group(layout, 1, 8, true, at::TensorOptions().dtype(at::kDouble));
    LocalOptions options = plain(OptimizerKind::sgd, 1.0);
    options.tail_lambda = lambda;
    options.tail_norm_epsilon = epsilon;
    OptimizerState state(group, options.optimizer);
    group.set(0, theta, tail_rank);
    update_client(group, state, 0, layout, {.lora_rank = tail_rank, .tail_start = tail_from, .step = 1}, options);
    const auto gradient = group.get_gradient(0, tail_rank);
    const auto moved = group.get(0, tail_rank);  // SGD at rate 1: theta - gradient
    for (std::size_t i = 0; i < theta.size(); ++i) EXPECT_DOUBLE_EQ(moved[i], theta[i] - gradient[i]);
    return gradient;
}

TEST(TailRegulariser, gradient_equals_finite_differences) {
    const AdapterLayout layout = odd_layout();
    for (const double epsilon : {0.0, 0.04}) {
        std::vector<double> theta = hashed_factors(layout, 1, tail_rank);
        const auto gradient = tail_gradient(layout, theta, 0.7, epsilon);
        double largest = 0.0;
        for (std::size_t i = 0; i < theta.size(); ++i) {
            const double kept = theta[i];
            const double h = 1e-6;
            theta[i] = kept + h;
            const double above = regulariser(layout, theta, 0.7, epsilon);
            theta[i] = kept - h;
            const double below = regulariser(layout, theta, 0.7, epsilon);
            theta[i] = kept;
            ASSERT_NEAR(gradient[i], (above - below) / (2.0 * h), 1e-8) << "value " << i << ", epsilon " << epsilon;
            largest = std::max(largest, std::abs(gradient[i]));
        }
        EXPECT_GT(largest, 0.05);
        // Slots before the tail are not touched at all.
        for (std::int64_t i = 0; i < tail_from * layout.matrices[0].d_in; ++i)
            EXPECT_EQ(gradient[static_cast<std::size_t>(i)], 0.0);
    }
}

TEST(TailRegulariser, is_zero_where_a_tail_is_zero) {
    const AdapterLayout layout = odd_layout();
    std::vector<double> theta = hashed_factors(layout, 2, tail_rank);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {  // B = 0: how every client starts
        std::fill_n(theta.begin() + layout.offset_b(m, tail_rank), tail_rank * layout.matrices[m].d_out, 0.0);
    }
    for (const double g : tail_gradient(layout, theta, 0.7, 0.0)) EXPECT_EQ(g, 0.0);
    for (const double g : tail_gradient(layout, std::vector<double>(theta.size()), 0.7, 0.0)) EXPECT_EQ(g, 0.0);

    // With an epsilon the product is smooth there: A is pulled by sqrt(e) / ||A||, B stays.
    const auto smooth = tail_gradient(layout, theta, 0.7, 0.01);
    double sum = 0.01;
    for (std::int64_t i = tail_from * 7; i < tail_rank * 7; ++i) sum += std::pow(theta[static_cast<std::size_t>(i)], 2);
    const auto first = static_cast<std::size_t>(tail_from * 7);
    EXPECT_NEAR(smooth[first], 0.7 * 0.1 / std::sqrt(sum) * theta[first], 1e-15);
    EXPECT_EQ(smooth[static_cast<std::size_t>(layout.offset_b(0, tail_rank) + tail_from * 5)], 0.0);
}

TEST(TailRegulariser, is_added_before_clipping) {
    const AdapterLayout layout = odd_layout();
    const auto theta = hashed_factors(layout, 3, tail_rank);
    AdapterGroup group(layout, 1, 8, true, at::TensorOptions().dtype(at::kDouble));
    LocalOptions options = plain(OptimizerKind::sgd, 1.0);
    options.tail_lambda = 5.0;
    options.clip_norm = 0.25;
    OptimizerState state(group, options.optimizer);
    group.set(0, theta, tail_rank);
    auto expected = hashed_factors(layout, 4, tail_rank);
    set_gradient(group, layout, 0, expected, tail_rank);
    update_client(group, state, 0, layout, {.lora_rank = tail_rank, .tail_start = tail_from, .step = 1}, options);
    const auto pull = tail_gradient(layout, theta, 5.0, 0.0);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += pull[i];
    const double factor = 0.25 / (norm(expected) + 1e-6);
    ASSERT_LT(factor, 1.0);
    const auto gradient = group.get_gradient(0, tail_rank);
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(gradient[i], factor * expected[i], 1e-14);
}

TEST(Clipping, is_each_clients_own) {
    const AdapterLayout layout = odd_layout();
    AdapterGroup group(layout, 3, 8, true, at::TensorOptions().dtype(at::kDouble));
    LocalOptions options = plain(OptimizerKind::sgd, 0.1);
    options.clip_norm = 1.0;
    OptimizerState state(group, options.optimizer);
    const double sizes[] = {1e-3, 1e6, 1e-2};  // the one in the middle is huge
    std::vector<std::vector<double>> gradients;
    for (int c = 0; c < 3; ++c) {
        group.set(c, std::vector<double>(static_cast<std::size_t>(layout.parameters(5))), 5);
        gradients.push_back(hashed_factors(layout, c, 5, sizes[c]));
        set_gradient(group, layout, c, gradients.back(), 5);
    }
    for (int c = 0; c < 3; ++c)
        update_client(group, state, c, layout, {.lora_rank = 5, .tail_start = 5, .step = 1}, options);
    for (int c = 0; c < 3; ++c) {
        const auto& g = gradients[static_cast<std::size_t>(c)];
        const double factor = c == 1 ? 1.0 / (norm(g) + 1e-6) : 1.0;
        const auto theta = group.get(c, 5);
        for (std::size_t i = 0; i < theta.size(); ++i)
            ASSERT_NEAR(theta[i], -0.1 * factor * g[i], 1e-15) << "client " << c;
    }
}

TEST(PaddedSlots, stay_exactly_zero_over_many_steps) {
    const AdapterLayout layout = odd_layout();
    AdapterGroup group(layout, 2, 8, true, at::TensorOptions().dtype(at::kFloat));
    LocalOptions options = plain(OptimizerKind::adamw, 0.05);
    options.weight_decay = 0.3;
    options.clip_norm = 0.5;
    options.tail_lambda = 0.2;
    options.tail_norm_epsilon = 0.01;
    OptimizerState state(group, options.optimizer);
    const std::int64_t lora_ranks[] = {3, 6};
    for (int c = 0; c < 2; ++c) group.set(c, hashed_factors(layout, c, lora_ranks[c]), lora_ranks[c]);
    for (int t = 1; t <= 100; ++t) {
        for (int c = 0; c < 2; ++c) {
            set_gradient(group, layout, c, hashed_factors(layout, 7 * t + c, lora_ranks[c]), lora_ranks[c]);
            update_client(group, state, c, layout,
                          {.lora_rank = lora_ranks[c], .tail_start = lora_ranks[c] - 1, .step = t}, options);
        }
    }
    for (int c = 0; c < 2; ++c) {
        for (const auto& matrix : group.matrices) {
            EXPECT_EQ(matrix.a_CWD[c].slice(0, lora_ranks[c]).abs().max().item<double>(), 0.0);
            EXPECT_EQ(matrix.bt_CWO[c].slice(0, lora_ranks[c]).abs().max().item<double>(), 0.0);
            EXPECT_GT(matrix.a_CWD[c].slice(0, 0, lora_ranks[c]).abs().min().item<double>(), 0.0);
        }
        // Moments are laid out like the adapters: as many values differ from 0 as the client has parameters.
        EXPECT_EQ(state.moment1_CP[c].count_nonzero().item<std::int64_t>(), layout.parameters(lora_ranks[c]));
        EXPECT_EQ(state.moment2_CP[c].count_nonzero().item<std::int64_t>(), layout.parameters(lora_ranks[c]));
    }
}

}  // namespace
}  // namespace hetlora
