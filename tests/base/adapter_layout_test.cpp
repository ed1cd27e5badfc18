#include "hetlora/base/adapter_layout.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "hetlora/base/error.hpp"
#include "two_matrices.hpp"

namespace hetlora {
namespace {

using test::two_matrices;

std::vector<double> ascending(std::int64_t n) {
    std::vector<double> values(static_cast<std::size_t>(n));
    std::iota(values.begin(), values.end(), 1.0);
    return values;
}

std::vector<double> resized(const std::vector<double>& from, std::int64_t from_rank, std::int64_t to_rank) {
    const auto layout = two_matrices();
    std::vector<double> to(static_cast<std::size_t>(layout.parameters(to_rank)), -1.0);
    resize_adapter<double>(layout, from, from_rank, to, to_rank);
    return to;
}

TEST(AdapterLayout, counts_parameters_and_offsets_by_hand) {
    const auto layout = two_matrices();

    EXPECT_EQ(layout.parameters_per_slot(), 10);
    EXPECT_EQ(layout.parameters(3), 30);
    EXPECT_EQ(layout.offset_a(0, 3), 0);
    EXPECT_EQ(layout.offset_b(0, 3), 6);
    EXPECT_EQ(layout.offset_a(1, 3), 15);
    EXPECT_EQ(layout.offset_b(1, 3), 27);
}

TEST(ResizeAdapter, pad_then_truncate_is_the_identity) {
    const auto layout = two_matrices();
    for (std::int64_t lora_rank = 1; lora_rank <= 4; ++lora_rank) {
        const auto values = ascending(layout.parameters(lora_rank));

        EXPECT_EQ(resized(resized(values, lora_rank, 7), 7, lora_rank), values);
    }
}

TEST(ResizeAdapter, padding_adds_zero_slots_after_the_own_ones) {
    const auto padded = resized(ascending(10), 1, 2);

    EXPECT_EQ(padded, (std::vector<double>{1, 2, 0, 0, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 0, 0, 0, 0, 10, 0}));
}

TEST(ResizeAdapter, truncation_keeps_leading_slots) {
    const auto cut = resized(ascending(20), 2, 1);

    EXPECT_EQ(cut, (std::vector<double>{1, 2, 5, 6, 7, 11, 12, 13, 14, 19}));
}

TEST(ResizeAdapter, wrong_sizes_are_refused) {
    const auto layout = two_matrices();
    std::vector<double> to(10);

    EXPECT_THROW(resize_adapter<double>(layout, std::vector<double>(9), 1, to, 1), Error);
    EXPECT_THROW(resize_adapter<double>(layout, std::vector<double>(10), 1, to, 2), Error);
}

std::vector<double> selected(const std::vector<double>& from, std::int64_t from_rank,
                             const std::vector<std::int64_t>& slots) {
    const auto layout = two_matrices();
    std::vector<double> to(static_cast<std::size_t>(layout.parameters(std::ssize(slots))), -1.0);
    select_slots<double>(layout, from, from_rank, slots, to);
    return to;
}

TEST(SelectSlots, takes_these_slots_of_every_matrix) {
    // lora_rank 3: A [3, 2] = 1..6, Bt [3, 3] = 7..15, A [3, 4] = 16..27, Bt [3, 1] = 28..30.
    const auto some = selected(ascending(30), 3, {2, 0});

    EXPECT_EQ(some, (std::vector<double>{5, 6, 1, 2, 13, 14, 15, 7, 8, 9, 24, 25, 26, 27, 16, 17, 18, 19, 30, 28}));
    EXPECT_TRUE(selected(ascending(30), 3, {}).empty());
}

TEST(SelectSlots, the_leading_ones_are_a_truncation) {
    const auto values = ascending(50);
    for (std::int64_t k = 1; k <= 5; ++k) {
        std::vector<std::int64_t> slots(static_cast<std::size_t>(k));
        std::iota(slots.begin(), slots.end(), 0);

        EXPECT_EQ(selected(values, 5, slots), resized(values, 5, k));
    }
}

TEST(PlaceSlots, puts_selected_slots_back_and_leaves_the_others) {
    const auto layout = two_matrices();
    const auto values = ascending(40);
    const std::vector<std::int64_t> slots{3, 1};
    std::vector<double> to(40, -1.0);
    place_slots<double>(layout, selected(values, 4, slots), slots, to, 4);

    EXPECT_EQ(selected(to, 4, slots), selected(values, 4, slots));
    for (const double value : selected(to, 4, {0, 2})) EXPECT_EQ(value, -1.0);
}

TEST(PlaceSlots, wrong_sizes_and_slots_are_refused) {
    const auto layout = two_matrices();
    std::vector<double> few(10);
    std::vector<double> all(30);
    const std::vector<std::int64_t> one{1};

    EXPECT_NO_THROW(select_slots<double>(layout, all, 3, one, few));
    EXPECT_THROW(select_slots<double>(layout, few, 3, one, few), Error);
    EXPECT_THROW(select_slots<double>(layout, all, 3, one, all), Error);
    EXPECT_THROW(place_slots<double>(layout, few, one, few, 3), Error);
    for (const std::int64_t slot : {std::int64_t{-1}, std::int64_t{3}}) {
        const std::vector<std::int64_t> wrong{slot};
        EXPECT_THROW(select_slots<double>(layout, all, 3, wrong, few), Error);
        EXPECT_THROW(place_slots<double>(layout, few, wrong, all, 3), Error);
    }
}

}  // namespace
}  // namespace hetlora
