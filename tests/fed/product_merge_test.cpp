// Merges of products in C++ alone: weights, dead and drawn slots, signs, order and threads, refusals. The arithmetic is
// compared with dense NumPy in tests/python/test_product_merge.py.
#include "hetlora/fed/product_merge.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "fed_fixtures.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

using testing_fed::random_values;
using testing_fed::small_layout;

/// Clients of these lora_ranks with random factors.
struct Cohort {
    AdapterLayout layout = small_layout();
    std::vector<std::vector<double>> factors;
    std::vector<std::vector<double>> weights;
    std::vector<std::int64_t> lora_ranks;
    double scale = 2.0;

    explicit Cohort(std::vector<std::int64_t> ranks, std::uint64_t seed = 1) : lora_ranks(std::move(ranks)) {
        for (std::size_t k = 0; k < lora_ranks.size(); ++k) {
            factors.push_back(random_values(layout.parameters(lora_ranks[k]), seed + k));
            weights.emplace_back(layout.matrices.size(), 1.0 + static_cast<double>(k));
        }
    }
    [[nodiscard]] std::vector<UploadedFactors> uploads() const {
        std::vector<UploadedFactors> list;
        for (std::size_t k = 0; k < lora_ranks.size(); ++k) {
            list.push_back({.client = static_cast<std::int64_t>(10 * k),
                            .factors = factors[k],
                            .lora_rank = lora_ranks[k],
                            .scale = scale,
                            .weights = weights[k]});
        }
        return list;
    }
    void zero_b() {
        for (std::size_t k = 0; k < lora_ranks.size(); ++k) {
            for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
                const auto first = factors[k].begin() + layout.offset_b(m, lora_ranks[k]);
                std::fill(first, first + lora_ranks[k] * layout.matrices[m].d_out, 0.0);
            }
        }
    }
    [[nodiscard]] ProductMergeResult merge(const ProductMergeOptions& options,
                                           SlotWeighting weighting = SlotWeighting::all) const {
        const auto list = uploads();
        const auto slot = slot_weights(layout, list, weighting);
        return merge_by_product({.layout = layout, .uploads = list, .weights = slot}, options);
    }
};

at::Tensor product(const std::vector<double>& a, const std::vector<double>& bt, std::int64_t n_slots) {
    const auto rows = [n_slots](const std::vector<double>& values) {
        return at::from_blob(const_cast<double*>(values.data()),
                             {n_slots, static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(n_slots, 1)},
                             at::kDouble);
    };
    return at::matmul(rows(bt).t(), rows(a));
}

std::vector<double> part(const AdapterLayout& layout, const std::vector<double>& global, std::int64_t rank_max,
                         std::size_t m, char which) {
    const auto first = which == 'A' ? layout.offset_a(m, rank_max) : layout.offset_b(m, rank_max);
    const auto width = which == 'A' ? layout.matrices[m].d_in : layout.matrices[m].d_out;
    return {global.begin() + first, global.begin() + first + rank_max * width};
}

double distance(const at::Tensor& x, const at::Tensor& y) { return (x - y).norm().item<double>(); }

TEST(SlotWeights, are_normalised_over_those_that_count) {
    Cohort cohort({2, 4, 4});  // weights 1, 2, 3
    const auto all = slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::all);
    EXPECT_EQ(all.of_client[0], std::vector<double>(6, 1.0 / 6.0));
    EXPECT_EQ(all.of_client[2], std::vector<double>(12, 3.0 / 6.0));
    const auto own = slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::contributors);
    EXPECT_EQ(own.of_client[1][0], 2.0 / 6.0);
    EXPECT_EQ(own.of_client[1][2], 2.0 / 5.0);
    const std::vector<std::int64_t> levels{2, 4, 8};
    EXPECT_EQ(slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::levels, levels).of_client, own.of_client);
}

TEST(SlotWeights, without_any_weight_are_uniform_per_matrix) {
    Cohort cohort({2, 4});
    cohort.weights = {{0.0, 1.0, 0.0}, {0.0, 3.0, 1.0}};
    const auto own = slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::contributors);
    EXPECT_EQ(own.of_client[0], (std::vector<double>{0.5, 0.5, 0.25, 0.25, 0.0, 0.0}));
    EXPECT_EQ(own.of_client[1], (std::vector<double>{0.5, 0.5, 1.0, 1.0, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}));
    const auto all = slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::all);
    EXPECT_EQ(all.of_client[1][2], 0.5);
}

