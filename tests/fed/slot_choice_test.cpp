// Scores and choices of slots, against dense rank-1 terms and counts over many draws.
#include "hetlora/fed/slot_choice.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "fed_fixtures.hpp"
#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

using testing_fed::element;
using testing_fed::random_values;
using testing_fed::small_layout;

constexpr std::int64_t small_lora_rank = 4;

/// Frobenius norm of (b - b0) a^T, or of b (a - a0)^T, of one slot, from the dense matrix.
double dense_score(const AdapterLayout& layout, const FactorChange& change, std::size_t m, std::int64_t slot) {
    const std::vector<double> before(change.received.begin(), change.received.end());
    const std::vector<double> after(change.trained.begin(), change.trained.end());
    double total = 0.0;
    for (std::int64_t row = 0; row < layout.matrices[m].d_out; ++row) {
        for (std::int64_t column = 0; column < layout.matrices[m].d_in; ++column) {
            const auto product = [&](const std::vector<double>& factors) {
                return element(layout, factors, small_lora_rank, m, 'B', slot, row) *
                       element(layout, factors, small_lora_rank, m, 'A', slot, column);
            };
            total += std::pow(product(after) - product(before), 2);
        }
    }
    return std::sqrt(total);
}

TEST(SlotScores, are_the_norms_of_the_dense_changes) {
    const AdapterLayout layout = small_layout();
    const auto received = random_values(layout.parameters(small_lora_rank), 1);
    for (const TrainedFactors factors : {TrainedFactors::a_only, TrainedFactors::b_only}) {
        auto trained = received;
        const auto change = random_values(layout.parameters(small_lora_rank), 2, 0.3);
        for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
            const bool a = factors == TrainedFactors::a_only;
            const auto begin = a ? layout.offset_a(m, small_lora_rank) : layout.offset_b(m, small_lora_rank);
            const auto count = small_lora_rank * (a ? layout.matrices[m].d_in : layout.matrices[m].d_out);
            for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(begin + count); ++i)
                trained[i] += change[i];
        }
        const FactorChange what{
            .received = received, .trained = trained, .lora_rank = small_lora_rank, .factors = factors};
        const auto scores = slot_scores(layout, what);
        ASSERT_EQ(scores.size(), 3U * small_lora_rank);
        for (std::size_t i = 0; i < scores.size(); ++i) {
            const double dense =
                dense_score(layout, what, i / small_lora_rank, static_cast<std::int64_t>(i % small_lora_rank));
            EXPECT_NEAR(scores[i], dense, 1e-12 * dense);
        }
    }
}

TEST(SlotScores, what_did_not_move_scores_zero) {
    const AdapterLayout layout = small_layout();
    const auto received = random_values(layout.parameters(small_lora_rank), 1);
    auto trained = received;
    trained[static_cast<std::size_t>(layout.offset_b(1, small_lora_rank) + 2 * layout.matrices[1].d_out)] += 1.0;
    const auto scores = slot_scores(layout, {.received = received, .trained = trained, .lora_rank = small_lora_rank});
    for (std::size_t i = 0; i < scores.size(); ++i) EXPECT_EQ(scores[i] > 0.0, i == small_lora_rank + 2) << i;
}

TEST(SlotScores, refuse_both_factors_and_wrong_sizes) {
    const AdapterLayout layout = small_layout();
    const auto adapter = random_values(layout.parameters(small_lora_rank), 1);
    const auto other = random_values(layout.parameters(3), 1);
    FactorChange change{.received = adapter, .trained = adapter, .lora_rank = small_lora_rank};
    EXPECT_NO_THROW((void)slot_scores(layout, change));
    change.trained = other;
    EXPECT_THROW((void)slot_scores(layout, change), Error);
    change = {.received = adapter, .trained = adapter, .lora_rank = small_lora_rank, .factors = TrainedFactors::both};
    EXPECT_THROW((void)slot_scores(layout, change), Error);
}

TEST(ChooseSlots, takes_the_highest_and_the_first_of_equals) {
    using Mask = std::vector<std::uint8_t>;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const std::vector<double> scores{1.0, 3.0, 2.0, nan, 2.0, 0.0, 2.0};
    EXPECT_EQ(choose_slots(scores, 0), (Mask{0, 0, 0, 0, 0, 0, 0}));
    EXPECT_EQ(choose_slots(scores, 1), (Mask{0, 1, 0, 0, 0, 0, 0}));
    EXPECT_EQ(choose_slots(scores, 3), (Mask{0, 1, 1, 0, 1, 0, 0}));
    EXPECT_EQ(choose_slots(scores, 6), (Mask{1, 1, 1, 0, 1, 1, 1}));  // NaN is the last to go
    EXPECT_EQ(choose_slots(scores, 7), (Mask{1, 1, 1, 1, 1, 1, 1}));
    EXPECT_EQ(choose_slots(scores, 100), (Mask{1, 1, 1, 1, 1, 1, 1}));
    EXPECT_THROW((void)choose_slots(scores, -1), Error);
}

