// Every decoder's row of the table of families under every rotary rule, against `transformers` and `peft` on random
// checkpoints that the family's own classes made: logits, loss and LoRA gradients in fp32 (own kernels, and ATen's ops
// as a GPU runs them) and fp64, greedy generation with the key-value cache, and the explicit backward against autograd.
#include "hetlora/model/families.hpp"

#include "engine_fixtures.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/model/generate.hpp"
#include "hetlora/model/memory.hpp"
#include "oracle_tools.hpp"

namespace hetlora {
namespace {

using namespace testing_oracle;

struct FamilyCase {
    const ModelFamily* family = nullptr;
    RotaryKind rope = RotaryKind::plain;

    [[nodiscard]] std::string name() const { return fmt::format("{}-{}", family->model_type, name_of(rope)); }
    /// Of the family's targets, in canonical order.
    [[nodiscard]] std::vector<std::string> targets() const {
        std::vector<std::string> names;
        for (const auto& target : lora_targets(*family)) names.push_back(target.name);
        return names;
    }
};

std::vector<FamilyCase> all_cases() {
    std::vector<FamilyCase> cases;
    for (const auto& family : model_families()) {
        for (const RotaryKind rope : rotary_kinds()) {
            if (family.encoder) continue;  // class_head_test.cpp
            if (rope == RotaryKind::plain || !family.learned_positions) cases.push_back({&family, rope});
        }
    }
    return cases;
}

class Families : public ::testing::TestWithParam<FamilyCase> {
protected:
    /// All checkpoints come from one start of Python.
    static void SetUpTestSuite() {
        root_ = fs::temp_directory_path() / fmt::format("hetlora_families_{}", getpid());
        std::string command =
            fmt::format("'{}' '{}/tests/python/family_oracles.py' '{}'", python(), source_dir(), root_.string());
        for (const auto& family : model_families()) {
            if (!family.encoder) command += fmt::format(" {}", family.model_type);
        }
        ASSERT_EQ(std::system((command + " > /dev/null 2> '" + root_.string() + ".err'").c_str()), 0)
            << command << "\n"
            << read_text_file(root_.string() + ".err");
    }
    static void TearDownTestSuite() {
        fs::remove_all(root_);
        fs::remove(root_.string() + ".err");
    }
    void TearDown() override { ops::force_aten(false); }
    [[nodiscard]] fs::path folder() const { return root_ / GetParam().name(); }

    static fs::path root_;
};
fs::path Families::root_;

TEST_P(Families, fp32_equals_transformers_and_peft) {
    const std::string model = folder().string();
    compare_with_file({.model = model}, folder() / "float32.safetensors");
    ops::force_aten(true);
    compare_with_file({.model = model}, folder() / "float32.safetensors");
}

TEST_P(Families, fp64_equals_transformers_and_peft) {
    compare_with_file({.model = folder().string(), .dtype = "float64", .gradient_tolerance = 1e-9},
                      folder() / "float64.safetensors");
}

TEST_P(Families, stored_weights_are_all_weights_once) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const auto count = [](const std::vector<NamedWeight>& tensors) {
        std::int64_t n = 0;
        for (const auto& [name, tensor] : tensors) n += tensor.numel();
        return n;
    };
    EXPECT_EQ(count(stored_weights(weights)), count(named_weights(weights)));
    EXPECT_EQ(count(stored_weights(weights)), weights.config.parameters());
    // The bytes of every named tensor lie within a stored one.
    for (const auto& [name, tensor] : named_weights(weights)) {
        const bool inside = std::ranges::any_of(stored_weights(weights), [&](const NamedWeight& stored) {
            return tensor.storage().is_alias_of(stored.tensor.storage());
        });
        EXPECT_TRUE(inside) << name;
    }
}

TEST_P(Families, greedy_tokens_equal_transformers) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    EXPECT_EQ(weights.config.family, GetParam().family);
    EXPECT_EQ(weights.config.rotary.kind, GetParam().rope);
    const SafetensorsFile oracle(folder() / "generated.safetensors");
    const auto tokens = [&](const char* name) {
        const at::Tensor values = tensor_of(oracle, name);
        const std::int32_t* first = values.const_data_ptr<std::int32_t>();
        return std::vector<std::int32_t>(first, first + values.numel());
    };
    Engine engine(weights, make_adapter_layout(weights.config, {GetParam().targets().front()}));
    const auto expected = tokens("generated");
    const auto replies =
        generate(engine, nullptr, 1.0, {tokens("prompt")},
                 {.max_new_tokens = std::ssize(expected), .temperature = 0.0, .seed = 0, .stop_ids = {}});
    EXPECT_EQ(replies.front(), expected);
}

TEST_P(Families, explicit_backward_equals_autograd_also_with_recomputing) {
    const LlamaWeights weights = load_weights(folder(), at::kDouble, at::kCPU);
    const auto names = GetParam().targets();
    // All; first and third ("q_proj", "v_proj"), last.
    for (const auto& targets : {std::vector<std::string>{"all-linear"}, {names[0], names[2]}, {names.back()}}) {
        const AdapterLayout layout = make_adapter_layout(weights.config, targets);
        const auto client = testing_engine::make_client(layout, 3, 4, {9, 20}, 96);
        std::vector<double> expected;
        const double loss = testing_engine::reference_loss(weights, layout, client, &expected);
        for (const bool recompute : {false, true}) {
            EngineOptions options;
            options.recompute = recompute;
            Engine engine(weights, layout, options);
            const auto group = testing_engine::make_group(layout, {&client}, weights);
            const std::vector clients{testing_engine::batch_client(client, group.get(), 0)};
            const RowLosses losses = engine.train(make_batch(weights, clients));
            EXPECT_NEAR(testing_engine::client_mean(losses, 0, testing_engine::n_targets(client)), loss, 1e-10);
            EXPECT_LT(testing_engine::relative_difference(group->get_gradient(0, client.lora_rank), expected), 1e-10);
        }
    }
}

