// Rank self-pruning: where the tail starts, and that the decision compares with what was received.
#include "hetlora/fed/prune.hpp"

#include <gtest/gtest.h>

#include "fed_fixtures.hpp"

namespace hetlora {
namespace {

using namespace testing_fed;

Strategy with_gamma(double gamma, std::int64_t rank_min = 1) {
    Strategy s = resolve_strategy(Settings{});  // hetlora
    s.prune_gamma = gamma;
    s.rank_min = rank_min;
    return s;
}

TEST(Prune, tail_start_survives_products_just_below_an_integer) {
    EXPECT_EQ(tail_start(90, with_gamma(0.7)), 63);    // 0.7 * 90 = 62.999... in double
    EXPECT_EQ(tail_start(100, with_gamma(0.29)), 29);  // 28.999...
    EXPECT_EQ(tail_start(50, with_gamma(0.85)), 42);
    EXPECT_EQ(tail_start(10, with_gamma(0.85)), 8);
    EXPECT_EQ(tail_start(5, with_gamma(0.85)), 4);
}

TEST(Prune, gamma_of_99_percent_gives_up_one_slot_up_to_rank_100) {
    for (std::int64_t r = 2; r <= 100; ++r) EXPECT_EQ(tail_start(r, with_gamma(0.99)), r - 1) << r;
}

TEST(Prune, never_below_rank_min_and_off_at_gamma_one) {
    EXPECT_EQ(tail_start(5, with_gamma(0.1, 4)), 4);
    EXPECT_GE(tail_start(4, with_gamma(0.5, 4)), 4);  // no tail
    EXPECT_EQ(tail_start(20, with_gamma(1.0)), 20);
    auto off = with_gamma(0.5);
    off.local_extra = LocalExtra::none;
    EXPECT_EQ(tail_start(20, off), 20);
}

TEST(Prune, other_roundings) {
    auto s = with_gamma(0.85);
    s.prune_rounding = PruneRounding::nearest;
    EXPECT_EQ(tail_start(10, s), 9);   // 8.5
    EXPECT_EQ(tail_start(20, s), 17);  // 17
    s.prune_rounding = PruneRounding::ceil;
    EXPECT_EQ(tail_start(5, s), 5);    // 4.25
    EXPECT_EQ(tail_start(20, s), 17);  // 17 exactly: not 18
}

TEST(Prune, tail_norm_is_the_sum_of_products_of_block_norms) {
    const auto layout = small_layout();
    const auto factors = random_values(layout.parameters(6), 1);
    double expected = 0.0;
    for (std::size_t m = 0; m < 3; ++m) {
        double squares_a = 0.0, squares_b = 0.0;
        for (std::int64_t slot = 4; slot < 6; ++slot) {
            for (std::int64_t i = 0; i < layout.matrices[m].d_in; ++i)
                squares_a += std::pow(element(layout, factors, 6, m, 'A', slot, i), 2);
            for (std::int64_t i = 0; i < layout.matrices[m].d_out; ++i)
                squares_b += std::pow(element(layout, factors, 6, m, 'B', slot, i), 2);
        }
        expected += std::sqrt(squares_a) * std::sqrt(squares_b);
    }
    EXPECT_NEAR(tail_norm_product(layout, factors, 6, 4), expected, 1e-12);
    EXPECT_EQ(tail_norm_product(layout, factors, 6, 6), 0.0);
}

/// The factors with the slots [first_slot, end_slot) of A multiplied by c.
std::vector<double> slots_times(const AdapterLayout& layout, std::vector<double> factors, std::int64_t lora_rank,
                                std::int64_t first_slot, std::int64_t end_slot, double c) {
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto d_in = layout.matrices[m].d_in;
        for (std::int64_t i = first_slot * d_in; i < end_slot * d_in; ++i) {
            factors[static_cast<std::size_t>(layout.offset_a(m, lora_rank) + i)] *= c;
        }
    }
    return factors;
}

TEST(Prune, compares_the_trained_tail_with_the_received_one_strictly) {
    const auto layout = small_layout();
    const auto received = random_values(layout.parameters(8), 2);
    const auto s = with_gamma(0.75);
    const auto smaller = decide_prune(layout, received, slots_times(layout, received, 8, 6, 8, 0.5), 8, s);
    EXPECT_TRUE(smaller.pruned);
    EXPECT_EQ(smaller.lora_rank_after, 6);
    EXPECT_NEAR(smaller.after, 0.5 * smaller.before, 1e-12);
    EXPECT_FALSE(decide_prune(layout, received, received, 8, s).pruned);  // equal: strict <
    const auto larger = decide_prune(layout, received, slots_times(layout, received, 8, 6, 8, 2.0), 8, s);
    EXPECT_FALSE(larger.pruned);
    EXPECT_EQ(larger.lora_rank_after, 8);
    // Only the tail counts: slots before it may shrink.
    EXPECT_FALSE(decide_prune(layout, received, slots_times(layout, received, 8, 0, 6, 0.1), 8, s).pruned);
}

TEST(Prune, nobody_prunes_while_the_received_tail_is_zero) {
    const auto layout = small_layout();
    const std::vector<double> received = initial_adapter(layout, {AdapterInit::kaiming_uniform, 1, 8, true});
    const auto trained = random_values(layout.parameters(8), 3, 1e-9);
    EXPECT_FALSE(decide_prune(layout, received, trained, 8, with_gamma(0.75)).pruned);
}

TEST(Prune, against_the_initial_adapter_nobody_prunes) {
    const auto layout = small_layout();
    const auto received = random_values(layout.parameters(8), 2);
    auto s = with_gamma(0.75);
    s.prune_reference = PruneReference::initial;
    EXPECT_FALSE(decide_prune(layout, received, slots_times(layout, received, 8, 6, 8, 0.5), 8, s).pruned);
}

}  // namespace
}  // namespace hetlora
