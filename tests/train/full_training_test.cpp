// Full fine-tuning of one client: against numerical gradients, by hand, and whatever was trained before.
#include "hetlora/train/full_training.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "hetlora/base/error.hpp"
#include "hetlora/train/evaluation.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::SmallCorpus;
using testing_train::World;

constexpr std::int64_t many_rows = 1000;

LocalOptions options_of(OptimizerKind optimizer) {
    LocalOptions options;
    options.optimizer = optimizer;
    options.learning_rate = optimizer == OptimizerKind::sgd ? 0.1 : 0.003;
    options.batch_size = 2;
    options.seed_data = 4;
    options.round = 3;
    return options;
}

LocalOptions busy_options_of(OptimizerKind optimizer) {
    LocalOptions options = options_of(optimizer);
    options.weight_decay = 0.1;
    options.clip_norm = 0.5;
    return options;
}

std::vector<double> all_changes(const FullTraining& training) {
    std::vector<double> changes(training.n_weights());
    training.read_changes(0, changes);
    return changes;
}

/// Mean loss of some windows on the engine's present weights.
double loss_of(World& world, const std::vector<WindowRef>& windows) {
    std::vector<std::size_t> batch(windows.size());
    std::iota(batch.begin(), batch.end(), std::size_t{0});
    return evaluate_batch(world.engine, world.data.get(), windows, batch, {}).mean_loss();
}

TEST(FullTraining, one_step_goes_down_the_numerical_gradient_of_the_engine) {
    World world(at::kDouble);
    FullTraining training(world.engine.weights(), OptimizerKind::sgd, many_rows);
    const ClientOutcome outcome = training.train(world.data.get(), 1, 1, options_of(OptimizerKind::sgd));
    ASSERT_EQ(outcome.steps.size(), 1U);
    const auto& windows = outcome.steps.front().windows;
    EXPECT_EQ(windows.size(), 2U);
    EXPECT_NEAR(outcome.steps.front().loss, loss_of(world, windows), 1e-12);

    const std::vector<double> changes = all_changes(training);
    const FlatWeights weights(world.engine.weights());
    ASSERT_EQ(weights.size(), changes.size());
    EXPECT_EQ(std::ssize(changes), world.weights.config.parameters());
    constexpr double h = 1e-5;
    for (std::size_t i = 0; i < changes.size(); i += 37) {
        double before = 0.0;
        weights.read(i, std::span(&before, 1));
        const auto loss_at = [&](double value) {
            world.engine.set_weights(i, std::span(&value, 1));
            return loss_of(world, windows);
        };
        const double slope = (loss_at(before + h) - loss_at(before - h)) / (2.0 * h);
        world.engine.set_weights(i, std::span(&before, 1));
        EXPECT_NEAR(changes[i], -0.1 * slope, 1e-9) << "weight " << i;
    }
}

TEST(FullTraining, small_passes_make_the_same_steps) {
    World world(at::kDouble);
    for (const OptimizerKind optimizer : {OptimizerKind::sgd, OptimizerKind::adamw}) {
        FullTraining whole(world.weights, optimizer, many_rows);
        FullTraining pieces(world.weights, optimizer, 1);
        const ClientOutcome a = whole.train(world.data.get(), 2, 3, busy_options_of(optimizer));
        const ClientOutcome b = pieces.train(world.data.get(), 2, 3, busy_options_of(optimizer));
        for (std::size_t s = 0; s < a.steps.size(); ++s) EXPECT_NEAR(a.steps[s].loss, b.steps[s].loss, 1e-12);
        EXPECT_LT(testing_train::relative_difference(all_changes(whole), all_changes(pieces)), 1e-9);
    }
}

TEST(FullTraining, a_client_does_not_learn_who_was_there_before) {
    World world(at::kFloat);
    for (const OptimizerKind optimizer : {OptimizerKind::sgd, OptimizerKind::adamw}) {
        FullTraining alone(world.weights, optimizer, many_rows);
        FullTraining after(world.weights, optimizer, many_rows);
        const LocalOptions options = busy_options_of(optimizer);
        (void)after.train(world.data.get(), 3, 4, options);
        (void)after.train(world.data.get(), 0, 2, options);
        (void)alone.train(world.data.get(), 0, 2, options);
        EXPECT_EQ(all_changes(alone), all_changes(after));
        EXPECT_GT(all_changes(alone).front() * all_changes(alone).front(), 0.0);
    }
}

