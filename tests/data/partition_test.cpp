// Dealing sequences to clients: complete, independent of order, and with the right statistics.
#include "hetlora/data/partition.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

std::vector<LabelledSequence> some_sequences(int n, int n_labels) {
    std::vector<LabelledSequence> result;
    for (int i = 0; i < n; ++i) result.push_back({.sequence = 3 * i, .label = i % n_labels});
    return result;
}

void expect_each_dealt_once(const Deal& deal, const std::vector<LabelledSequence>& sequences) {
    auto dealt = deal.sequences;
    std::ranges::sort(dealt);
    ASSERT_EQ(dealt.size(), sequences.size());
    for (std::size_t i = 0; i < dealt.size(); ++i) EXPECT_EQ(dealt[i], sequences[i].sequence);
}

TEST(Partition, iid_deals_each_sequence_once_in_equal_shares) {
    const auto sequences = some_sequences(1003, 4);
    const Deal deal = deal_sequences(sequences, Part::train, {.kind = PartitionKind::iid, .n_clients = 10});
    expect_each_dealt_once(deal, sequences);
    for (std::int64_t c = 0; c < 10; ++c) {
        EXPECT_EQ(deal.of(c).size(), c < 3 ? 101U : 100U);
        EXPECT_TRUE(std::ranges::is_sorted(deal.of(c)));
    }
}

TEST(Partition, does_not_depend_on_the_order_of_the_input) {
    auto sequences = some_sequences(200, 5);
    for (const PartitionKind kind : {PartitionKind::iid, PartitionKind::dirichlet, PartitionKind::quantity}) {
        const DealOptions options{.kind = kind, .n_clients = 7, .seed = 9};
        const Deal forwards = deal_sequences(sequences, Part::train, options);
        std::ranges::reverse(sequences);
        const Deal backwards = deal_sequences(sequences, Part::train, options);
        EXPECT_EQ(forwards.sequences, backwards.sequences);
        EXPECT_EQ(forwards.offset, backwards.offset);
    }
}

TEST(Partition, depends_on_the_seed) {
    const auto sequences = some_sequences(200, 5);
    for (const PartitionKind kind : {PartitionKind::iid, PartitionKind::dirichlet, PartitionKind::quantity}) {
        const Deal one = deal_sequences(sequences, Part::train, {.kind = kind, .n_clients = 7, .seed = 1});
        const Deal two = deal_sequences(sequences, Part::train, {.kind = kind, .n_clients = 7, .seed = 2});
        EXPECT_NE(one.sequences, two.sequences);
    }
}

TEST(Partition, dirichlet_deals_each_sequence_once_even_when_extreme) {
    const auto sequences = some_sequences(500, 5);
    for (const double alpha : {1e-6, 0.01, 0.5, 1.0, 100.0}) {
        expect_each_dealt_once(
            deal_sequences(sequences, Part::train,
                           {.kind = PartitionKind::dirichlet, .n_clients = 20, .dirichlet_alpha = alpha}),
            sequences);
    }
}

TEST(Partition, dirichlet_shares_sum_to_one_and_have_the_right_moments) {
    // Share of one client: mean 1/K, variance (K - 1) / (K^2 (K alpha + 1)).
    const int k = 5;
    for (const double alpha : {0.1, 0.5, 2.0, 20.0}) {
        double mean = 0.0;
        double square = 0.0;
        const int n = 4000;
        for (int label = 0; label < n; ++label) {
            const auto shares = dirichlet_shares(label, {.n_clients = k, .dirichlet_alpha = alpha, .seed = 11});
            ASSERT_NEAR(std::accumulate(shares.begin(), shares.end(), 0.0), 1.0, 1e-12);
            mean += shares[2] / n;
            square += shares[2] * shares[2] / n;
        }
        const double variance = (k - 1.0) / (k * k * (k * alpha + 1.0));
        EXPECT_NEAR(mean, 1.0 / k, 5.0 * std::sqrt(variance / n)) << alpha;
        EXPECT_NEAR((square - mean * mean) / variance, 1.0, 0.12) << alpha;
    }
}

TEST(Partition, a_tiny_alpha_gives_each_label_to_one_client) {
    const auto sequences = some_sequences(300, 3);
    const Deal deal = deal_sequences(sequences, Part::train,
                                     {.kind = PartitionKind::dirichlet, .n_clients = 50, .dirichlet_alpha = 1e-5});
    int non_empty = 0;
    for (std::int64_t c = 0; c < 50; ++c) non_empty += deal.of(c).empty() ? 0 : 1;
    EXPECT_LE(non_empty, 3);
}

