// The whole local training as a GPU runs it (ATen's ops, spans side by side, losses in tensors, steps through a
// runner), on CPU tensors, against the CPU's kernels.
#include <gtest/gtest.h>

#include "hetlora/model/batch.hpp"
#include "hetlora/train/evaluation.hpp"
#include "hetlora/train/local_training.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::AtenForced;
using testing_train::hashed_factors;
using testing_train::relative_difference;
using testing_train::World;

std::vector<ClientOutcome> trained(World& world, const std::vector<std::size_t>& clients) {
    constexpr std::array<std::int64_t, 4> lora_ranks{3, 8, 5, 11};
    std::vector<std::vector<double>> factors;
    std::vector<ClientTask> tasks;
    for (const std::size_t c : clients)
        factors.push_back(hashed_factors(world.layout, static_cast<int>(c), lora_ranks[c]));
    for (std::size_t i = 0; i < clients.size(); ++i) {
        const std::size_t c = clients[i];
        tasks.push_back({.client = static_cast<std::int64_t>(c),
                         .lora_rank = lora_ranks[c],
                         .tail_start = lora_ranks[c] - 1,
                         .n_steps = 3 + static_cast<std::int64_t>(c % 2),
                         .scale = 1.5,
                         .received = factors[i]});
    }
    LocalOptions options;
    options.learning_rate = 0.01;
    options.clip_norm = 0.5;
    options.tail_lambda = 0.05;
    options.batch_size = 2;
    return train_pack(world.engine, world.data.get(), tasks, options);
}

TEST(DevicePath, trains_the_same_adapters) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-9}, {at::kFloat, 1e-4}, {at::kBFloat16, 3e-2}}) {
        World world(dtype);
        const auto kernels = trained(world, {0, 1, 2, 3});
        const AtenForced forced;
        const auto aten = trained(world, {0, 1, 2, 3});
        for (std::size_t c = 0; c < kernels.size(); ++c) {
            EXPECT_LT(relative_difference(aten[c].trained, kernels[c].trained), tolerance) << "client " << c;
            for (std::size_t s = 0; s < kernels[c].steps.size(); ++s)
                EXPECT_NEAR(aten[c].steps[s].loss, kernels[c].steps[s].loss, tolerance);
        }
    }
}

TEST(DevicePath, a_client_cannot_tell_it_was_batched) {
    World world(at::kDouble);
    const AtenForced forced;
    const auto together = trained(world, {0, 1, 2, 3});
    for (const std::size_t c : {0U, 1U, 2U, 3U}) {
        const auto alone = trained(world, {c});
        EXPECT_LT(relative_difference(together[c].trained, alone[0].trained), 1e-10) << "client " << c;
    }
}

/// Counts the steps that go through it.
class CountingRunner final : public StepRunner {
public:
    explicit CountingRunner(int& steps) : steps_(steps) {}
    RowLossTensors train(Engine& engine, const TokenBatch& batch, double dropout) override {
        ++steps_;
        return engine.train_on_device(batch, dropout);
    }

private:
    int& steps_;
};

TEST(DevicePath, steps_go_through_the_runner_and_keep_their_bits) {
    World world(at::kFloat);
    const auto plain = trained(world, {0, 1});
    int steps = 0;
    world.engine.set_step_runner(std::make_unique<CountingRunner>(steps));
    const auto run = trained(world, {0, 1});
    EXPECT_EQ(steps, 4);
    for (std::size_t c = 0; c < plain.size(); ++c) EXPECT_EQ(plain[c].trained, run[c].trained);
}

}  // namespace
}  // namespace hetlora
