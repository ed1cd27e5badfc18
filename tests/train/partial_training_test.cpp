// Packs whose clients train a part of their adapters, or with FedProx's term, through the whole local training.
#include <gtest/gtest.h>

#include <limits>

#include "hetlora/train/local_training.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::AtenForced;
using testing_train::hashed_factors;
using testing_train::hashed_mask;
using testing_train::relative_difference;
using testing_train::trains_by_element;
using testing_train::World;

/// Five clients of two widths: all of it, one factor each, hashed slots, nothing. Factors are exact in float32.
struct PartialCohort {
    explicit PartialCohort(const AdapterLayout& layout) {
        const std::int64_t lora_ranks[] = {5, 3, 8, 7, 11};
        const TrainedFactors parts[] = {TrainedFactors::both, TrainedFactors::a_only, TrainedFactors::b_only,
                                        TrainedFactors::both, TrainedFactors::b_only};
        factors.reserve(5);
        masks.reserve(5);
        for (int c = 0; c < 5; ++c) {
            factors.push_back(hashed_factors(layout, c, lora_ranks[c]));
            for (double& value : factors.back()) value = static_cast<double>(static_cast<float>(value));
            masks.push_back(c < 3 ? std::vector<std::uint8_t>{} : hashed_mask(layout, c, lora_ranks[c]));
            tasks.push_back({.client = c,
                             .lora_rank = lora_ranks[c],
                             .tail_start = lora_ranks[c] - 1,
                             .n_steps = 2 + c % 3,
                             .scale = 1.5,
                             .received = factors.back(),
                             .trained_factors = parts[c],
                             .trained_slots = masks.back()});
            trains.push_back(trains_by_element(layout, lora_ranks[c], parts[c], masks.back()));
        }
    }
    PartialCohort(const PartialCohort&) = delete;
    PartialCohort& operator=(const PartialCohort&) = delete;
    std::vector<std::vector<double>> factors;
    std::vector<std::vector<std::uint8_t>> masks;
    std::vector<ClientTask> tasks;
    std::vector<std::vector<bool>> trains;
};

LocalOptions busy_options() {
    LocalOptions options;
    options.learning_rate = 0.01;
    options.weight_decay = 0.1;
    options.clip_norm = 0.5;
    options.tail_lambda = 0.05;
    options.prox_mu = 0.3;
    options.batch_size = 2;
    options.seed_data = 4;
    options.round = 3;
    return options;
}

void expect_frozen_bits(const PartialCohort& cohort, const std::vector<ClientOutcome>& outcomes) {
    for (std::size_t c = 0; c < outcomes.size(); ++c) {
        EXPECT_TRUE(outcomes[c].finite);
        EXPECT_GT(outcomes[c].steps.back().loss, 0.0);
        for (std::size_t i = 0; i < cohort.trains[c].size(); ++i)
            ASSERT_EQ(outcomes[c].trained[i] == cohort.factors[c][i], !cohort.trains[c][i])
                << "client " << c << ", value " << i;
    }
}

TEST(PartialTraining, frozen_elements_come_back_as_received) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
        World world(dtype);
        const PartialCohort cohort(world.layout);
        const auto kernels = train_pack(world.engine, world.data.get(), cohort.tasks, busy_options());
        expect_frozen_bits(cohort, kernels);
        const AtenForced forced;
        const auto aten = train_pack(world.engine, world.data.get(), cohort.tasks, busy_options());
        expect_frozen_bits(cohort, aten);
        const double tolerance = dtype == at::kDouble ? 1e-9 : dtype == at::kFloat ? 1e-4 : 3e-2;
        for (std::size_t c = 0; c < kernels.size(); ++c)
            EXPECT_LT(relative_difference(aten[c].trained, kernels[c].trained), tolerance);
    }
}

TEST(PartialTraining, a_client_has_its_bits_whoever_is_beside_it) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
        World world(dtype);
        const PartialCohort cohort(world.layout);
        const auto together = train_pack(world.engine, world.data.get(), cohort.tasks, busy_options());
        for (std::size_t c = 0; c < cohort.tasks.size(); ++c) {
            const auto alone =
                train_pack(world.engine, world.data.get(), std::span(&cohort.tasks[c], 1), busy_options());
            EXPECT_EQ(alone[0].trained, together[c].trained) << "client " << c;
            for (std::size_t s = 0; s < alone[0].steps.size(); ++s)
                EXPECT_EQ(alone[0].steps[s].loss, together[c].steps[s].loss);
        }
    }
}