TEST(SlotWeights, a_lora_rank_between_levels_is_refused) {
    const Cohort cohort({2, 3, 4});
    const std::vector<std::int64_t> levels{2, 4};
    try {
        (void)slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::levels, levels);
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_NE(std::string(error.what()).find("client 10 has lora_rank 3"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("2, 4"), std::string::npos) << error.what();
    }
}

TEST(SlotWeights, a_bad_weight_is_a_bug) {
    Cohort cohort({2, 3});
    for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
        cohort.weights[1][2] = bad;
        EXPECT_THROW((void)slot_weights(cohort.layout, cohort.uploads(), SlotWeighting::all), Error);
    }
}

TEST(ProductMerge, left_and_right_keep_slots_without_content_learnable) {
    const Cohort cohort({1, 1});  // at most two directions
    for (const auto split : {FactorSplit::left, FactorSplit::right}) {
        const auto result = cohort.merge({.rank_max = 6, .scale = 2.0, .split = split, .seed = 3});
        for (std::size_t m = 0; m < 3; ++m) {
            EXPECT_EQ(result.matrices[m].n_filled, 2);
            EXPECT_EQ(result.matrices[m].energy_kept, 1.0);
            const char full = split == FactorSplit::left ? 'A' : 'B';
            const std::int64_t width = full == 'A' ? cohort.layout.matrices[m].d_in : cohort.layout.matrices[m].d_out;
            const auto unit = part(cohort.layout, result.global, 6, m, full);
            const auto other = part(cohort.layout, result.global, 6, m, full == 'A' ? 'B' : 'A');
            const auto n = std::min<std::int64_t>(6, width);
            const auto rows = at::from_blob(const_cast<double*>(unit.data()), {6, width}, at::kDouble);
            EXPECT_LT(distance(at::matmul(rows, rows.t()), at::diag((at::arange(6) < n).to(at::kDouble))), 1e-13);
            const auto other_width = other.size() / 6;
            EXPECT_TRUE(std::all_of(other.begin() + static_cast<std::ptrdiff_t>(2 * other_width), other.end(),
                                    [](double value) { return value == 0.0; }));
        }
    }
}

TEST(ProductMerge, sqrt_makes_dead_slots_unless_told_otherwise) {
    const Cohort cohort({1, 1});
    ProductMergeOptions options{.rank_max = 4, .scale = 2.0, .split = FactorSplit::sqrt};
    const auto literal = cohort.merge(options);
    options.null_slots = NullSlots::learnable;
    const auto learnable = cohort.merge(options);
    const auto dead = part(cohort.layout, literal.global, 4, 2, 'A');
    const auto alive = part(cohort.layout, learnable.global, 4, 2, 'A');
    for (std::size_t i = 0; i < dead.size(); ++i) {
        if (i < 2 * 11) {
            EXPECT_EQ(dead[i], alive[i]);
        } else {
            EXPECT_EQ(dead[i], 0.0);
        }
    }
    EXPECT_NEAR(std::inner_product(alive.begin() + 22, alive.begin() + 33, alive.begin() + 22, 0.0), 1.0, 1e-14);
    EXPECT_EQ(part(cohort.layout, literal.global, 4, 2, 'B'), part(cohort.layout, learnable.global, 4, 2, 'B'));
}

TEST(ProductMerge, noise_of_a_sum_that_cancels_is_not_a_direction) {
    Cohort cohort({3, 3});
    cohort.weights.assign(2, std::vector<double>(3, 1.0));
    cohort.factors[1] = cohort.factors[0];
    for (std::size_t m = 0; m < 3; ++m) {  // B_2 = -B_1: P = 0 up to rounding
        const auto first = cohort.factors[1].begin() + cohort.layout.offset_b(m, 3);
        std::transform(first, first + 3 * cohort.layout.matrices[m].d_out, first, std::negate<>());
    }
    for (const auto& matrix : cohort.merge({.rank_max = 3}).matrices) EXPECT_EQ(matrix.n_filled, 0);
    cohort.zero_b();
    const auto zero = cohort.merge({.rank_max = 3, .seed = 4});
    for (const auto& matrix : zero.matrices) EXPECT_EQ(matrix.n_filled, 0);
    EXPECT_EQ(zero.global, cohort.merge({.rank_max = 3, .seed = 4}).global);
    EXPECT_NE(zero.global, cohort.merge({.rank_max = 3, .seed = 5}).global);
}

