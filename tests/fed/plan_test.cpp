// The plan of a round is a pure function, independent of the number of mpi_ranks.
#include "hetlora/fed/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

Population population_of(std::int64_t n) {
    std::vector<RegisteredClient> clients;
    for (std::int64_t client = 0; client < n; ++client) {
        const auto bits = hash_seed(7, Purpose::test, client);
        const auto rank = static_cast<std::int64_t>(2 + bits % 31);
        const auto windows = static_cast<std::int64_t>(bits / 64 % 20);  // some have none
        clients.push_back({.lora_rank = rank,
                           .initial_lora_rank = rank,
                           .n_windows = windows,
                           .n_loss_tokens = windows * 30,
                           .n_rows = windows * (20 + client % 50),
                           .eligible = windows > 0});
    }
    return Population(clients);
}

PlanOptions options() {
    return {.seed_sampling = 3, .clients_per_round = 24, .steps = 5, .epochs = 0, .batch_size = 4, .pack_tokens = 700};
}

TEST(Plan, the_cohort_is_the_smallest_hashes_among_the_eligible) {
    const auto population = population_of(100);
    const auto plan = make_round_plan(6, population, options());
    ASSERT_EQ(plan.cohort.size(), 24u);
    std::set<std::int64_t> cohort;
    std::uint64_t largest = 0;
    for (const auto& planned : plan.cohort) {
        cohort.insert(planned.client);
        largest = std::max(largest, hash_seed(3, Purpose::sampling, 6, planned.client));
        EXPECT_EQ(planned.lora_rank, population.at(planned.client).lora_rank);
        EXPECT_EQ(planned.n_steps, 5);
    }
    EXPECT_EQ(cohort.size(), 24u);
    EXPECT_TRUE(std::ranges::is_sorted(plan.cohort, {}, &PlannedClient::client));
    for (const auto client : population.eligible()) {
        if (!cohort.contains(client)) {
            EXPECT_GT(hash_seed(3, Purpose::sampling, 6, client), largest);
        }
    }
}

TEST(Plan, every_client_is_sampled_about_equally_often) {
    const auto population = population_of(60);
    std::map<std::int64_t, int> count;
    for (std::int64_t round = 0; round < 2000; ++round) {
        for (const auto& planned : make_round_plan(round, population, options()).cohort) ++count[planned.client];
    }
    const double expected = 2000.0 * 24.0 / static_cast<double>(population.eligible().size());
    for (const auto client : population.eligible()) EXPECT_NEAR(count[client], expected, 0.1 * expected);
}

TEST(Plan, packs_are_sorted_by_width_and_filled_up_to_the_budget) {
    const auto population = population_of(100);
    const auto plan = make_round_plan(1, population, options());
    std::set<std::int64_t> seen;
    std::int64_t last_width = 0;
    for (std::size_t p = 0; p < plan.packs.size(); ++p) {
        const auto& pack = plan.packs[p];
        std::int64_t rows = 0, cost = 0;
        for (const auto index : pack.members) {
            const auto& planned = plan.cohort.at(static_cast<std::size_t>(index));
            EXPECT_EQ(planned.pack, static_cast<std::int64_t>(p));
            seen.insert(index);
            rows += planned.rows_per_step;
            cost += planned.rows_per_step * planned.n_steps;
            const auto width = (planned.lora_rank + 7) / 8 * 8;
            EXPECT_GE(width, last_width);
            last_width = width;
        }
        EXPECT_EQ(rows, pack.rows_per_step);
        EXPECT_EQ(cost, pack.cost);
        EXPECT_TRUE(rows <= 700 || pack.members.size() == 1);
    }
    EXPECT_EQ(seen.size(), 24u);
    EXPECT_GT(plan.packs.size(), 1u);
}

