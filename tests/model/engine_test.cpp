// The explicit forward and backward against autograd over the plain reference, against finite differences, and against
// itself with other neighbours in the pack.
#include "hetlora/model/engine.hpp"

#include <gtest/gtest.h>

#include "engine_fixtures.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/model/generate.hpp"

namespace hetlora {
namespace {

using namespace testing_engine;

class EngineByTargets : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(EngineByTargets, losses_and_gradients_equal_autograd) {
    const LlamaWeights weights = random_weights(at::kDouble);
    const AdapterLayout layout = make_adapter_layout(weights.config, GetParam());
    Engine engine(weights, layout);
    const TestClient first = make_client(layout, 1, 4, {9, 17});
    const TestClient second = make_client(layout, 2, 7, {26});
    const TestClient third = make_client(layout, 3, 11, {33, 1, 2});
    const auto narrow = make_group(layout, {&first, &second}, weights);
    const auto wide = make_group(layout, {&third}, weights);
    const std::vector<BatchClient> clients{batch_client(first, narrow.get(), 0), batch_client(second, narrow.get(), 1),
                                           batch_client(third, wide.get(), 0)};

    const RowLosses losses = engine.train(make_batch(weights, clients));

    std::size_t row = 0;
    const auto check = [&](const TestClient& client, const AdapterGroup& group, std::int64_t index) {
        std::vector<double> expected;
        const double loss = reference_loss(weights, layout, client, &expected);
        EXPECT_NEAR(client_mean(losses, row, n_targets(client)), loss, 1e-12);
        EXPECT_LT(relative_difference(group.get_gradient(index, client.lora_rank), expected), 1e-11);
        row += n_targets(client);
    };
    check(first, *narrow, 0);
    check(second, *narrow, 1);
    check(third, *wide, 0);
}

INSTANTIATE_TEST_SUITE_P(Targets, EngineByTargets,
                         ::testing::Values(std::vector<std::string>{"q_proj", "v_proj"},
                                           std::vector<std::string>{"all-linear"}, std::vector<std::string>{"k_proj"},
                                           std::vector<std::string>{"o_proj", "down_proj"},
                                           std::vector<std::string>{"gate_proj"},
                                           std::vector<std::string>{"up_proj", "q_proj"}));

TEST(Engine, gradient_equals_finite_differences) {
    const LlamaWeights weights = random_weights(at::kDouble);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    Engine engine(weights, layout);
    TestClient client = make_client(layout, 5, 3, {12, 20});
    const auto group = make_group(layout, {&client}, weights);
    (void)engine.train(make_batch(weights, std::vector{batch_client(client, group.get(), 0)}));
    const std::vector<double> gradient = group->get_gradient(0, client.lora_rank);

    for (int probe = 0; probe < 40; ++probe) {
        const std::size_t i = hash_seed(9, Purpose::test, probe) % client.factors.size();
        const double kept = client.factors[i];
        const double h = 1e-6;
        const auto loss_at = [&](double value) {
            client.factors[i] = value;
            group->set(0, client.factors, client.lora_rank);
            const RowLosses losses =
                engine.evaluate(make_batch(weights, std::vector{batch_client(client, group.get(), 0)}));
            return client_mean(losses, 0, losses.loss_L.size());
        };
        const double slope = (loss_at(kept + h) - loss_at(kept - h)) / (2 * h);
        client.factors[i] = kept;
        EXPECT_NEAR(gradient[i], slope, 1e-7 + 1e-5 * std::abs(slope));
    }
}

TEST(Engine, padded_slots_get_exactly_no_gradient) {
    const LlamaWeights weights = random_weights(at::kFloat);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    Engine engine(weights, layout);
    const TestClient client = make_client(layout, 1, 3, {30});
    const auto group = make_group(layout, {&client}, weights);

    (void)engine.train(make_batch(weights, std::vector{batch_client(client, group.get(), 0)}));

    for (const auto& matrix : group->matrices) {
        EXPECT_EQ(matrix.grad_a_CWD.narrow(1, 3, 5).abs().max().item<double>(), 0.0);
        EXPECT_EQ(matrix.grad_bt_CWO.narrow(1, 3, 5).abs().max().item<double>(), 0.0);
        EXPECT_GT(matrix.grad_a_CWD.narrow(1, 0, 3).abs().max().item<double>(), 0.0);
    }
}

TEST(Engine, a_client_cannot_tell_that_it_was_batched) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-10}, std::pair{at::kFloat, 1e-5}}) {
        const LlamaWeights weights = random_weights(dtype);
        const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
        Engine engine(weights, layout);
        std::vector<TestClient> clients;
        for (int k = 0; k < 6; ++k) clients.push_back(make_client(layout, k, 2 + k % 3, {8 + 3 * (k % 2), 15}));
        std::vector<const TestClient*> pointers;
        for (const auto& client : clients) pointers.push_back(&client);
        const auto together = make_group(layout, pointers, weights);
        std::vector<BatchClient> batch;
        for (int k = 0; k < 6; ++k)
            batch.push_back(batch_client(clients[static_cast<std::size_t>(k)], together.get(), k));
        const RowLosses losses = engine.train(make_batch(weights, batch));
        std::size_t row = 0;
        for (int k = 0; k < 6; ++k) {
            const TestClient& client = clients[static_cast<std::size_t>(k)];
            const auto alone = make_group(layout, {&client}, weights);
            const RowLosses own = engine.train(make_batch(weights, std::vector{batch_client(client, alone.get(), 0)}));
            EXPECT_LT(relative_difference(together->get_gradient(k, client.lora_rank),
                                          alone->get_gradient(0, client.lora_rank)),
                      tolerance);
            EXPECT_NEAR(client_mean(losses, row, n_targets(client)), client_mean(own, 0, n_targets(client)), tolerance);
            row += n_targets(client);
        }
    }
}

