// The exact sum: same bits for any order, grouping and split, and right against an independent 128-bit reference.
#include "hetlora/comm/exact_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

__extension__ using int128 = __int128;

/// Rounds one fp64 product to quanta of 2^-75 by its exponent and mantissa (no trick in common with the code).
int128 quanta_of(double term) {
    if (term == 0.0) return 0;
    int exponent = 0;
    const double mantissa = std::frexp(term, &exponent);  // term = mantissa * 2^exponent
    const auto integer = static_cast<std::int64_t>(std::ldexp(mantissa, 53));
    const int shift = exponent - 53 + 75;
    if (shift >= 0) return static_cast<int128>(integer) << shift;
    if (shift < -60) return 0;
    const std::int64_t down = integer >> -shift;
    const std::int64_t rest = integer - (down << -shift);
    const std::int64_t half = std::int64_t{1} << (-shift - 1);
    if (rest > half || (rest == half && (down & 1) != 0)) return down + 1;
    return down;
}

double reference(std::span<const double> weights, const std::vector<std::vector<double>>& values, std::size_t i) {
    int128 sum = 0;
    for (std::size_t k = 0; k < weights.size(); ++k) sum += quanta_of(weights[k] * values[k][i]);
    return static_cast<double>(sum) * 0x1.0p-75;
}

constexpr double half_limit = 0.5 * ExactSum::largest_term;

struct Case {
    std::vector<double> weights;
    std::vector<std::vector<double>> values;
};

/// Uploads whose sizes span 40 orders of magnitude, of both signs.
Case random_case(std::size_t n_clients, std::size_t n_values, unsigned seed) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> exponent(-36.0, 3.0);
    Case result;
    for (std::size_t k = 0; k < n_clients; ++k) {
        result.weights.push_back(std::abs(normal(generator)) + 0.01);
        auto& values = result.values.emplace_back(n_values);
        for (auto& value : values) value = normal(generator) * std::pow(10.0, exponent(generator));
    }
    return result;
}

std::vector<double> sum_in_order(const Case& data, std::span<const std::size_t> order) {
    ExactSum sum(data.values.at(0).size());
    for (const auto k : order) sum.add(data.weights[k], data.values[k]);
    std::vector<std::int64_t> limbs(3 * sum.size());
    sum.to_limbs(0, limbs);
    std::vector<double> result(sum.size());
    ExactSum::from_limbs(limbs, result);
    return result;
}

TEST(ExactSum, equals_an_independent_reference_bit_for_bit) {
    const auto data = random_case(37, 500, 1);
    std::vector<std::size_t> order(37);
    std::iota(order.begin(), order.end(), 0u);
    const auto sums = sum_in_order(data, order);
    for (std::size_t i = 0; i < sums.size(); ++i) {
        ASSERT_EQ(std::bit_cast<std::uint64_t>(sums[i]),
                  std::bit_cast<std::uint64_t>(reference(data.weights, data.values, i)))
            << i;
    }
}

TEST(ExactSum, any_order_gives_the_same_bits) {
    const auto data = random_case(64, 200, 2);
    std::vector<std::size_t> order(64);
    std::iota(order.begin(), order.end(), 0u);
    const auto first = sum_in_order(data, order);
    std::mt19937_64 generator(3);
    for (int trial = 0; trial < 20; ++trial) {
        std::ranges::shuffle(order, generator);
        ASSERT_EQ(sum_in_order(data, order), first);
    }
}

TEST(ExactSum, any_split_over_processes_gives_the_same_bits) {
    const auto data = random_case(64, 200, 4);
    std::vector<std::size_t> order(64);
    std::iota(order.begin(), order.end(), 0u);
    const auto whole = sum_in_order(data, order);
    std::mt19937_64 generator(5);
    for (const std::size_t n_parts : {2u, 3u, 4u, 64u}) {
        std::vector<std::int64_t> total(600);
        std::vector<ExactSum> parts(n_parts, ExactSum(200));
        for (std::size_t k = 0; k < 64; ++k) parts[generator() % n_parts].add(data.weights[k], data.values[k]);
        for (const auto& part : parts) {
            std::vector<std::int64_t> limbs(600);
            part.to_limbs(0, limbs);
            for (std::size_t i = 0; i < limbs.size(); ++i) total[i] += limbs[i];
        }
        std::vector<double> sums(200);
        ExactSum::from_limbs(total, sums);
        ASSERT_EQ(sums, whole) << n_parts << " parts";
    }
}

TEST(ExactSum, agrees_with_long_double_to_the_quantum) {
    const auto data = random_case(50, 300, 6);
    std::vector<std::size_t> order(50);
    std::iota(order.begin(), order.end(), 0u);
    const auto sums = sum_in_order(data, order);
    for (std::size_t i = 0; i < sums.size(); ++i) {
        long double expected = 0.0L;
        long double size = 0.0L;
        for (std::size_t k = 0; k < 50; ++k) {
            const double term = data.weights[k] * data.values[k][i];
            expected += static_cast<long double>(term);
            size += std::abs(static_cast<long double>(term));
        }
        EXPECT_NEAR(sums[i], static_cast<double>(expected), 50 * ExactSum::quantum + 2e-16 * static_cast<double>(size));
    }
}

