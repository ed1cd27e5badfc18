#include "hetlora/base/adapter_layout.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

AdapterLayout two_matrices() {
    return {.matrices = {{.name = "layers.0.q_proj", .layer = 0, .target = "q_proj", .d_out = 3, .d_in = 2},
                         {.name = "layers.0.v_proj", .layer = 0, .target = "v_proj", .d_out = 1, .d_in = 4}}};
}

std::vector<double> counted(std::int64_t n) {
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
        const auto values = counted(layout.parameters(lora_rank));

        EXPECT_EQ(resized(resized(values, lora_rank, 7), 7, lora_rank), values);
    }
}

TEST(ResizeAdapter, padding_adds_zero_slots_after_the_own_ones) {
    const auto padded = resized(counted(10), 1, 2);

    EXPECT_EQ(padded, (std::vector<double>{1, 2, 0, 0, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 0, 0, 0, 0, 10, 0}));
}

TEST(ResizeAdapter, truncation_keeps_leading_slots) {
    const auto cut = resized(counted(20), 2, 1);

    EXPECT_EQ(cut, (std::vector<double>{1, 2, 5, 6, 7, 11, 12, 13, 14, 19}));
}

TEST(ResizeAdapter, wrong_sizes_are_refused) {
    const auto layout = two_matrices();
    std::vector<double> to(10);

    EXPECT_THROW(resize_adapter<double>(layout, std::vector<double>(9), 1, to, 1), Error);
    EXPECT_THROW(resize_adapter<double>(layout, std::vector<double>(10), 1, to, 2), Error);
}

}  // namespace
}  // namespace hetlora