TEST_P(Families, a_client_cannot_tell_that_it_was_batched) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    Engine engine(weights, layout);
    const auto first = testing_engine::make_client(layout, 1, 4, {11, 21}, 96);
    const auto second = testing_engine::make_client(layout, 2, 4, {16, 16}, 96);
    const auto train = [&](const std::vector<const testing_engine::TestClient*>& clients) {
        auto group = testing_engine::make_group(layout, clients, weights);
        std::vector<BatchClient> batch;
        for (std::size_t c = 0; c < clients.size(); ++c) {
            batch.push_back(testing_engine::batch_client(*clients[c], group.get(), static_cast<std::int64_t>(c)));
        }
        (void)engine.train(make_batch(weights, batch));
        return group;
    };
    const auto together = train({&first, &second});
    EXPECT_EQ(together->get_gradient(1, 4), train({&second})->get_gradient(0, 4));
    EXPECT_EQ(together->get_gradient(0, 4), train({&first})->get_gradient(0, 4));
}

TEST_P(Families, bf16_stays_near_fp32) {
    const LlamaWeights exact = load_weights(folder(), at::kFloat, at::kCPU);
    const AdapterLayout layout = make_adapter_layout(exact.config, {"all-linear"});
    const auto client = testing_engine::make_client(layout, 3, 4, {9, 20}, 96);
    std::vector<double> expected;
    const double loss = testing_engine::reference_loss(exact, layout, client, &expected);
    for (const bool aten : {false, true}) {
        ops::force_aten(aten);
        EngineOptions options;
        options.gemm = GemmPath::widened;
        Engine engine(load_weights(folder(), at::kBFloat16, at::kCPU), layout, options);
        const auto group = testing_engine::make_group(layout, {&client}, exact);
        const std::vector clients{testing_engine::batch_client(client, group.get(), 0)};
        const RowLosses losses = engine.train(make_batch(engine.weights(), clients));
        EXPECT_NEAR(testing_engine::client_mean(losses, 0, testing_engine::n_targets(client)), loss, 0.02 * loss);
        const double error = testing_engine::relative_difference(group->get_gradient(0, client.lora_rank), expected);
        EXPECT_LT(error, 0.15);
        EXPECT_GT(error, 1e-4) << "this is not bfloat16";
    }
}

TEST_P(Families, a_saved_model_is_the_same_model) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const fs::path copy = folder() / "copy";
    save_weights(weights, copy, at::kFloat);
    const LlamaWeights again = load_weights(copy, at::kFloat, at::kCPU);
    EXPECT_EQ(again.config.family, weights.config.family);
    EXPECT_EQ(again.config.rotary, weights.config.rotary);
    EXPECT_EQ(again.config.sliding_window, weights.config.sliding_window);
    EXPECT_EQ(again.config.parameters(), weights.config.parameters());
    std::int64_t parameters = 0;
    const auto named = named_weights(weights);
    const auto named_again = named_weights(again);
    ASSERT_EQ(named.size(), named_again.size());
    for (std::size_t i = 0; i < named.size(); ++i) {
        EXPECT_EQ(named[i].name, named_again[i].name);
        EXPECT_TRUE(at::equal(named[i].tensor, named_again[i].tensor)) << named[i].name;
        parameters += named[i].tensor.numel();
    }
    EXPECT_EQ(parameters, weights.config.parameters());
    EXPECT_EQ(again.config.activation, weights.config.activation);
    EXPECT_EQ(again.rotary.cos.defined(), !GetParam().family->learned_positions);
    if (again.rotary.cos.defined()) {
        EXPECT_TRUE(at::equal(again.rotary.cos, weights.rotary.cos));
    }
}

TEST_P(Families, the_memory_plan_covers_a_step) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    const auto client = testing_engine::make_client(layout, 3, 8, {256, 256, 256, 256}, 96);
    for (const bool recompute : {false, true}) {
        EngineOptions options;
        options.recompute = recompute;
        Engine engine(weights, layout, options);
        const auto group = testing_engine::make_group(layout, {&client}, weights);
        const std::vector clients{testing_engine::batch_client(client, group.get(), 0)};
        if (weights.config.usable_positions() < 256) GTEST_SKIP() << "its window is narrower than these sequences";
        (void)engine.train(make_batch(weights, clients));
        const EngineMemory memory = engine_memory(weights.config, layout, {.recompute = recompute});
        EXPECT_LE(engine.activation_bytes(), memory.step_bytes(1024));
    }
}

INSTANTIATE_TEST_SUITE_P(Table, Families, ::testing::ValuesIn(all_cases()), [](const auto& one) {
    std::string name = one.param.name();
    for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
    return name;
});

}  // namespace
}  // namespace hetlora