TEST(PartialTraining, nan_in_a_frozen_part_reaches_nobody_else) {
    for (const bool aten : {false, true}) {
        World world(at::kFloat);
        const PartialCohort cohort(world.layout);
        const std::unique_ptr<AtenForced> forced = aten ? std::make_unique<AtenForced>() : nullptr;
        const auto healthy = train_pack(world.engine, world.data.get(), cohort.tasks, busy_options());
        auto sick = cohort.factors[1];
        auto& trains = cohort.trains[1];
        for (std::size_t i = 0; i < sick.size(); ++i)
            if (!trains[i]) sick[i] = std::numeric_limits<double>::quiet_NaN();
        auto tasks = cohort.tasks;
        tasks[1].received = sick;
        const auto outcomes = train_pack(world.engine, world.data.get(), tasks, busy_options());
        EXPECT_FALSE(outcomes[1].finite);
        for (const std::size_t c : {0U, 2U, 3U, 4U}) EXPECT_EQ(outcomes[c].trained, healthy[c].trained) << c;
    }
}

TEST(PartialTraining, with_nothing_to_train_the_adapter_stays_and_losses_are_logged) {
    for (const bool aten : {false, true}) {
        World world(at::kFloat);
        PartialCohort cohort(world.layout);
        const std::unique_ptr<AtenForced> forced = aten ? std::make_unique<AtenForced>() : nullptr;
        const std::vector<std::uint8_t> none(world.layout.matrices.size() * 8, 0);
        cohort.tasks[2].trained_slots = none;
        cohort.tasks[2].n_steps = 4;
        const auto outcome =
            train_pack(world.engine, world.data.get(), std::span(&cohort.tasks[2], 1), busy_options())[0];
        EXPECT_EQ(outcome.trained, cohort.factors[2]);
        EXPECT_TRUE(outcome.finite);
        EXPECT_EQ(outcome.steps.size(), 4U);
        for (const StepRecord& step : outcome.steps) EXPECT_GT(step.loss, 0.0);
    }
}

TEST(PartialTraining, one_factor_moves_as_it_does_beside_the_other) {
    // One step of SGD without clipping: what trains does not depend on what else does.
    World world(at::kDouble);
    LocalOptions options;
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 0.2;
    const auto factors = hashed_factors(world.layout, 1, 6);
    const auto trained = [&](TrainedFactors which) {
        const ClientTask task{.client = 2,
                              .lora_rank = 6,
                              .tail_start = 6,
                              .n_steps = 1,
                              .scale = 1.5,
                              .received = factors,
                              .trained_factors = which};
        return train_pack(world.engine, world.data.get(), std::span(&task, 1), options)[0].trained;
    };
    const auto both = trained(TrainedFactors::both);
    for (const TrainedFactors which : {TrainedFactors::a_only, TrainedFactors::b_only}) {
        const auto one = trained(which);
        const auto trains = trains_by_element(world.layout, 6, which, {});
        for (std::size_t i = 0; i < one.size(); ++i) EXPECT_EQ(one[i], trains[i] ? both[i] : factors[i]) << i;
    }
}

TEST(ProximalTraining, pulls_each_client_to_what_it_received) {
    // SGD: the second step of theta_2 = theta_1 - rate (g(theta_1) + mu (theta_1 - theta_0)) differs from the one
    // without the term by rate mu (theta_1 - theta_0); the first step and the logged losses do not differ at all.
    for (const bool aten : {false, true}) {
        World world(at::kDouble);
        PartialCohort cohort(world.layout);
        const std::unique_ptr<AtenForced> forced = aten ? std::make_unique<AtenForced>() : nullptr;
        LocalOptions options;
        options.optimizer = OptimizerKind::sgd;
        options.learning_rate = 0.2;
        const auto run = [&](std::int64_t steps, double mu) {
            for (ClientTask& task : cohort.tasks) task.n_steps = steps;
            options.prox_mu = mu;
            return train_pack(world.engine, world.data.get(), cohort.tasks, options);
        };
        const auto first = run(1, 0.0);
        const auto first_with = run(1, 0.9);
        const auto second = run(2, 0.0);
        const auto second_with = run(2, 0.9);
        for (std::size_t c = 0; c < first.size(); ++c) {
            EXPECT_EQ(first[c].trained, first_with[c].trained);
            for (std::size_t s = 0; s < 2; ++s) EXPECT_EQ(second[c].steps[s].loss, second_with[c].steps[s].loss);
            for (std::size_t i = 0; i < first[c].trained.size(); ++i) {
                const double pull = 0.2 * 0.9 * (first[c].trained[i] - cohort.factors[c][i]);
                ASSERT_NEAR(second_with[c].trained[i], second[c].trained[i] - pull, 1e-14) << "client " << c;
            }
        }
    }
}

}  // namespace
}  // namespace hetlora
