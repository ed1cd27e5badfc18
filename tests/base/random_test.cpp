#include "hetlora/base/random.hpp"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <set>
#include <vector>

namespace hetlora {
namespace {

constexpr std::int64_t n_draws = 100'000;

TEST(HashSeed, same_inputs_give_the_same_bits_and_any_difference_changes_them) {
    const auto bits = hash_seed(7, Purpose::test, 1, 2);

    EXPECT_EQ(bits, hash_seed(7, Purpose::test, 1, 2));
    EXPECT_NE(bits, hash_seed(8, Purpose::test, 1, 2));
    EXPECT_NE(bits, hash_seed(7, Purpose::test, 2, 1));
    EXPECT_NE(bits, hash_seed(7, Purpose::test, 1));
    EXPECT_NE(bits, hash_seed(7, Purpose::test, 1, 2, 0));
}

TEST(HashSeed, the_integer_type_of_a_coordinate_does_not_matter) {
    EXPECT_EQ(hash_seed(7, Purpose::test, 5), hash_seed(7, Purpose::test, std::int64_t{5}));
    EXPECT_EQ(hash_seed(7, Purpose::test, -5), hash_seed(7, Purpose::test, std::int64_t{-5}));
    EXPECT_EQ(hash_seed(7, Purpose::test, 5U), hash_seed(7, Purpose::test, std::uint8_t{5}));
}

TEST(HashSeed, purposes_and_seeds_never_share_numbers) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        for (std::uint64_t purpose = 1; purpose <= 12; ++purpose) {
            for (int client = 0; client < 50; ++client) {
                seen.insert(hash_seed(seed, static_cast<Purpose>(purpose), client));
            }
        }
    }

    EXPECT_EQ(seen.size(), 20U * 12U * 50U);
}

TEST(HashSeed, mix64_is_the_finaliser_of_splitmix64) {
    EXPECT_EQ(mix64(0), 0xE220A8397B1DCDAFULL);  // first output of SplitMix64 with seed 0
}

TEST(HashSeed, one_flipped_input_bit_flips_about_half_of_the_output) {
    double flipped = 0;
    for (int bit = 0; bit < 64; ++bit) {
        for (std::uint64_t i = 0; i < 100; ++i) {
            const auto a = hash_seed(1, Purpose::test, i);
            const auto b = hash_seed(1, Purpose::test, i ^ (std::uint64_t{1} << bit));
            flipped += std::popcount(a ^ b);
        }
    }

    EXPECT_NEAR(flipped / 6400, 32.0, 0.5);
}

TEST(Uniform01, has_the_moments_and_the_flat_histogram_of_the_distribution) {
    double sum = 0;
    double sum_squares = 0;
    std::array<int, 10> histogram{};
    for (std::int64_t i = 0; i < n_draws; ++i) {
        const double u = uniform01(hash_seed(3, Purpose::test, i));
        ASSERT_GE(u, 0.0);
        ASSERT_LT(u, 1.0);
        sum += u;
        sum_squares += u * u;
        ++histogram[static_cast<std::size_t>(u * 10)];
    }
    const double mean = sum / n_draws;

    EXPECT_NEAR(mean, 0.5, 0.005);
    EXPECT_NEAR(sum_squares / n_draws - mean * mean, 1.0 / 12, 0.002);
    double chi_squared = 0;
    for (const int count : histogram) chi_squared += (count - 1e4) * (count - 1e4) / 1e4;
    EXPECT_LT(chi_squared, 30.0);  // 9 degrees of freedom: 1 in 2000 beyond 29.7
}

TEST(Uniform01, extreme_bits_stay_inside) {
    EXPECT_EQ(uniform01(0), 0.0);
    EXPECT_LT(uniform01(~std::uint64_t{0}), 1.0);
}

TEST(StandardNormal, has_mean_0_variance_1_and_normal_tails) {
    double sum = 0;
    double sum_squares = 0;
    double sum_fourth = 0;
    std::int64_t beyond_two = 0;
    for (std::int64_t i = 0; i < n_draws; ++i) {
        const double z = standard_normal(hash_seed(3, Purpose::adapter_init, i));
        ASSERT_TRUE(std::isfinite(z));
        sum += z;
        sum_squares += z * z;
        sum_fourth += z * z * z * z;
        beyond_two += std::abs(z) > 2 ? 1 : 0;
    }

    EXPECT_NEAR(sum / n_draws, 0.0, 0.015);
    EXPECT_NEAR(sum_squares / n_draws, 1.0, 0.02);
    EXPECT_NEAR(sum_fourth / n_draws, 3.0, 0.15);
    EXPECT_NEAR(static_cast<double>(beyond_two) / n_draws, 0.0455, 0.003);
}

TEST(StandardNormal, neighbouring_coordinates_are_uncorrelated) {
    double product = 0;
    for (std::int64_t i = 0; i < n_draws; ++i) {
        product +=
            standard_normal(hash_seed(3, Purpose::test, i)) * standard_normal(hash_seed(3, Purpose::test, i + 1));
    }

    EXPECT_NEAR(product / n_draws, 0.0, 0.015);
}

TEST(StandardNormal, extreme_bits_are_finite) {
    EXPECT_TRUE(std::isfinite(standard_normal(0)));
    EXPECT_TRUE(std::isfinite(standard_normal(~std::uint64_t{0})));
}

}  // namespace
}  // namespace hetlora