TEST(ProductMerge, largest_entry_of_a_left_vector_is_positive) {
    const Cohort cohort({3, 5, 2}, 30);
    for (const auto driver : {SvdDriver::automatic, SvdDriver::symmetric}) {
        const auto result = cohort.merge({.rank_max = 5, .split = FactorSplit::right, .driver = driver});
        for (std::size_t m = 0; m < 3; ++m) {
            const auto b = part(cohort.layout, result.global, 5, m, 'B');
            const auto width = cohort.layout.matrices[m].d_out;
            for (std::int64_t slot = 0; slot < result.matrices[m].n_filled; ++slot) {
                const auto first = b.begin() + slot * width;
                EXPECT_GT(*std::max_element(first, first + width,
                                            [](double x, double y) { return std::abs(x) < std::abs(y); }),
                          0.0);
            }
        }
    }
}

TEST(ProductMerge, order_of_clients_changes_nothing_but_rounding) {
    Cohort cohort({3, 1, 4, 2}, 50);
    const ProductMergeOptions options{.rank_max = 4, .scale = 2.0, .split = FactorSplit::sqrt};
    const auto expected = cohort.merge(options, SlotWeighting::contributors);
    std::vector<std::size_t> order{2, 0, 3, 1};
    Cohort other = cohort;
    for (std::size_t k = 0; k < 4; ++k) {
        other.factors[k] = cohort.factors[order[k]];
        other.weights[k] = cohort.weights[order[k]];
        other.lora_ranks[k] = cohort.lora_ranks[order[k]];
    }
    const auto result = other.merge(options, SlotWeighting::contributors);
    double worst = 0.0;
    for (std::size_t i = 0; i < result.global.size(); ++i) {
        worst = std::max(worst, std::abs(result.global[i] - expected.global[i]));
    }
    EXPECT_LT(worst, 1e-12);
    fmt::print("  [order] largest change {:.1e}, same bits: {}\n", worst, result.global == expected.global);
    EXPECT_EQ(cohort.merge(options, SlotWeighting::contributors).global, expected.global);
}

TEST(ProductMerge, a_matrix_alone_and_two_threads_give_the_same_bits) {
    const Cohort cohort({3, 1, 4, 8}, 60);
    const ProductMergeOptions options{.rank_max = 8, .scale = 2.0, .seed = 9};
    const int n_threads = at::get_num_threads();
    const auto one = cohort.merge(options);
    at::set_num_threads(2);
    const auto two = cohort.merge(options);
    at::set_num_threads(n_threads);
    EXPECT_EQ(one.global, two.global);
    const auto list = cohort.uploads();
    const auto slot = slot_weights(cohort.layout, list, SlotWeighting::all);
    for (const std::size_t m : {2U, 0U, 1U}) {
        const auto alone =
            merge_matrix_by_product({.layout = cohort.layout, .uploads = list, .weights = slot}, options, m);
        EXPECT_EQ(alone.a, part(cohort.layout, one.global, 8, m, 'A'));
        EXPECT_EQ(alone.bt, part(cohort.layout, one.global, 8, m, 'B'));
        EXPECT_EQ(alone.singular_values, one.matrices[m].singular_values);
    }
}

TEST(ProductMerge, values_that_are_not_finite_name_client_and_matrix) {
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
        Cohort cohort({2, 3});
        cohort.factors[1][static_cast<std::size_t>(cohort.layout.offset_b(1, 3))] = bad;
        try {
            (void)cohort.merge({.rank_max = 3});
            FAIL();
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::training);
            EXPECT_NE(std::string(error.what()).find("client 10"), std::string::npos) << error.what();
            EXPECT_NE(std::string(error.what()).find("layers.0.self_attn.v_proj"), std::string::npos);
        }
    }
}