TEST(ExactSum, cancellation_is_exact_where_doubles_lose_everything) {
    ExactSum sum(1);
    for (const double value : {1e6, 1e-12, -1e6}) sum.add(1.0, std::vector<double>{value});
    EXPECT_NEAR(sum.value(0), 1e-12, 1e-22);
    ExactSum opposite(1);
    for (const double value : {1e6, -1e-12, -1e6}) opposite.add(1.0, std::vector<double>{value});
    EXPECT_EQ(opposite.value(0), -sum.value(0));
}

TEST(ExactSum, carries_survive_many_adds_and_the_largest_values) {
    ExactSum sum(2);
    const std::vector<double> values{0.5 * 0x1.0p-24 * 0.999, -half_limit};  // nearly full fine part
    constexpr int n = 10000;                                                 // several internal carries
    for (int i = 0; i < n; ++i) sum.add(1.0, values);
    EXPECT_EQ(sum.value(0), static_cast<double>(quanta_of(values[0]) * n) * 0x1.0p-75);
    EXPECT_EQ(sum.value(1), -half_limit * n);
}

TEST(ExactSum, limbs_of_32768_processes_do_not_overflow) {
    ExactSum sum(3);
    sum.add(1.0, std::vector<double>{half_limit, -half_limit, -ExactSum::quantum});
    std::vector<std::int64_t> limbs(9);
    sum.to_limbs(0, limbs);
    std::vector<std::int64_t> total(9);
    for (int process = 0; process < 32768; ++process) {
        for (std::size_t i = 0; i < 9; ++i) {
            ASSERT_FALSE(__builtin_add_overflow(total[i], limbs[i], &total[i]));
        }
    }
    std::vector<double> values(3);
    ExactSum::from_limbs(total, values);
    EXPECT_EQ(values[0], 32768 * half_limit);
    EXPECT_EQ(values[1], -32768 * half_limit);
    EXPECT_EQ(values[2], -32768 * ExactSum::quantum);
}

TEST(ExactSum, from_limbs_rounds_to_nearest_even) {
    const std::int64_t big = std::int64_t{1} << 5;                             // 2^53 quanta = limb 1 (2^48) times 2^5
    EXPECT_EQ(ExactSum::from_limbs(1, big, 0), 0x1.0p53 * ExactSum::quantum);  // tie: down to even
    EXPECT_EQ(ExactSum::from_limbs(3, big, 0), (0x1.0p53 + 4) * ExactSum::quantum);  // tie: up to even
    EXPECT_EQ(ExactSum::from_limbs(-1, 0, 0), -ExactSum::quantum);
}

TEST(ExactSum, a_part_can_be_added_and_read) {
    ExactSum sum(5);
    sum.add(2.0, std::vector<double>{1.0, 2.0}, 3);
    sum.add(0.5, std::vector<double>{4.0}, 0);
    std::vector<std::int64_t> limbs(6);
    sum.to_limbs(3, limbs);
    std::vector<double> values(2);
    ExactSum::from_limbs(limbs, values);
    EXPECT_EQ(values, (std::vector<double>{2.0, 4.0}));
    EXPECT_EQ(sum.value(0), 2.0);
    EXPECT_EQ(sum.value(1), 0.0);
    sum.clear();
    EXPECT_EQ(sum.value(3), 0.0);
    EXPECT_THROW(sum.add(1.0, std::vector<double>{1.0, 1.0}, 4), Error);
}

TEST(ExactSum, a_bad_term_is_refused_and_leaves_the_sums_alone) {
    ExactSum sum(3);
    sum.add(1.0, std::vector<double>{1.0, 2.0, 3.0});
    const double inf = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const double bad : {inf, -inf, nan, 4194304.0, -4194305.0, 1e9, 1e300, -1e300, 1e17, -1e17}) {
        for (const std::size_t at : {0u, 1u, 2u}) {
            std::vector<double> values{0.1, 0.2, 0.3};
            values[at] = bad;
            EXPECT_THROW(sum.add(1.0, values), Error) << bad;
        }
    }
    EXPECT_THROW(sum.add(nan, std::vector<double>{1.0, 1.0, 1.0}), Error);
    EXPECT_EQ(sum.value(0), 1.0);
    EXPECT_EQ(sum.value(1), 2.0);
    EXPECT_EQ(sum.value(2), 3.0);
    EXPECT_NO_THROW(sum.add(1.0, std::vector<double>{4194303.9, -4194303.9, 0.0}));
}

TEST(ExactSum, a_sum_out_of_range_is_refused_before_it_wraps) {
    ExactSum sum(1);
    const std::vector<double> largest{half_limit};
    int n = 0;
    EXPECT_THROW(for (; n < 200000; ++n) sum.add(1.0, largest), Error);
    EXPECT_EQ(n, 131071);
    EXPECT_EQ(sum.value(0), 131071 * half_limit);
}

}  // namespace
}  // namespace hetlora
