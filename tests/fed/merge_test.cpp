// The server's merge against a plain dense reference, its invariances to the bit, and the rules of uncovered slots.
#include "hetlora/fed/merge.hpp"

#include <gtest/gtest.h>

#include "fed_fixtures.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/comm/threaded_transport.hpp"

namespace hetlora {
namespace {

using namespace testing_fed;

void expect_near(const std::vector<double>& got, const std::vector<double>& expected, double tolerance,
                 const std::string& what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance) << what << " at " << i;
}

TEST(Merge, every_linear_strategy_equals_the_dense_reference) {
    int n_cases = 0;
    for (const auto weight : {ClientWeight::uniform, ClientWeight::samples, ClientWeight::sparsity}) {
        for (const auto norm : {SlotNorm::all, SlotNorm::contributors}) {
            for (const auto aggregate : {Aggregate::parameters, Aggregate::deltas}) {
                for (const auto scope : {WeightScope::client, WeightScope::matrix}) {
                    for (const auto keep : {KeepUncovered::no, KeepUncovered::last}) {
                        for (const std::size_t n_clients : {1u, 2u, 7u}) {
                            for (const auto reduction : {ReductionKind::exact, ReductionKind::fast}) {
                                auto round = random_round(static_cast<std::uint64_t>(++n_cases), n_clients);
                                round.strategy.client_weight = weight;
                                round.strategy.slot_norm = norm;
                                round.strategy.aggregate = aggregate;
                                round.strategy.weight_scope = scope;
                                round.strategy.keep_uncovered = keep;
                                round.reduction = reduction;
                                expect_near(run_local(round).global, reference_merge(round), 1e-12,
                                            fmt::format("case {}", n_cases));
                            }
                        }
                    }
                }
            }
        }
    }
    EXPECT_EQ(n_cases, 288);
}

TEST(Merge, the_sum_of_norms_is_another_weight) {
    auto round = random_round(5, 4);
    const auto usual = run_local(round).client_weight;
    round.strategy.weight_norm = WeightNorm::sum;
    const auto result = run_local(round);
    expect_near(result.global, reference_merge(round), 1e-12, "sum of norms");
    EXPECT_NE(result.client_weight, usual);
}

TEST(Merge, weights_are_normalised) {
    for (const auto scope : {WeightScope::client, WeightScope::matrix}) {
        auto round = random_round(6, 5);
        round.strategy.weight_scope = scope;
        round.clients[2].dropped = true;
        const auto result = run_local(round);
        EXPECT_NEAR(std::accumulate(result.client_weight.begin(), result.client_weight.end(), 0.0), 1.0, 1e-14);
        EXPECT_EQ(result.client_weight[2], 0.0);
    }
    // Equal uploads at rank_max: a weighted mean of equals is that upload, however the weights are.
    auto round = random_round(7, 3);
    for (auto& client : round.clients) {
        client.lora_rank_before = client.lora_rank_after = round.rank_max;
        client.factors = random_values(round.layout.parameters(round.rank_max), 8);
    }
    expect_near(run_local(round).global, round.clients[0].factors, 1e-14, "equal uploads");
}

TEST(Merge, one_client_gives_its_own_adapter_padded) {
    auto round = random_round(9, 1);
    round.fp32 = true;  // factors are fp32 numbers: the result must be them to the bit
    std::vector<double> padded(round.previous.size());
    resize_adapter<double>(round.layout, round.clients[0].factors, round.clients[0].lora_rank_after, padded,
                           round.rank_max);
    EXPECT_EQ(run_local(round).global, padded);
}

TEST(Merge, dropped_clients_count_for_nothing) {
    auto round = random_round(11, 4);
    round.clients[1].dropped = true;
    round.clients[1].factors.assign(round.clients[1].factors.size(), std::nan(""));
    auto without = round;
    without.clients.erase(without.clients.begin() + 1);
    EXPECT_EQ(run_local(round).global, run_local(without).global);
}

TEST(Merge, all_dropped_leaves_the_global_adapter) {
    auto round = random_round(12, 3);
    for (auto& client : round.clients) client.dropped = true;
    const auto result = run_local(round);
    EXPECT_EQ(result.global, round.previous);
    EXPECT_FALSE(result.changed);
    EXPECT_EQ(result.client_weight, std::vector<double>(3, 0.0));
}

TEST(Merge, zero_products_fall_back_to_uniform_weights) {
    for (const auto norm : {SlotNorm::all, SlotNorm::contributors}) {
        auto round = random_round(13, 4);
        round.strategy.slot_norm = norm;
        for (auto& client : round.clients) {  // B = 0, as right after the start: every s_k is 0
            for (std::size_t m = 0; m < 3; ++m) {
                const auto first = round.layout.offset_b(m, client.lora_rank_after);
                std::fill_n(client.factors.begin() + first, client.lora_rank_after * round.layout.matrices[m].d_out,
                            0.0);
            }
        }
        const auto result = run_local(round);
        expect_near(result.global, reference_merge(round), 1e-13, "zero products");
        for (const double weight : result.client_weight) EXPECT_EQ(weight, 0.25);
    }
}

TEST(Merge, a_matrix_with_zero_products_falls_back_alone) {
    auto round = random_round(14, 4);
    round.strategy.weight_scope = WeightScope::matrix;
    for (auto& client : round.clients) {
        const auto first = round.layout.offset_b(1, client.lora_rank_after);
        std::fill_n(client.factors.begin() + first, client.lora_rank_after * round.layout.matrices[1].d_out, 0.0);
    }
    expect_near(run_local(round).global, reference_merge(round), 1e-13, "one zero matrix");
}

TEST(Merge, a_slot_whose_contributors_weigh_nothing_takes_their_plain_mean) {
    auto round = random_round(15, 3);
    round.strategy.slot_norm = SlotNorm::contributors;
    const std::vector<std::int64_t> ranks{2, 6, 6};  // slots 2..5 belong to two clients whose products are 0
    for (std::size_t k = 0; k < 3; ++k) {
        auto& client = round.clients[k];
        client.lora_rank_before = client.lora_rank_after = ranks[k];
        client.factors = random_values(round.layout.parameters(ranks[k]), 20 + k);
        for (std::size_t m = 0; m < 3 && k > 0; ++m) {
            const auto first = round.layout.offset_b(m, ranks[k]);
            std::fill_n(client.factors.begin() + first, ranks[k] * round.layout.matrices[m].d_out, 0.0);
        }
    }
    expect_near(run_local(round).global, reference_merge(round), 1e-13, "weightless contributors");
}

TEST(Merge, uncovered_slots_become_zero_keep_or_refill) {
    auto round = random_round(16, 3);
    for (auto& client : round.clients) {
        client.lora_rank_before = client.lora_rank_after = 5;
        client.factors = random_values(round.layout.parameters(5), 30);
    }
    const auto value = [&](const std::vector<double>& global, char which, std::int64_t slot) {
        return element(round.layout, global, round.rank_max, 2, which, slot, 4);
    };
    auto result = run_local(round);
    EXPECT_EQ(result.slots.slots_alive, 5);
    EXPECT_EQ(result.slots.n_contributors, (std::vector<std::int64_t>{3, 3, 3, 3, 3, 0, 0, 0}));
    EXPECT_EQ(value(result.global, 'A', 5), 0.0);

    round.strategy.keep_uncovered = KeepUncovered::last;
    result = run_local(round);
    EXPECT_EQ(result.slots.slots_alive, 8);
    EXPECT_EQ(value(result.global, 'A', 5), value(round.previous, 'A', 5));
    EXPECT_EQ(value(result.global, 'B', 7), value(round.previous, 'B', 7));

    round.strategy.keep_uncovered = KeepUncovered::refill;
    result = run_local(round);
    EXPECT_EQ(result.slots.slots_alive, 8);
    EXPECT_NE(value(result.global, 'A', 5), 0.0);
    EXPECT_NE(value(result.global, 'A', 5), value(round.previous, 'A', 5));
    EXPECT_LE(std::abs(value(result.global, 'A', 5)), 1.0 / std::sqrt(11.0));
    EXPECT_EQ(value(result.global, 'B', 5), 0.0);
}

TEST(Merge, padded_slots_of_small_clients_stay_clean) {
    // One large client and small ones: beyond the small ranks only the large client's values, scaled by its weight.
    auto round = random_round(17, 3);
    round.strategy.client_weight = ClientWeight::uniform;
    const std::vector<std::int64_t> ranks{2, 8, 2};
    for (std::size_t k = 0; k < 3; ++k) {
        round.clients[k].lora_rank_before = round.clients[k].lora_rank_after = ranks[k];
        round.clients[k].factors = random_values(round.layout.parameters(ranks[k]), 40 + k);
    }
    const auto all = run_local(round).global;
    round.strategy.slot_norm = SlotNorm::contributors;
    const auto contributors = run_local(round).global;
    for (std::size_t m = 0; m < 3; ++m) {
        for (std::int64_t slot = 2; slot < 8; ++slot) {
            const double own = element(round.layout, round.clients[1].factors, 8, m, 'B', slot, 0);
            EXPECT_DOUBLE_EQ(element(round.layout, all, 8, m, 'B', slot, 0), own / 3.0);
            EXPECT_EQ(element(round.layout, contributors, 8, m, 'B', slot, 0), own);
        }
    }
}

TEST(Merge, order_and_place_of_clients_change_no_bit) {
    for (const auto weight : {ClientWeight::samples, ClientWeight::sparsity}) {
        for (const bool fp32 : {false, true}) {
            auto round = random_round(18, 9);
            round.strategy.client_weight = weight;
            round.fp32 = fp32;
            round.clients[3].factors.assign(round.clients[3].factors.size(), 0.0);  // a client without weight
            round.clients[5].dropped = true;
            const auto expected = run_local(round);
            std::mt19937_64 generator(19);
            std::vector<std::size_t> order(9);
            std::iota(order.begin(), order.end(), std::size_t{0});
            for (int n_threads = 1; n_threads <= 4; ++n_threads) {
                for (int trial = 0; trial < 5; ++trial) {
                    std::ranges::shuffle(order, generator);
                    std::vector<int> owner(9);
                    for (auto& o : owner) o = static_cast<int>(generator() % static_cast<std::uint64_t>(n_threads));
                    MergeResult result;
                    run_threaded(n_threads, [&](Transport& transport) {
                        auto mine = run_round(transport, round, owner, order);
                        if (transport.is_root()) result = std::move(mine);
                    });
                    ASSERT_EQ(result.global, expected.global) << n_threads << " threads";
                    ASSERT_EQ(result.client_weight, expected.client_weight);
                }
            }
        }
    }
}

TEST(Merge, with_equal_ranks_and_weights_all_methods_are_one) {
    auto round = random_round(21, 5);
    for (std::size_t k = 0; k < 5; ++k) {
        auto& client = round.clients[k];
        client.lora_rank_before = client.lora_rank_after = 6;
        client.n_samples = 12.0;
        client.factors = random_values(round.layout.parameters(6), 50);  // equal products: equal sparsity weights
    }
    std::vector<std::vector<double>> results;
    for (const std::string preset : {"hetlora-agg", "hetlora", "zeropad", "rbla"}) {
        Settings settings;
        settings.strategy.preset = preset;
        round.strategy = resolve_strategy(settings);
        results.push_back(run_local(round).global);
    }
    Settings settings;
    settings.strategy.preset = "fedit";
    round.strategy = resolve_strategy(settings);
    const auto fedavg = run_local(round).global;
    for (const auto& result : results) expect_near(result, fedavg, 1e-14, "against fedavg");
}

TEST(Merge, an_fp32_run_rounds_once) {
    auto round = random_round(22, 5);
    const auto exact = run_local(round).global;
    round.fp32 = true;
    const auto rounded = run_local(round).global;
    for (std::size_t i = 0; i < exact.size(); ++i)
        ASSERT_EQ(rounded[i], static_cast<double>(static_cast<float>(exact[i])));
}

TEST(Merge, slot_energy_is_a_share_and_starts_at_zero) {
    const auto layout = small_layout();
    auto global = initial_adapter(layout, {AdapterInit::kaiming_uniform, 3, 8, true});
    auto start = slot_statistics(layout, global, 8, {});
    EXPECT_EQ(start.slots_alive, 8);  // A is not zero: the slot can learn
    EXPECT_EQ(start.energy, std::vector<double>(8, 0.0));

    global[static_cast<std::size_t>(layout.offset_b(0, 8)) + 2 * 5] = 1.0;  // matrix 0, slot 2
    global[static_cast<std::size_t>(layout.offset_b(0, 8)) + 6 * 5] = 2.0;  // matrix 0, slot 6
    const auto later = slot_statistics(layout, global, 8, {});
    EXPECT_NEAR(later.energy[2] + later.energy[6], 1.0, 1e-15);
    EXPECT_GT(later.energy[6], later.energy[2]);
}

TEST(Merge, a_report_with_a_bad_weight_is_a_bug) {
    auto round = random_round(23, 2);
    std::vector<ClientReport> reports{round.report(0), round.report(1)};
    reports[1].weights[0] = -1.0;
    const std::vector<double> sums(round.previous.size());
    EXPECT_THROW((void)merge_uploads({.layout = round.layout,
                                      .strategy = round.strategy,
                                      .round = 1,
                                      .reports = reports,
                                      .sums = sums,
                                      .previous = round.previous,
                                      .init = round.init()}),
                 Error);
}

}  // namespace
}  // namespace hetlora