TEST(FullTraining, windows_and_steps_are_those_of_a_pack) {
    World world(at::kDouble);
    const auto factors = testing_train::hashed_factors(world.layout, 0, 2);
    const ClientTask task{.client = 1, .lora_rank = 2, .tail_start = 2, .n_steps = 5, .received = factors};
    const LocalOptions options = options_of(OptimizerKind::adamw);
    const auto packed = train_pack(world.engine, world.data.get(), std::span(&task, 1), options);
    FullTraining training(world.weights, options.optimizer, many_rows);
    const ClientOutcome own = training.train(world.data.get(), 1, 5, options);
    ASSERT_EQ(own.steps.size(), packed.front().steps.size());
    EXPECT_EQ(own.n_tokens, packed.front().n_tokens);
    for (std::size_t s = 0; s < own.steps.size(); ++s) {
        EXPECT_EQ(own.steps[s].windows, packed.front().steps[s].windows);
        EXPECT_EQ(own.steps[s].n_loss_tokens, packed.front().steps[s].n_loss_tokens);
    }
}

TEST(FullTraining, values_that_nobody_looks_at_may_be_anything) {
    ModelConfig config = testing_train::micro_config();
    config.tied_head = false;
    LlamaWeights weights = allocate_weights(config, at::TensorOptions().dtype(at::kFloat));
    copy_weights(testing_train::hashed_weights(at::kFloat), [&] {
        LlamaWeights tied = weights;
        tied.config.tied_head = true;
        return tied;
    }());
    weights.head_VD.copy_(weights.embedding_VD);
    weights.embedding_VD[1].fill_(std::numeric_limits<float>::quiet_NaN());  // no text has token 1
    weights.embedding_VD[2].fill_(std::numeric_limits<float>::infinity());
    const SmallCorpus data;
    FullTraining training(weights, OptimizerKind::adamw, many_rows);
    const ClientOutcome outcome = training.train(data.get(), 0, 2, options_of(OptimizerKind::adamw));
    EXPECT_TRUE(outcome.finite);
    const std::vector<double> changes = all_changes(training);
    for (std::size_t i = 0; i < changes.size(); ++i) ASSERT_TRUE(std::isfinite(changes[i])) << i;
    for (std::size_t i = 16; i < 48; ++i) EXPECT_EQ(changes[i], 0.0);
}

TEST(DenseUpdate, clips_by_the_common_norm_and_steps_as_written_by_hand) {
    for (const OptimizerKind optimizer : {OptimizerKind::sgd, OptimizerKind::adamw}) {
        const LocalOptions options = busy_options_of(optimizer);
        const std::vector<double> start{0.5, -1.0, 2.0};
        const std::vector<double> gradient{3.0, -4.0, 12.0};  // norm 13
        auto by_hand = testing_train::by_hand(start);
        std::vector<DenseTensor> tensors;
        for (const std::int64_t first : {0, 2}) {
            const std::int64_t n = first == 0 ? 2 : 1;
            DenseTensor& tensor = tensors.emplace_back();
            tensor.theta = at::empty({n}, at::kDouble);
            std::copy_n(start.begin() + first, n, tensor.theta.data_ptr<double>());
            tensor.gradient = at::empty({n}, at::kDouble);
            if (optimizer == OptimizerKind::sgd) continue;
            tensor.moment1 = at::zeros({n}, at::kDouble);
            tensor.moment2 = at::zeros({n}, at::kDouble);
        }
        for (int step = 1; step <= 3; ++step) {
            std::copy_n(gradient.begin(), 2, tensors[0].gradient.data_ptr<double>());
            std::copy_n(gradient.begin() + 2, 1, tensors[1].gradient.data_ptr<double>());
            update_dense(tensors, options, options.learning_rate, step);
            for (std::size_t i = 0; i < 3; ++i)
                by_hand[i].step(gradient[i] * options.clip_norm / (13.0 + 1e-6), step, options);
        }
        EXPECT_NEAR(tensors[0].theta[0].item<double>(), by_hand[0].theta, 1e-12);
        EXPECT_NEAR(tensors[0].theta[1].item<double>(), by_hand[1].theta, 1e-12);
        EXPECT_NEAR(tensors[1].theta[0].item<double>(), by_hand[2].theta, 1e-12);
    }
}

TEST(FlatWeights, a_row_goes_over_the_borders_of_tensors) {
    const LlamaWeights weights = testing_train::hashed_weights(at::kFloat);
    FlatWeights flat(weights);
    const auto border = static_cast<std::size_t>(weights.embedding_VD.numel());
    std::vector<double> values(20);
    flat.read(border - 10, values);
    EXPECT_EQ(values[9], weights.embedding_VD.flatten()[-1].item<float>());
    EXPECT_EQ(values[10], weights.final_norm_D[0].item<float>());
    std::iota(values.begin(), values.end(), 0.25);
    flat.write(border - 10, values);
    EXPECT_EQ(weights.embedding_VD.flatten()[-1].item<float>(), 9.25F);
    EXPECT_EQ(weights.final_norm_D[9].item<float>(), 19.25F);
    EXPECT_EQ(weights.head_VD.data_ptr(), weights.embedding_VD.data_ptr()) << "a tied head is the embedding";
    EXPECT_THROW(flat.read(flat.size() - 3, values), Error);
}

}  // namespace
}  // namespace hetlora
