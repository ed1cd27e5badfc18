// Norms by Gram matrices against dense products, and the weights made of them.
#include "hetlora/fed/weights.hpp"

#include <gtest/gtest.h>

#include "fed_fixtures.hpp"

namespace hetlora {
namespace {

using namespace testing_fed;

TEST(Weights, gram_norms_equal_dense_norms) {
    const auto layout = small_layout();
    for (const std::int64_t lora_rank : {1, 2, 5, 8, 13}) {
        const auto factors = random_values(layout.parameters(lora_rank), static_cast<std::uint64_t>(lora_rank));
        const auto norms = product_norms_squared(layout, factors, lora_rank);
        for (std::size_t m = 0; m < 3; ++m) {
            const double dense = dense_norm_squared(layout, factors, lora_rank, m);
            EXPECT_NEAR(norms[m], dense, 1e-12 * dense);
        }
    }
}

TEST(Weights, cancelling_slots_give_zero_and_never_a_negative_square) {
    const auto layout = small_layout();
    auto factors = random_values(layout.parameters(2), 3);
    for (std::size_t m = 0; m < 3; ++m) {  // slot 1 = slot 0 with the opposite sign of B: B A = 0 up to rounding
        const auto d_in = layout.matrices[m].d_in;
        const auto d_out = layout.matrices[m].d_out;
        const auto a = factors.begin() + layout.offset_a(m, 2);
        const auto b = factors.begin() + layout.offset_b(m, 2);
        std::copy_n(a, d_in, a + d_in);
        std::transform(b, b + d_out, b + d_out, std::negate<>{});
    }
    for (const double square : product_norms_squared(layout, factors, 2)) {
        EXPECT_GE(square, 0.0);
        EXPECT_LT(square, 1e-12);
    }
}

TEST(Weights, follow_scope_norm_and_scale) {
    const auto layout = small_layout();
    const auto factors = random_values(layout.parameters(4), 5);
    const WeightBasis basis{.factors = factors, .lora_rank = 4, .n_samples = 30.0, .lora_scale = 0.5};
    std::vector<double> norms;
    double squares = 0.0, sum = 0.0;
    for (std::size_t m = 0; m < 3; ++m) {
        const double square = dense_norm_squared(layout, factors, 4, m);
        norms.push_back(std::sqrt(square));
        squares += square;
        sum += std::sqrt(square);
    }
    Strategy s = resolve_strategy(Settings{});  // hetlora
    for (const double weight : client_weights(s, layout, basis)) EXPECT_NEAR(weight, std::sqrt(squares), 1e-12);
    s.weight_norm = WeightNorm::sum;
    for (const double weight : client_weights(s, layout, basis)) EXPECT_NEAR(weight, sum, 1e-12);
    s.weight_norm = WeightNorm::root_sum_squares;
    s.weight_scope = WeightScope::matrix;
    const auto by_matrix = client_weights(s, layout, basis);
    for (std::size_t m = 0; m < 3; ++m) EXPECT_NEAR(by_matrix[m], norms[m], 1e-12);
    s.weight_includes_scale = true;
    EXPECT_NEAR(client_weights(s, layout, basis)[1], 0.5 * norms[1], 1e-12);
    s.client_weight = ClientWeight::samples;
    EXPECT_EQ(client_weights(s, layout, basis), std::vector<double>(3, 30.0));
    s.client_weight = ClientWeight::uniform;
    EXPECT_EQ(client_weights(s, layout, basis), std::vector<double>(3, 1.0));
}

TEST(Weights, effective_rank_counts_equal_singular_values) {
    // A and B with orthonormal slots times c: n equal singular values.
    const AdapterLayout layout{{{"w", 0, "q_proj", 6, 6}}};
    for (const std::int64_t n : {1, 3, 4}) {
        std::vector<double> factors(static_cast<std::size_t>(layout.parameters(4)));
        for (std::int64_t slot = 0; slot < n; ++slot) {
            factors[static_cast<std::size_t>(slot * 6 + slot)] = 2.0;
            factors[static_cast<std::size_t>(layout.offset_b(0, 4) + slot * 6 + slot)] = 0.5;
        }
        const auto summary = summarize_product(layout, factors, 4);
        EXPECT_NEAR(summary.effective_rank, static_cast<double>(n), 1e-12);
        EXPECT_NEAR(summary.norm, std::sqrt(static_cast<double>(n)), 1e-12);
    }
    EXPECT_EQ(summarize_product(layout, std::vector<double>(48, 0.0), 4).effective_rank, 0.0);
}

}  // namespace
}  // namespace hetlora
