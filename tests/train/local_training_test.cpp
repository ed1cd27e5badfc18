// Local training of a pack: a client cannot tell that it was batched, whatever its neighbours do.
#include "hetlora/train/local_training.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "hetlora/data/batches.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/train/client_update.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::hashed_factors;
using testing_train::relative_difference;
using testing_train::World;

/// Five clients with their own lora_ranks (three widths), steps, tails and scales; factors by client.
struct Cohort {
    explicit Cohort(const AdapterLayout& layout) {
        const std::int64_t lora_ranks[] = {3, 8, 5, 11, 3};
        const std::int64_t tails[] = {2, 8, 4, 9, 3};
        const std::int64_t steps[] = {4, 2, 6, 3, 4};
        for (int c = 0; c < 5; ++c) {
            factors.push_back(hashed_factors(layout, c, lora_ranks[c]));
            tasks.push_back({.client = c,
                             .lora_rank = lora_ranks[c],
                             .tail_start = tails[c],
                             .n_steps = steps[c],
                             .scale = 1.0 + 0.25 * c,
                             .received = factors.back()});
        }
    }
    Cohort(const Cohort&) = delete;
    Cohort& operator=(const Cohort&) = delete;
    std::vector<std::vector<double>> factors;
    std::vector<ClientTask> tasks;
};

LocalOptions busy_options(OptimizerKind optimizer) {
    LocalOptions options;
    options.optimizer = optimizer;
    options.learning_rate = optimizer == OptimizerKind::sgd ? 0.2 : 0.01;
    options.weight_decay = 0.1;
    options.clip_norm = 0.5;
    options.tail_lambda = 0.05;
    options.batch_size = 2;
    options.seed_data = 4;
    options.round = 3;
    return options;
}

void expect_same(const ClientOutcome& a, const ClientOutcome& b, double tolerance) {
    ASSERT_EQ(a.client, b.client);
    EXPECT_LT(relative_difference(a.trained, b.trained), tolerance) << "client " << a.client;
    EXPECT_EQ(a.n_tokens, b.n_tokens);
    EXPECT_EQ(a.finite, b.finite);
    ASSERT_EQ(a.steps.size(), b.steps.size());
    for (std::size_t s = 0; s < a.steps.size(); ++s) {
        EXPECT_NEAR(a.steps[s].loss, b.steps[s].loss, tolerance) << "client " << a.client << ", step " << s;
        EXPECT_EQ(a.steps[s].n_loss_tokens, b.steps[s].n_loss_tokens);
        EXPECT_EQ(a.steps[s].windows, b.steps[s].windows);
    }
}

void expect_pack_equals_each_alone(at::ScalarType dtype, const LocalOptions& options, double tolerance) {
    World world(dtype);
    const Cohort cohort(world.layout);
    const auto together = train_pack(world.engine, world.data.get(), cohort.tasks, options);
    ASSERT_EQ(together.size(), cohort.tasks.size());
    for (std::size_t t = 0; t < cohort.tasks.size(); ++t) {
        const auto alone = train_pack(world.engine, world.data.get(), std::span(&cohort.tasks[t], 1), options);
        expect_same(together[t], alone[0], tolerance);
        EXPECT_TRUE(together[t].finite);
        EXPECT_EQ(std::ssize(together[t].steps), cohort.tasks[t].n_steps);
        EXPECT_GT(relative_difference(together[t].trained, cohort.factors[t]), 1e-3)
            << "client " << t << " did not learn";
    }
}

TEST(TrainPack, equals_each_client_alone) {
    expect_pack_equals_each_alone(at::kDouble, busy_options(OptimizerKind::adamw), 1e-10);
    expect_pack_equals_each_alone(at::kDouble, busy_options(OptimizerKind::sgd), 1e-10);
    expect_pack_equals_each_alone(at::kFloat, busy_options(OptimizerKind::sgd), 1e-5);
}

TEST(TrainPack, equals_each_client_alone_with_dropout) {
    LocalOptions options = busy_options(OptimizerKind::adamw);
    options.dropout = 0.3;
    expect_pack_equals_each_alone(at::kDouble, options, 1e-10);
}