TEST(MaskOfSlots, marks_them_in_every_matrix) {
    const std::vector<std::int64_t> slots{0, 2};
    EXPECT_EQ(mask_of_slots(small_layout(), 3, slots), (std::vector<std::uint8_t>{1, 0, 1, 1, 0, 1, 1, 0, 1}));
    EXPECT_THROW((void)mask_of_slots(small_layout(), 2, slots), Error);
}

TEST(RandomSlots, are_distinct_ascending_and_keyed) {
    const SlotDraw draw{.seed = 3, .round = 5, .client = 7};
    const auto slots = random_slots(draw, 64, 16);
    EXPECT_EQ(slots.size(), 16U);
    EXPECT_EQ(std::set(slots.begin(), slots.end()).size(), 16U);
    EXPECT_TRUE(std::ranges::is_sorted(slots));
    EXPECT_GE(slots.front(), 0);
    EXPECT_LT(slots.back(), 64);
    EXPECT_EQ(random_slots(draw, 64, 16), slots);
    EXPECT_NE(random_slots({.seed = 4, .round = 5, .client = 7}, 64, 16), slots);
    EXPECT_NE(random_slots({.seed = 3, .round = 6, .client = 7}, 64, 16), slots);
    EXPECT_NE(random_slots({.seed = 3, .round = 5, .client = 8}, 64, 16), slots);
    // More slots of the same draw contain the fewer ones: a client that grows keeps what it had.
    EXPECT_TRUE(std::ranges::includes(random_slots(draw, 64, 17), slots));
    EXPECT_EQ(random_slots(draw, 3, 3), (std::vector<std::int64_t>{0, 1, 2}));
    EXPECT_TRUE(random_slots(draw, 3, 0).empty());
    EXPECT_THROW((void)random_slots(draw, 3, 4), Error);
    EXPECT_THROW((void)random_slots(draw, 3, -1), Error);
}

TEST(RandomSlots, every_slot_is_equally_likely) {
    constexpr std::int64_t draws = 8000;
    std::vector<double> count(8);
    for (std::int64_t client = 0; client < draws; ++client) {
        for (const std::int64_t slot : random_slots({.seed = 1, .round = 1, .client = client}, 8, 3))
            count[static_cast<std::size_t>(slot)] += 1.0;
    }
    const double expected = draws * 3.0 / 8.0;
    const double deviation = std::sqrt(draws * 3.0 / 8.0 * 5.0 / 8.0);
    for (const double n : count) EXPECT_NEAR(n, expected, 5.0 * deviation);
}

TEST(ImportantSlots, have_the_largest_dense_energy) {
    const AdapterLayout layout = small_layout();
    const auto global = random_values(layout.parameters(small_lora_rank), 9);
    const std::vector<double> zero(global.size());
    std::vector<double> energy(small_lora_rank);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        for (std::int64_t slot = 0; slot < small_lora_rank; ++slot) {
            const double norm =
                dense_score(layout, {.received = zero, .trained = global, .lora_rank = small_lora_rank}, m, slot);
            energy[static_cast<std::size_t>(slot)] += norm * norm;
        }
    }
    const auto energies = slot_energies(layout, global, small_lora_rank);
    for (std::size_t i = 0; i < energy.size(); ++i) EXPECT_NEAR(energies[i], energy[i], 1e-12 * energy[i]);
    for (std::int64_t k = 0; k <= small_lora_rank; ++k) {
        const auto slots = important_slots(layout, global, small_lora_rank, k);
        ASSERT_EQ(std::ssize(slots), k);
        EXPECT_TRUE(std::ranges::is_sorted(slots));
        for (std::int64_t slot = 0; slot < small_lora_rank; ++slot) {  // chosen: fewer than k slots have more energy
            const auto above =
                std::ranges::count_if(energy, [&](double e) { return e > energy[static_cast<std::size_t>(slot)]; });
            EXPECT_EQ(std::ranges::binary_search(slots, slot), above < k) << "slot " << slot << ", k " << k;
        }
    }
    EXPECT_EQ(important_slots(layout, zero, small_lora_rank, 2), (std::vector<std::int64_t>{0, 1}));
    EXPECT_THROW((void)important_slots(layout, global, small_lora_rank, small_lora_rank + 1), Error);
}

}  // namespace
}  // namespace hetlora