TEST(Partition, labels_have_shares_of_their_own) {
    const auto sequences = some_sequences(300, 30);
    const Deal deal = deal_sequences(sequences, Part::train,
                                     {.kind = PartitionKind::dirichlet, .n_clients = 50, .dirichlet_alpha = 1e-5});
    int non_empty = 0;
    for (std::int64_t c = 0; c < 50; ++c) non_empty += deal.of(c).empty() ? 0 : 1;
    EXPECT_GE(non_empty, 15);  // 30 labels, each with a client drawn among 50: 23 are expected
}

TEST(Partition, a_large_alpha_is_nearly_even) {
    const auto sequences = some_sequences(4000, 2);
    const Deal deal = deal_sequences(sequences, Part::train,
                                     {.kind = PartitionKind::dirichlet, .n_clients = 4, .dirichlet_alpha = 1e5});
    for (std::int64_t c = 0; c < 4; ++c) EXPECT_NEAR(static_cast<double>(deal.of(c).size()), 1000.0, 30.0);
}

TEST(Partition, the_parts_share_the_proportions_of_a_label) {
    const auto sequences = some_sequences(1000, 1);
    const DealOptions options{.kind = PartitionKind::dirichlet, .n_clients = 6, .dirichlet_alpha = 0.5};
    const Deal train = deal_sequences(sequences, Part::train, options);
    const Deal valid = deal_sequences(sequences, Part::valid, options);
    EXPECT_EQ(train.offset, valid.offset);
    EXPECT_NE(train.sequences, valid.sequences);
}

TEST(Partition, quantity_deals_each_once_and_sizes_follow_a_log_normal_law) {
    const auto sequences = some_sequences(40000, 4);
    const DealOptions options{.kind = PartitionKind::quantity, .n_clients = 400, .quantity_sigma = 0.8, .seed = 5};
    const Deal deal = deal_sequences(sequences, Part::train, options);
    expect_each_dealt_once(deal, sequences);
    const auto shares = quantity_shares(options);
    EXPECT_NEAR(std::accumulate(shares.begin(), shares.end(), 0.0), 1.0, 1e-12);
    double mean = 0.0;
    double square = 0.0;
    for (std::size_t c = 0; c < shares.size(); ++c) {
        EXPECT_NEAR(static_cast<double>(deal.of(static_cast<std::int64_t>(c)).size()), 40000.0 * shares[c], 1.0);
        mean += std::log(shares[c]) / 400.0;
        square += std::log(shares[c]) * std::log(shares[c]) / 400.0;
    }
    EXPECT_NEAR(std::sqrt(square - mean * mean), 0.8, 5.0 * 0.8 / std::sqrt(800.0));
    // Alike but for the size: the labels of the largest client are spread as those of all.
    const auto largest = static_cast<std::int64_t>(std::ranges::max_element(shares) - shares.begin());
    std::vector<double> counts(4, 0.0);
    for (const std::int32_t s : deal.of(largest)) counts[static_cast<std::size_t>(s / 3 % 4)] += 1.0;
    const auto n = static_cast<double>(deal.of(largest).size());
    for (const double count : counts) EXPECT_NEAR(count / n, 0.25, 5.0 * std::sqrt(0.1875 / n));
}

TEST(Partition, quantity_refuses_a_bad_sigma) {
    const auto sequences = some_sequences(4, 1);
    for (const double sigma : {0.0, -1.0, 1e3, std::nan("")}) {
        EXPECT_THROW((void)deal_sequences(sequences, Part::train,
                                          {.kind = PartitionKind::quantity, .n_clients = 2, .quantity_sigma = sigma}),
                     Error);
    }
}

TEST(Partition, nothing_to_deal_and_bad_options) {
    const Deal empty = deal_sequences({}, Part::train, {.kind = PartitionKind::dirichlet, .n_clients = 3});
    EXPECT_TRUE(empty.of(2).empty());
    const auto sequences = some_sequences(4, 1);
    EXPECT_THROW((void)deal_sequences(sequences, Part::train, {.kind = PartitionKind::iid, .n_clients = 0}), Error);
    EXPECT_THROW((void)deal_sequences(sequences, Part::train, {.kind = PartitionKind::natural}), Error);
    EXPECT_THROW(
        (void)deal_sequences(sequences, Part::train, {.kind = PartitionKind::dirichlet, .dirichlet_alpha = 0.0}),
        Error);
    EXPECT_THROW(
        (void)deal_sequences(sequences, Part::train, {.kind = PartitionKind::dirichlet, .dirichlet_alpha = NAN}),
        Error);
}

}  // namespace
}  // namespace hetlora