TEST(TrainPack, one_step_is_the_engines_gradient_and_one_update) {
    World world(at::kDouble);
    const auto factors = hashed_factors(world.layout, 1, 5);
    const ClientTask task{
        .client = 2, .lora_rank = 5, .tail_start = 5, .n_steps = 1, .scale = 1.5, .received = factors};
    LocalOptions options;
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 0.1;
    options.batch_size = 3;
    const auto outcome = train_pack(world.engine, world.data.get(), std::span(&task, 1), options)[0];

    AdapterGroup group(world.layout, 1, 8, true, world.weights.options());
    group.set(0, factors, 5);
    BatchClient client{.group = &group, .client_in_group = 0, .scale = 1.5, .dropout_seed = 0, .sequences = {}};
    std::vector<WindowTokens> tokens;
    for (const WindowRef& window : outcome.steps[0].windows) tokens.push_back(world.data.get().read(window));
    for (const auto& window : tokens) client.sequences.push_back({.inputs = window.inputs, .targets = window.targets});
    const RowLosses losses = world.engine.train(make_batch(world.weights, std::span(&client, 1)));
    double sum = 0.0;
    for (const double loss : losses.loss_L) sum += loss;
    EXPECT_EQ(outcome.steps[0].n_loss_tokens, std::ssize(losses.loss_L));
    EXPECT_NEAR(outcome.steps[0].loss, sum / static_cast<double>(losses.loss_L.size()), 1e-13);
    const auto gradient = group.get_gradient(0, 5);
    for (std::size_t i = 0; i < factors.size(); ++i)
        ASSERT_NEAR(outcome.trained[i], factors[i] - 0.1 * gradient[i], 1e-13);
}

TEST(TrainPack, steps_use_the_windows_of_the_batch_order) {
    World world(at::kFloat, {"q_proj"});
    const auto factors = hashed_factors(world.layout, 1, 4);
    const ClientTask task{
        .client = 3, .lora_rank = 4, .tail_start = 4, .n_steps = 9, .scale = 1.0, .received = factors};
    LocalOptions options = busy_options(OptimizerKind::sgd);
    const auto outcome = train_pack(world.engine, world.data.get(), std::span(&task, 1), options)[0];

    const auto windows = world.data.get().train_windows(3);
    const BatchOrder order{.seed_data = options.seed_data,
                           .client = 3,
                           .round = options.round,
                           .n_windows = std::ssize(windows),
                           .batch_size = 2};
    ASSERT_GT(std::int64_t{9}, steps_per_epoch(order));  // wraps into a second epoch
    std::int64_t rows = 0;
    for (std::int64_t s = 0; s < 9; ++s) {
        std::vector<WindowRef> expected;
        std::int64_t n_loss = 0;
        for (const std::int64_t i : batch_windows(order, s)) {
            expected.push_back(windows[static_cast<std::size_t>(i)]);
            n_loss += expected.back().n_loss;
            rows += expected.back().rows;
        }
        EXPECT_EQ(outcome.steps[static_cast<std::size_t>(s)].windows, expected);
        EXPECT_EQ(outcome.steps[static_cast<std::size_t>(s)].n_loss_tokens, n_loss);
    }
    EXPECT_EQ(outcome.n_tokens, rows);
}

TEST(TrainPack, losses_fall) {
    World world(at::kFloat);
    const Cohort cohort(world.layout);
    auto tasks = cohort.tasks;
    for (auto& task : tasks) task.n_steps = 40;
    LocalOptions options = busy_options(OptimizerKind::adamw);
    options.learning_rate = 0.02;
    options.batch_size = 100;  // all of a client's windows in every step: losses of steps can be compared
    for (const auto& outcome : train_pack(world.engine, world.data.get(), tasks, options)) {
        EXPECT_LT(outcome.steps.back().loss, 0.8 * outcome.steps.front().loss) << "client " << outcome.client;
    }
}

TEST(TrainPack, the_order_of_the_tasks_does_not_matter) {
    World world(at::kDouble);
    const Cohort cohort(world.layout);
    const LocalOptions options = busy_options(OptimizerKind::adamw);
    const auto straight = train_pack(world.engine, world.data.get(), cohort.tasks, options);
    for (const auto& order : {std::vector<std::size_t>{4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}}) {
        std::vector<ClientTask> tasks;
        for (const std::size_t t : order) tasks.push_back(cohort.tasks[t]);
        const auto mixed = train_pack(world.engine, world.data.get(), tasks, options);
        for (std::size_t i = 0; i < order.size(); ++i) expect_same(mixed[i], straight[order[i]], 1e-10);
    }
}

TEST(TrainPack, a_client_that_is_not_finite_is_marked_and_touches_nobody) {
    World world(at::kDouble);
    Cohort cohort(world.layout);
    const LocalOptions options = busy_options(OptimizerKind::adamw);
    const auto healthy = train_pack(world.engine, world.data.get(), cohort.tasks, options);
    for (const double sickness :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), 1e200}) {
        auto factors = cohort.factors[0];  // client 4 shares its lora_rank, and so its group
        for (double& value : factors) value = sickness;
        auto tasks = cohort.tasks;
        tasks[0].received = factors;
        const auto outcomes = train_pack(world.engine, world.data.get(), tasks, options);
        EXPECT_FALSE(outcomes[0].finite);
        for (std::size_t t = 1; t < tasks.size(); ++t) expect_same(outcomes[t], healthy[t], 1e-10);
    }
}