TEST(Engine, a_nan_client_does_not_reach_its_neighbours) {
    const LlamaWeights weights = random_weights(at::kFloat);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"q_proj", "v_proj"});
    Engine engine(weights, layout);
    TestClient sick = make_client(layout, 1, 4, {20});
    const TestClient well = make_client(layout, 2, 4, {20});
    sick.factors[0] = std::numeric_limits<double>::quiet_NaN();
    const auto group = make_group(layout, {&sick, &well}, weights);

    const RowLosses losses = engine.train(
        make_batch(weights, std::vector{batch_client(sick, group.get(), 0), batch_client(well, group.get(), 1)}));

    EXPECT_TRUE(std::isnan(losses.loss_L.front()));
    EXPECT_TRUE(std::isfinite(losses.loss_L.back()));
    for (const double g : group->get_gradient(1, 4)) ASSERT_TRUE(std::isfinite(g));
}

TEST(Engine, dropout_masks_belong_to_the_client) {
    const LlamaWeights weights = random_weights(at::kDouble);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"q_proj", "down_proj"});
    Engine engine(weights, layout);
    const TestClient first = make_client(layout, 1, 4, {20});
    const TestClient second = make_client(layout, 2, 4, {20});
    const auto train = [&](std::vector<const TestClient*> clients, std::vector<std::uint64_t> seeds) {
        auto group = make_group(layout, clients, weights);
        std::vector<BatchClient> batch;
        for (std::size_t c = 0; c < clients.size(); ++c) {
            batch.push_back(batch_client(*clients[c], group.get(), static_cast<std::int64_t>(c)));
            batch.back().dropout_seed = seeds[c];
        }
        (void)engine.train(make_batch(weights, batch), 0.3);
        return group;
    };
    const auto together = train({&first, &second}, {11, 22});
    const auto alone = train({&second}, {22});
    const auto other_seed = train({&second}, {23});
    EXPECT_LT(relative_difference(together->get_gradient(1, 4), alone->get_gradient(0, 4)), 1e-10);
    EXPECT_GT(relative_difference(other_seed->get_gradient(0, 4), alone->get_gradient(0, 4)), 1e-3);
}

