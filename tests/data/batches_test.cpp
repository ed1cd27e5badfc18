// The order of training batches: its definition, and what must not change it.
#include "hetlora/data/batches.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

const BatchOrder ten_windows{.seed_data = 3, .client = 7, .round = 2, .n_windows = 10, .batch_size = 4};

TEST(Batches, steps_per_epoch_rounds_up) {
    const auto steps = [](std::int64_t n, std::int64_t b) {
        return steps_per_epoch({.n_windows = n, .batch_size = b});
    };
    EXPECT_EQ(steps(10, 4), 3);
    EXPECT_EQ(steps(8, 4), 2);
    EXPECT_EQ(steps(1, 4), 1);
    EXPECT_EQ(steps(5, 1), 5);
}

TEST(Batches, an_epoch_uses_every_window_once) {
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
        std::multiset<std::int64_t> seen;
        for (std::int64_t j = 0; j < 3; ++j) {
            const auto batch = batch_windows(ten_windows, epoch * 3 + j);
            EXPECT_EQ(batch.size(), j == 2 ? 2U : 4U);
            seen.insert(batch.begin(), batch.end());
        }
        EXPECT_EQ(seen, (std::multiset<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
    }
}

TEST(Batches, are_slices_of_the_hash_sorted_permutation) {
    std::vector<std::int64_t> expected{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    std::ranges::sort(expected, {}, [](std::int64_t i) { return hash_seed(3, Purpose::data_order, 7, 2, 1, i); });
    EXPECT_EQ(epoch_permutation(ten_windows, 1), expected);
    EXPECT_EQ(batch_windows(ten_windows, 4), std::vector<std::int64_t>(expected.begin() + 4, expected.begin() + 8));
}

TEST(Batches, depend_on_every_coordinate) {
    const auto base = epoch_permutation({.seed_data = 1, .client = 1, .round = 1, .n_windows = 50, .batch_size = 5}, 0);
    EXPECT_NE(base, epoch_permutation({.seed_data = 2, .client = 1, .round = 1, .n_windows = 50, .batch_size = 5}, 0));
    EXPECT_NE(base, epoch_permutation({.seed_data = 1, .client = 2, .round = 1, .n_windows = 50, .batch_size = 5}, 0));
    EXPECT_NE(base, epoch_permutation({.seed_data = 1, .client = 1, .round = 2, .n_windows = 50, .batch_size = 5}, 0));
    EXPECT_NE(base, epoch_permutation({.seed_data = 1, .client = 1, .round = 1, .n_windows = 50, .batch_size = 5}, 1));
    EXPECT_EQ(base, epoch_permutation({.seed_data = 1, .client = 1, .round = 1, .n_windows = 50, .batch_size = 9}, 0));
}

TEST(Batches, a_batch_larger_than_the_data_holds_each_window_once) {
    const auto batch = batch_windows({.n_windows = 3, .batch_size = 8}, 5);
    EXPECT_EQ(std::set<std::int64_t>(batch.begin(), batch.end()), (std::set<std::int64_t>{0, 1, 2}));
}

TEST(Batches, first_positions_are_uniform) {
    // 5,000 permutations of 5: each index comes first about 1,000 times (sd 28).
    std::vector<int> first(5, 0);
    for (std::int64_t client = 0; client < 5000; ++client) {
        ++first[static_cast<std::size_t>(
            batch_windows({.client = client, .n_windows = 5, .batch_size = 1}, 0).front())];
    }
    for (const int count : first) EXPECT_NEAR(count, 1000, 150);
}

TEST(Batches, impossible_orders_are_errors) {
    EXPECT_THROW((void)steps_per_epoch({.n_windows = 0, .batch_size = 4}), Error);
    EXPECT_THROW((void)steps_per_epoch({.n_windows = 4, .batch_size = 0}), Error);
    EXPECT_THROW((void)batch_windows(ten_windows, -1), Error);
}

}  // namespace
}  // namespace hetlora