TEST(ProductMerge, a_product_that_overflows_names_the_first_matrix_on_any_number_of_threads) {
    Cohort cohort({2});
    for (auto& value : cohort.factors[0]) value *= 1e200;  // in all three matrices
    const int n_threads_before = at::get_num_threads();
    for (int trial = 0; trial < 40; ++trial) {
        at::set_num_threads(1 + trial % 3);
        try {
            (void)cohort.merge({.rank_max = 2});
            ADD_FAILURE() << "no error";
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::training);
            EXPECT_NE(std::string(error.what()).find("layers.0.self_attn.q_proj"), std::string::npos) << error.what();
        }
    }
    at::set_num_threads(n_threads_before);
}

TEST(ProductMerge, factors_of_wildly_different_sizes_lose_nothing) {
    // Slot 0 has a huge B and a tiny A, slot 1 the reverse: the product is of ordinary size.
    const Cohort plain({2});
    Cohort skewed({2});
    for (std::size_t m = 0; m < 3; ++m) {
        const auto scale_row = [&](std::int64_t first, std::int64_t width, double factor) {
            for (std::int64_t i = first; i < first + width; ++i)
                skewed.factors[0][static_cast<std::size_t>(i)] *= factor;
        };
        const auto& shape = skewed.layout.matrices[m];
        scale_row(skewed.layout.offset_b(m, 2), shape.d_out, 0x1p40);
        scale_row(skewed.layout.offset_a(m, 2), shape.d_in, 0x1p-40);
        scale_row(skewed.layout.offset_b(m, 2) + shape.d_out, shape.d_out, 0x1p-40);
        scale_row(skewed.layout.offset_a(m, 2) + shape.d_in, shape.d_in, 0x1p40);
    }
    const auto expected = plain.merge({.rank_max = 2});
    const auto result = skewed.merge({.rank_max = 2});
    for (std::size_t i = 0; i < result.global.size(); ++i) EXPECT_NEAR(result.global[i], expected.global[i], 1e-12);
}

TEST(ProductMerge, an_fp32_run_rounds_once) {
    const Cohort cohort({3, 5});
    const auto exact = cohort.merge({.rank_max = 5}).global;
    const auto rounded = cohort.merge({.rank_max = 5, .round_to_fp32 = true}).global;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        ASSERT_EQ(rounded[i], static_cast<double>(static_cast<float>(exact[i])));
    }
}

TEST(ProductMerge, sizes_that_do_not_fit_are_bugs) {
    Cohort cohort({2, 3});
    EXPECT_THROW((void)cohort.merge({.rank_max = 0}), Error);
    EXPECT_THROW((void)cohort.merge({.rank_max = 2, .scale = 0.0}), Error);
    EXPECT_THROW((void)Cohort({}).merge({.rank_max = 2}), Error);
    cohort.factors[0].pop_back();
    EXPECT_THROW((void)cohort.merge({.rank_max = 3}), Error);
}

TEST(ProductSvd, the_fallbacks_agree_with_lapack) {
    for (const std::int64_t n_terms : {1, 4, 9, 30}) {  // 30: more than d_out and d_in
        LowRankMatrix matrix{.name = "m", .d_out = 9, .d_in = 14, .lora_rank = n_terms, .a = {}, .bt = {}};
        matrix.a = random_values(n_terms * 14, 70);
        matrix.bt = random_values(n_terms * 9, 71);
        const auto first = product_svd(matrix, 4);
        for (const auto driver : {SvdDriver::transposed, SvdDriver::symmetric}) {
            const auto second = product_svd(matrix, 4, driver);
            ASSERT_EQ(first.n_vectors, std::min<std::int64_t>(n_terms, 4));
            ASSERT_EQ(second.n_vectors, first.n_vectors);
            ASSERT_EQ(first.singular_values.size(), static_cast<std::size_t>(std::min<std::int64_t>(n_terms, 9)));
            for (std::size_t i = 0; i < first.singular_values.size(); ++i) {
                EXPECT_NEAR(second.singular_values[i], first.singular_values[i], 1e-12 * first.singular_values[0]);
            }
            for (std::size_t i = 0; i < first.left.size(); ++i) EXPECT_NEAR(second.left[i], first.left[i], 1e-11);
            for (std::size_t i = 0; i < first.right.size(); ++i) EXPECT_NEAR(second.right[i], first.right[i], 1e-11);
        }
    }
}

