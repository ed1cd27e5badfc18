// Spectra and drift of small adapters whose values are known.
#include "hetlora/fed/spectra.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "fed_fixtures.hpp"
#include "hetlora/fed/drift.hpp"

namespace hetlora {
namespace {

AdapterLayout one_matrix(std::int64_t d_out, std::int64_t d_in) {
    return {.matrices = {{"m", 0, "q_proj", d_out, d_in}}};
}

TEST(Spectra, orthogonal_slots_give_their_norms) {
    // Slots: 3 * e0 e0^T, 4 * e1 e1^T; A is [2, 3], Bt is [2, 2].
    const std::vector<double> global{1, 0, 0, 0, 2, 0, 3, 0, 0, 2};
    const std::vector<double> before(10, 0.0);
    const AdapterLayout layout = one_matrix(2, 3);
    const auto spectra = matrix_spectra(
        {.layout = layout, .global = global, .previous = before, .rank_max = 2, .rank_min = 1, .scale = -2.0});
    ASSERT_EQ(spectra.size(), 1u);
    EXPECT_NEAR(spectra[0].singular_values[0], 8.0, 1e-14);
    EXPECT_NEAR(spectra[0].singular_values[1], 6.0, 1e-14);
    EXPECT_NEAR(spectra[0].product_norm, 10.0, 1e-14);
    EXPECT_NEAR(spectra[0].update_norm, 10.0, 1e-14);
    EXPECT_NEAR(spectra[0].leading_energy, 0.64, 1e-14);
    EXPECT_NEAR(spectra[0].effective_rank, 100.0 * 100.0 / (64.0 * 64.0 + 36.0 * 36.0), 1e-14);
}

TEST(Spectra, tiny_singular_values_are_not_lost_in_the_large_ones) {
    // Two nearly parallel slots: a Gram matrix would have lost the small value (squares below the rounding).
    const double tiny = 1e-10;
    const std::vector<double> a{1, 0, 0, 1, tiny, 0};
    const std::vector<double> bt{1, 0, 0, 1};
    const auto values = product_singular_values(a, bt, 2);
    EXPECT_NEAR(values[0], std::sqrt(2.0), 1e-14);
    EXPECT_NEAR(values[1], tiny / std::sqrt(2.0), 1e-24);
}

TEST(Spectra, more_slots_than_dimensions) {
    const std::vector<double> a{1, 2, 3};   // [3, 1]
    const std::vector<double> bt{1, 1, 1};  // [3, 1]
    const auto values = product_singular_values(a, bt, 3);
    EXPECT_NEAR(values[0], 6.0, 1e-14);
    EXPECT_EQ(values[1], 0.0);
    EXPECT_EQ(values[2], 0.0);
}

TEST(Spectra, a_zero_product_has_no_shares) {
    const std::vector<double> zero(10, 0.0);
    const AdapterLayout layout = one_matrix(2, 3);
    const auto spectra =
        matrix_spectra({.layout = layout, .global = zero, .previous = zero, .rank_max = 2, .rank_min = 1});
    EXPECT_EQ(spectra[0].product_norm, 0.0);
    EXPECT_EQ(spectra[0].update_norm, 0.0);
    EXPECT_TRUE(std::isnan(spectra[0].effective_rank));
    EXPECT_TRUE(std::isnan(spectra[0].leading_energy));
}

TEST(Spectra, a_small_change_of_a_large_product_keeps_its_digits) {
    const AdapterLayout layout = one_matrix(2, 2);
    const std::vector<double> before{1e3, 0, 1e3, 0};  // A [1, 2], Bt [1, 2]: 1e6 e0 e0^T
    std::vector<double> after = before;
    after[3] = 1e-6;  // + 1e-3 e1 e0^T
    const auto spectra =
        matrix_spectra({.layout = layout, .global = after, .previous = before, .rank_max = 1, .rank_min = 1});
    EXPECT_NEAR(spectra[0].update_norm, 1e-3, 1e-15);
}

double cosine(std::span<const double> x, std::span<const double> y) {
    double xx = 0.0;
    double yy = 0.0;
    double xy = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        xx += x[i] * x[i];
        yy += y[i] * y[i];
        xy += x[i] * y[i];
    }
    return xy / std::sqrt(xx * yy);
}

TEST(Drift, one_sum_gives_the_mean_over_pairs) {
    const AdapterLayout layout = one_matrix(4, 3);
    const std::vector<std::int64_t> lora_ranks{3, 1, 2, 3};
    UpdateDrift drift(layout, 3, ReductionKind::exact);
    std::vector<std::vector<double>> padded;
    for (std::size_t k = 0; k < lora_ranks.size(); ++k) {
        const auto received = testing_fed::random_values(layout.parameters(3), 10 + k);
        std::vector<double> cut(static_cast<std::size_t>(layout.parameters(lora_ranks[k])));
        resize_adapter<double>(layout, received, 3, cut, lora_ranks[k]);
        auto sent = testing_fed::random_values(std::ssize(cut), 20 + k);
        std::vector<double> change = sent;
        for (std::size_t i = 0; i < change.size(); ++i) change[i] -= cut[i];
        auto& all = padded.emplace_back(static_cast<std::size_t>(layout.parameters(3)));
        resize_adapter<double>(layout, change, lora_ranks[k], all, 3);
        drift.add(sent, lora_ranks[k], received, 3);
    }
    const std::vector<double> still(static_cast<std::size_t>(layout.parameters(2)), 0.5);
    drift.add(still, 2, still, 2);  // changed nothing: it has no direction
    EXPECT_EQ(drift.counts(), std::vector<std::int64_t>{4});
    std::vector<double> sums;
    for (std::size_t i = 0; i < drift.sums().size(); ++i) sums.push_back(drift.sums().exact().value(i));
    double mean = 0.0;
    for (std::size_t k = 0; k < 4; ++k) {
        for (std::size_t l = 0; l < k; ++l) mean += cosine(padded[k], padded[l]) / 6.0;
    }
    EXPECT_NEAR(drift.mean_cosines(sums, drift.counts())[0], mean, 1e-14);
}

TEST(Drift, one_client_has_none_to_compare_with) {
    const AdapterLayout layout = one_matrix(2, 2);
    UpdateDrift drift(layout, 1, ReductionKind::fast);
    drift.add(std::vector<double>{1, 2, 3, 4}, 1, std::vector<double>(4, 0.0), 1);
    EXPECT_TRUE(std::isnan(drift.mean_cosines(drift.sums().fast(), drift.counts())[0]));
    drift.clear();
    EXPECT_EQ(drift.counts()[0], 0);
}

}  // namespace
}  // namespace hetlora