TEST(TrainPack, dropout_is_reproducible_and_keyed_by_client_seed_and_round) {
    World world(at::kDouble, {"q_proj", "down_proj"});
    const auto factors = hashed_factors(world.layout, 1, 4);
    LocalOptions options = busy_options(OptimizerKind::sgd);
    options.dropout = 0.4;
    options.batch_size = 100;
    const auto trained = [&](std::int64_t client, const LocalOptions& with) {
        const ClientTask task{
            .client = client, .lora_rank = 4, .tail_start = 4, .n_steps = 2, .scale = 1.0, .received = factors};
        return train_pack(world.engine, world.data.get(), std::span(&task, 1), with)[0].trained;
    };
    const auto once = trained(1, options);
    EXPECT_EQ(once, trained(1, options));
    LocalOptions without = options;
    without.dropout = 0.0;
    LocalOptions other_round = options;
    ++other_round.round;
    LocalOptions other_seed = options;
    ++other_seed.seed_data;
    for (const auto& other : {without, other_round, other_seed})
        EXPECT_GT(relative_difference(trained(1, other), once), 1e-4);
    // A batch of all windows is the same one in every round, but for the order of its sums: without dropout nothing
    // changes.
    other_round.dropout = 0.0;
    EXPECT_LT(relative_difference(trained(1, other_round), trained(1, without)), 1e-10);
}

TEST(TrainPack, padded_slots_stay_zero_through_engine_and_optimiser) {
    World world(at::kFloat);
    AdapterGroup group(world.layout, 1, 8, true, world.weights.options());
    group.set(0, hashed_factors(world.layout, 1, 3), 3);
    const LocalOptions options = busy_options(OptimizerKind::adamw);
    OptimizerState state(group, options.optimizer);
    const WindowTokens window = world.data.get().read(world.data.get().train_windows(0).front());
    const BatchClient client{.group = &group,
                             .client_in_group = 0,
                             .scale = 1.5,
                             .dropout_seed = 0,
                             .sequences = {{.inputs = window.inputs, .targets = window.targets}}};
    for (int step = 1; step <= 30; ++step) {
        (void)world.engine.train(make_batch(world.weights, std::span(&client, 1)));
        update_client(group, state, 0, world.layout, {.lora_rank = 3, .tail_start = 2, .step = step}, options);
    }
    for (const auto& matrix : group.matrices) {
        EXPECT_EQ(matrix.a_CWD[0].slice(0, 3).abs().max().item<double>(), 0.0);
        EXPECT_EQ(matrix.bt_CWO[0].slice(0, 3).abs().max().item<double>(), 0.0);
    }
}

TEST(TrainPack, no_tasks_and_no_steps_change_nothing) {
    World world(at::kDouble, {"q_proj"});
    EXPECT_TRUE(train_pack(world.engine, world.data.get(), {}, {}).empty());
    const auto factors = hashed_factors(world.layout, 1, 4);
    const ClientTask task{
        .client = 0, .lora_rank = 4, .tail_start = 4, .n_steps = 0, .scale = 1.0, .received = factors};
    const auto outcome = train_pack(world.engine, world.data.get(), std::span(&task, 1), {})[0];
    EXPECT_EQ(outcome.trained, factors);
    EXPECT_TRUE(outcome.steps.empty());
    EXPECT_TRUE(outcome.finite);
}

TEST(ScheduledRate, warms_up_and_falls_to_the_final_fraction) {
    using enum LearningRateSchedule;
    const auto rate = [](LearningRateSchedule schedule, std::int64_t round) {
        return scheduled_rate(schedule, 2.0, round, 12, 2, 0.1);
    };
    for (const auto schedule : {constant, linear, cosine}) {
        EXPECT_DOUBLE_EQ(rate(schedule, 1), 1.0);
        EXPECT_DOUBLE_EQ(rate(schedule, 2), 2.0);
    }
    EXPECT_DOUBLE_EQ(rate(constant, 7), 2.0);
    EXPECT_DOUBLE_EQ(rate(constant, 12), 2.0);
    EXPECT_DOUBLE_EQ(rate(linear, 3), 2.0 * (0.1 + 0.9 * 0.9));
    EXPECT_DOUBLE_EQ(rate(linear, 7), 2.0 * (0.1 + 0.9 * 0.5));
    EXPECT_DOUBLE_EQ(rate(linear, 12), 0.2);
    EXPECT_DOUBLE_EQ(rate(cosine, 7), 2.0 * (0.1 + 0.9 * 0.5));
    EXPECT_NEAR(rate(cosine, 4), 2.0 * (0.1 + 0.9 * 0.5 * (1.0 + std::cos(std::numbers::pi / 5))), 1e-15);
    EXPECT_DOUBLE_EQ(rate(cosine, 12), 0.2);
    EXPECT_DOUBLE_EQ(scheduled_rate(linear, 2.0, 1, 1, 0, 0.1), 0.2);  // one round is the last round
    EXPECT_DOUBLE_EQ(scheduled_rate(linear, 2.0, 3, 3, 4, 0.1), 1.5);  // a warm-up longer than the run
    EXPECT_DOUBLE_EQ(scheduled_rate(linear, 2.0, 4, 4, 4, 0.1), 2.0);
}

}  // namespace
}  // namespace hetlora
