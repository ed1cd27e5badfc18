// The collectives of a round over MPI: the same bits at any number of mpi_ranks as in one process.
#include "hetlora/fed/exchange.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "fed_fixtures.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "mpi_main.hpp"

namespace hetlora {
namespace {

using namespace testing_fed;
using testing_mpi::transport;

TEST(Exchange, a_round_over_mpi_has_the_bits_of_one_process) {
    auto& t = transport();
    for (const auto weight : {ClientWeight::uniform, ClientWeight::samples, ClientWeight::sparsity}) {
        for (const auto norm : {SlotNorm::all, SlotNorm::contributors}) {
            for (const auto aggregate : {Aggregate::parameters, Aggregate::deltas}) {
                auto round = random_round(31, 11);
                round.strategy.client_weight = weight;
                round.strategy.slot_norm = norm;
                round.strategy.aggregate = aggregate;
                round.clients[4].dropped = true;
                round.clients[6].factors.assign(round.clients[6].factors.size(), 0.0);
                const auto expected = run_local(round);
                std::vector<int> owner;
                for (std::size_t k = 0; k < 11; ++k) owner.push_back(static_cast<int>(k * 7 % 5) % t.mpi_size());
                std::vector<std::size_t> order{10, 3, 1, 2, 0, 9, 8, 7, 4, 5, 6};
                const auto result = run_round(t, round, owner, order);
                if (!t.is_root()) continue;
                ASSERT_EQ(result.global, expected.global);
                ASSERT_EQ(result.client_weight, expected.client_weight);
                ASSERT_EQ(result.slots.energy, expected.slots.energy);
            }
        }
    }
}

TEST(Exchange, all_zero_weights_fall_back_together) {
    auto& t = transport();
    auto round = random_round(32, 6);
    for (auto& client : round.clients) client.factors.assign(client.factors.size(), 0.0);
    for (auto& client : round.clients) client.factors[0] = 1.0;  // A is not zero, B is
    const auto expected = run_local(round);
    std::vector<int> owner;
    for (std::size_t k = 0; k < 6; ++k) owner.push_back(static_cast<int>(k) % t.mpi_size());
    const auto result = run_round(t, round, owner, {0, 1, 2, 3, 4, 5});
    if (t.is_root()) {
        EXPECT_EQ(result.global, expected.global);
        EXPECT_DOUBLE_EQ(result.global[0], 1.0);
    }
}

TEST(Exchange, dense_sums_become_new_values_everywhere_piece_by_piece) {
    auto& t = transport();
    constexpr std::size_t n = (std::size_t{1} << 20) + 5;  // two pieces
    DenseSum mine(ReductionKind::exact, n);
    DenseSum all(ReductionKind::exact, n);
    for (int k = 0; k < 5; ++k) {
        std::vector<double> changes(n);
        for (std::size_t i = 0; i < n; ++i)
            changes[i] = 1e-3 * standard_normal(hash_seed(9, Purpose::test, k, i % 1000));
        all.add(changes, k + 0.1);
        if (k % t.mpi_size() == t.mpi_rank()) mine.add(changes, k + 0.1);
    }
    for (const Precision wire : {Precision::fp32, Precision::fp64}) {
        std::size_t next = 0;
        exchange_base(
            t, mine, wire,
            [&](std::size_t, std::span<double> values) {
                EXPECT_TRUE(t.is_root());
                for (double& value : values) value = 1.0 + 0.5 * value;
            },
            [&](std::size_t first, std::span<const double> values) {
                EXPECT_EQ(first, next);
                next += values.size();
                for (std::size_t i = 0; i < values.size(); i += 997) {
                    const double expected = 1.0 + 0.5 * all.sums().exact().value(first + i);
                    ASSERT_EQ(values[i], wire == Precision::fp32 ? static_cast<float>(expected) : expected);
                }
            });
        EXPECT_EQ(next, n);
    }
}

TEST(Exchange, the_fast_reduction_agrees_to_rounding) {
    auto& t = transport();
    auto round = random_round(33, 8);
    const auto exact = run_local(round);
    round.reduction = ReductionKind::fast;
    std::vector<int> owner;
    for (std::size_t k = 0; k < 8; ++k) owner.push_back(static_cast<int>(k) % t.mpi_size());
    const auto result = run_round(t, round, owner, {0, 1, 2, 3, 4, 5, 6, 7});
    for (std::size_t i = 0; i < result.global.size(); ++i) ASSERT_NEAR(result.global[i], exact.global[i], 1e-12);
}

TEST(Exchange, the_adapter_arrives_with_the_bits_of_root) {
    auto& t = transport();
    const auto exact = random_values(500, 34);
    for (const auto wire : {Precision::fp32, Precision::fp64}) {
        std::vector<double> values(500);
        if (t.is_root()) {
            for (std::size_t i = 0; i < 500; ++i) values[i] = exact[i] + 1e-12;  // not a number of fp32
        }
        broadcast_adapter(t, values, wire);
        for (std::size_t i = 0; i < 500; ++i) {
            const double sent = exact[i] + 1e-12;
            ASSERT_EQ(values[i], wire == Precision::fp64 ? sent : static_cast<double>(static_cast<float>(sent)));
        }
    }
}

TEST(Exchange, reports_come_back_whole_and_in_cohort_order) {
    auto& t = transport();
    auto round = random_round(35, 7);
    round.clients[2].dropped = true;
    std::vector<ClientReport> mine;
    for (std::size_t k = 7; k-- > 0;) {
        if (static_cast<int>(k) % t.mpi_size() != t.mpi_rank()) continue;
        auto report = round.report(k);
        report.loss_first = 0.25 * static_cast<double>(k);
        report.mpi_rank = t.mpi_rank();
        report.n_tokens = std::int64_t{1} << 40;
        mine.push_back(report);
    }
    const auto reports = gather_reports(t, round.plan(), mine);
    if (!t.is_root()) {
        EXPECT_TRUE(reports.empty());
        return;
    }
    ASSERT_EQ(reports.size(), 7u);
    for (std::size_t k = 0; k < 7; ++k) {
        EXPECT_EQ(reports[k].client, static_cast<std::int64_t>(10 * k));
        EXPECT_EQ(reports[k].loss_first, 0.25 * static_cast<double>(k));
        EXPECT_TRUE(std::isnan(reports[k].loss_last));
        EXPECT_EQ(reports[k].mpi_rank, static_cast<std::int64_t>(k) % t.mpi_size());
        EXPECT_EQ(reports[k].n_tokens, std::int64_t{1} << 40);
        EXPECT_EQ(reports[k].dropped, k == 2);
        EXPECT_EQ(reports[k].weights, k == 2 ? std::vector<double>{} : round.weights(k));
    }
}

TEST(Exchange, a_missing_report_is_a_bug_that_root_names) {
    LocalTransport local;
    const auto round = random_round(36, 3);
    const std::vector<ClientReport> two{round.report(0), round.report(2)};
    EXPECT_THROW((void)gather_reports(local, round.plan(), two), Error);
    const std::vector<ClientReport> twice{round.report(0), round.report(1), round.report(1)};
    EXPECT_THROW((void)gather_reports(local, round.plan(), twice), Error);
    auto bytes = pack_reports(two);
    bytes.pop_back();
    EXPECT_THROW((void)unpack_reports(bytes), Error);
}

TEST(Exchange, pruned_ranks_reach_every_population) {
    auto& t = transport();
    std::vector<RegisteredClient> clients(
        30,
        {.lora_rank = 8, .initial_lora_rank = 8, .n_windows = 1, .n_loss_tokens = 1, .n_rows = 1, .eligible = true});
    Population population(clients);
    auto round = random_round(37, 3);  // clients 0, 10, 20
    for (auto& client : round.clients) client.lora_rank_before = 8, client.lora_rank_after = 7;
    round.clients[1].dropped = true;
    std::vector<ClientReport> reports;
    if (t.is_root()) {
        for (std::size_t k = 0; k < 3; ++k) {
            reports.push_back(ClientReport{
                .cohort_index = static_cast<std::int64_t>(k), .lora_rank_after = 7, .dropped = k == 1, .weights = {}});
        }
    }
    broadcast_lora_ranks(t, round.plan(), reports, population);
    EXPECT_EQ(population.at(0).lora_rank, 7);
    EXPECT_EQ(population.at(10).lora_rank, 8);  // dropped: keeps its rank
    EXPECT_EQ(population.at(20).lora_rank, 7);
    EXPECT_EQ(population.at(1).lora_rank, 8);
}

}  // namespace
}  // namespace hetlora