TEST(ProductSvd, no_terms_is_zero) {
    const auto svd = product_svd({.name = "m", .d_out = 3, .d_in = 2, .lora_rank = 0, .a = {}, .bt = {}}, 2);
    EXPECT_TRUE(svd.singular_values.empty());
    EXPECT_EQ(svd.n_vectors, 0);
    EXPECT_EQ(energy_share(svd.singular_values, 1), 1.0);
}

TEST(Energy, smallest_rank_that_keeps_the_share) {
    const std::vector<double> values{3.0, 2.0, 1.0, 0.0};  // squares 9, 4, 1
    EXPECT_EQ(rank_for_energy(values, 9.0 / 14.0), 1);
    EXPECT_EQ(rank_for_energy(values, 0.65), 2);
    EXPECT_EQ(rank_for_energy(values, 0.99), 3);
    EXPECT_EQ(rank_for_energy(values, 1.0), 3);
    EXPECT_EQ(rank_for_energy({0.0, 0.0}, 0.9), 0);
    for (const double bad : {0.0, -0.1, 1.1, std::nan("")}) EXPECT_THROW((void)rank_for_energy(values, bad), Error);
}

TEST(Stack, weights_touch_a_only_and_bytes_are_counted) {
    const Cohort cohort({2, 3});  // weights 1/3, 2/3; scale 2
    const auto list = cohort.uploads();
    const auto slot = slot_weights(cohort.layout, list, SlotWeighting::all);
    const auto delta = stack_updates({.layout = cohort.layout, .uploads = list, .weights = slot});
    ASSERT_EQ(delta.matrices.size(), 3U);
    EXPECT_EQ(delta.parameters(), cohort.layout.parameters(5));
    EXPECT_EQ(delta.bytes(4), 4 * cohort.layout.parameters(5));
    const auto& matrix = delta.matrices[1];  // 3 x 7
    const auto b = part(cohort.layout, cohort.factors[0], 2, 1, 'B');
    EXPECT_TRUE(std::equal(b.begin(), b.end(), matrix.bt.begin()));
    const auto a = part(cohort.layout, cohort.factors[1], 3, 1, 'A');
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(matrix.a[14 + i], (2.0 / 3.0) * 2.0 * a[i]);
}

TEST(Stack, truncation_to_full_rank_keeps_the_product) {
    const Cohort cohort({4, 4, 4}, 80);
    const auto list = cohort.uploads();
    const auto slot = slot_weights(cohort.layout, list, SlotWeighting::all);
    const auto delta = stack_updates({.layout = cohort.layout, .uploads = list, .weights = slot});
    const auto cut = truncate_to_rank(delta, 100);
    for (std::size_t m = 0; m < 3; ++m) {
        const auto& whole = delta.matrices[m];
        const auto& small = cut.delta.matrices[m];
        EXPECT_EQ(small.lora_rank, std::min({whole.lora_rank, whole.d_out, whole.d_in}));
        EXPECT_EQ(cut.energy_kept[m], 1.0);
        const auto expected = product(whole.a, whole.bt, whole.lora_rank);
        EXPECT_LT(distance(product(small.a, small.bt, small.lora_rank), expected),
                  1e-13 * expected.norm().item<double>());
    }
    EXPECT_EQ(truncate_to_rank(delta, 0).delta.parameters(), 0);
}

TEST(Residual, a_global_adapter_that_is_not_the_mean_is_a_bug) {
    const Cohort cohort({3, 3});
    const auto list = cohort.uploads();
    const auto slot = slot_weights(cohort.layout, list, SlotWeighting::all);
    const ProductMergeInput input{.layout = cohort.layout, .uploads = list, .weights = slot};
    std::vector<double> mean(cohort.factors[0].size());
    for (std::size_t i = 0; i < mean.size(); ++i) {
        const double value = cohort.factors[0][i] / 3.0 + cohort.factors[1][i] * (2.0 / 3.0);
        mean[i] = static_cast<double>(static_cast<float>(value));
    }
    EXPECT_NO_THROW((void)residual_delta(input, mean, 3, 2.0));  // rounding to fp32 is no mistake
    mean[static_cast<std::size_t>(cohort.layout.offset_b(2, 3))] += 0.01;
    EXPECT_THROW((void)residual_delta(input, mean, 3, 2.0), Error);
    mean.pop_back();
    EXPECT_THROW((void)residual_delta(input, mean, 3, 2.0), Error);
}

}  // namespace
}  // namespace hetlora