TEST(Plan, rows_and_steps_follow_the_data) {
    Population population(
        {{.lora_rank = 4, .initial_lora_rank = 4, .n_windows = 10, .n_loss_tokens = 1, .n_rows = 95, .eligible = true},
         {.lora_rank = 4, .initial_lora_rank = 4, .n_windows = 2, .n_loss_tokens = 1, .n_rows = 30, .eligible = true}});
    auto o = options();
    o.clients_per_round = 0;
    o.steps = 0;
    o.epochs = 2;
    const auto plan = make_round_plan(0, population, o);
    EXPECT_EQ(plan.cohort[0].n_steps, 6);         // 2 epochs of ceil(10 / 4)
    EXPECT_EQ(plan.cohort[0].rows_per_step, 40);  // ceil(9.5) rows, 4 windows
    EXPECT_EQ(plan.cohort[1].n_steps, 2);
    EXPECT_EQ(plan.cohort[1].rows_per_step, 30);  // only two windows
}

TEST(Plan, work_is_shared_out_longest_first) {
    RoundPlan plan;
    for (const std::int64_t cost : {3, 9, 4, 4, 8}) {
        Pack pack;
        pack.cost = cost;
        plan.packs.push_back(pack);
    }
    EXPECT_EQ(assign_packs(plan, 2), (std::vector<int>{1, 0, 1, 0, 1}));  // 9 | 8, 8+4 | 9+4, 12+3
    EXPECT_EQ(assign_packs(plan, 1), (std::vector<int>(5, 0)));
    const auto four = assign_packs(plan, 4);
    EXPECT_EQ(packs_of(four, four[1]), (std::vector<std::int64_t>{1}));
}

TEST(Plan, too_few_clients_is_a_clear_error) {
    auto o = options();
    o.clients_per_round = 1000;
    try {
        (void)make_round_plan(0, population_of(50), o);
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_NE(std::string(error.what()).find("experiment.clients_per_round = 1000"), std::string::npos);
    }
}

TEST(Population, only_the_data_of_the_cohort_is_looked_at) {
    const auto known = population_of(1000);
    std::set<std::int64_t> looked_at;
    const std::vector<std::int64_t> ranks = known.lora_ranks();
    const Population lazy(ranks, known.eligible(), [&](std::int64_t client) {
        looked_at.insert(client);
        const RegisteredClient record = known.at(client);
        return ClientData{
            .n_windows = record.n_windows, .n_loss_tokens = record.n_loss_tokens, .n_rows = record.n_rows};
    });
    EXPECT_TRUE(looked_at.empty());
    const RoundPlan plan = make_round_plan(5, lazy, options());
    const RoundPlan same = make_round_plan(5, known, options());
    std::set<std::int64_t> cohort;
    for (std::size_t i = 0; i < plan.cohort.size(); ++i) {
        cohort.insert(plan.cohort[i].client);
        EXPECT_EQ(plan.cohort[i].client, same.cohort[i].client);
        EXPECT_EQ(plan.cohort[i].rows_per_step, same.cohort[i].rows_per_step);
        EXPECT_EQ(plan.cohort[i].lora_rank, same.cohort[i].lora_rank);
    }
    EXPECT_EQ(looked_at, cohort);
}

TEST(Population, ranks_only_shrink) {
    auto population = population_of(5);
    const auto start = population.lora_ranks();
    population.shrink_lora_rank(2, 2);
    EXPECT_EQ(population.at(2).lora_rank, 2);
    EXPECT_EQ(population.at(2).initial_lora_rank, start[2]);
    EXPECT_THROW(population.shrink_lora_rank(2, 3), Error);
    EXPECT_THROW(population.shrink_lora_rank(2, 0), Error);
    const auto pruned = population.lora_ranks();
    auto fresh = population_of(5);
    fresh.restore_lora_ranks(pruned);
    EXPECT_EQ(fresh.lora_ranks(), pruned);
    EXPECT_THROW(fresh.restore_lora_ranks(std::vector<std::int64_t>{1}), Error);
}

}  // namespace
}  // namespace hetlora