TEST(Generate, cached_decoding_equals_the_whole_forward) {
    const LlamaWeights weights = random_weights(at::kDouble);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    Engine engine(weights, layout);
    const TestClient client = make_client(layout, 1, 5, {4});
    const auto group = make_group(layout, {&client}, weights);
    const std::vector<std::vector<std::int32_t>> prompts{{5, 9, 2}, {7}, {1, 2, 3, 4, 5, 6}};

    const auto replies = generate(engine, group.get(), scale, prompts,
                                  {.max_new_tokens = 12, .temperature = 0.0, .seed = 0, .stop_ids = {}});

    for (std::size_t s = 0; s < prompts.size(); ++s) {
        std::vector<std::int32_t> tokens = prompts[s];
        ASSERT_EQ(replies[s].size(), 12U);
        for (const std::int32_t reply : replies[s]) {
            const std::vector<std::int32_t> targets(tokens.size(), 0);
            BatchClient whole{.group = group.get(),
                              .client_in_group = 0,
                              .scale = scale,
                              .dropout_seed = 0,
                              .sequences = {{tokens, targets}}};
            const at::Tensor logits = engine.logits(make_batch(weights, std::vector{whole}));
            EXPECT_EQ(reply, logits[logits.size(0) - 1].argmax().item<std::int64_t>());
            tokens.push_back(reply);
        }
    }
}

TEST(Generate, stops_at_a_stop_token_and_draws_by_seed) {
    const LlamaWeights weights = random_weights(at::kFloat);
    Engine engine(weights, {});
    const std::vector<std::vector<std::int32_t>> prompts{{5, 9, 2}};
    const auto greedy =
        generate(engine, nullptr, 0.0, prompts, {.max_new_tokens = 20, .temperature = 0.0, .seed = 0, .stop_ids = {}});
    const auto stopped = generate(engine, nullptr, 0.0, prompts,
                                  {.max_new_tokens = 20, .temperature = 0.0, .seed = 0, .stop_ids = {greedy[0][3]}});
    const auto hot =
        generate(engine, nullptr, 0.0, prompts, {.max_new_tokens = 20, .temperature = 2.0, .seed = 1, .stop_ids = {}});
    const auto hot_again =
        generate(engine, nullptr, 0.0, prompts, {.max_new_tokens = 20, .temperature = 2.0, .seed = 1, .stop_ids = {}});
    const auto hot_other =
        generate(engine, nullptr, 0.0, prompts, {.max_new_tokens = 20, .temperature = 2.0, .seed = 2, .stop_ids = {}});
    EXPECT_LE(stopped[0].size(), 3U);
    EXPECT_EQ(hot, hot_again);
    EXPECT_NE(hot, hot_other);
    EXPECT_THROW((void)generate(engine, nullptr, 0.0, {{}},
                                {.max_new_tokens = 1, .temperature = 0.0, .seed = 0, .stop_ids = {}}),
                 Error);
}

TEST(Batch, refuses_tokens_outside_the_vocabulary_and_long_sequences) {
    const LlamaWeights weights = random_weights(at::kFloat);
    const std::vector<std::int32_t> foreign{1, 53};
    const std::vector<std::int32_t> none{-1, -1};
    EXPECT_THROW((void)make_batch(weights, std::vector{BatchClient{.group = nullptr,
                                                                   .client_in_group = 0,
                                                                   .scale = scale,
                                                                   .dropout_seed = 0,
                                                                   .sequences = {{foreign, none}}}}),
                 Error);
    const std::vector<std::int32_t> much(65, 1);
    EXPECT_THROW((void)make_batch(weights, std::vector{BatchClient{.group = nullptr,
                                                                   .client_in_group = 0,
                                                                   .scale = scale,
                                                                   .dropout_seed = 0,
                                                                   .sequences = {{much, much}}}}),
                 Error);
}

}  // namespace
}  // namespace hetlora
