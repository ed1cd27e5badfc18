// What must not change a client's numbers: its neighbours, the path of the matrix products, recomputation, threads. And
// what bfloat16 may cost.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>

#include "engine_fixtures.hpp"
#include "hetlora/model/memory.hpp"

namespace hetlora {
namespace {

using namespace testing_engine;

/// The workloads of docs/performance.md; S and M with few layers, which all run the same code.
ModelConfig geometry(char name) {
    ModelConfig config;
    config.vocab_size = name == 'T' ? 256 : name == 'S' ? 8192 : 49152;
    config.hidden_size = name == 'T' ? 64 : name == 'S' ? 512 : 576;
    config.intermediate_size = name == 'T' ? 192 : name == 'S' ? 1408 : 1536;
    config.layers = 2;
    config.heads = name == 'T' ? 4 : name == 'S' ? 8 : 9;
    config.kv_heads = name == 'M' ? 3 : config.heads;
    config.head_size = config.hidden_size / config.heads;
    config.max_positions = 128;
    config.tied_head = true;
    return config;
}

LlamaWeights scaled_weights(const ModelConfig& config, at::ScalarType dtype) {
    LlamaWeights weights = allocate_weights(config, at::TensorOptions().dtype(dtype));
    at::manual_seed(4);
    for (const auto& [name, tensor] : named_weights(weights)) {
        at::Tensor target = tensor;
        const double size = tensor.dim() == 1 ? 0.1 : 1.0 / std::sqrt(static_cast<double>(tensor.size(1)));
        target.copy_(at::randn(tensor.sizes()) * size + (tensor.dim() == 1 ? 1.0 : 0.0));
    }
    return weights;
}

struct Answer {
    std::vector<double> losses;
    std::vector<double> gradient;
};

/// Losses and gradient of each client, trained in one pack in this order. Clients of one width form a group.
std::vector<Answer> train_together(Engine& engine, const std::vector<const TestClient*>& clients) {
    std::vector<std::unique_ptr<AdapterGroup>> groups;
    std::vector<BatchClient> batch;
    std::vector<std::pair<AdapterGroup*, std::int64_t>> place;
    for (std::size_t begin = 0; begin < clients.size();) {  // neighbours of one width share a group
        std::size_t end = begin;
        while (end < clients.size() && lora_width(clients[end]->lora_rank) == lora_width(clients[begin]->lora_rank))
            ++end;
        const std::vector<const TestClient*> members(clients.begin() + static_cast<std::ptrdiff_t>(begin),
                                                     clients.begin() + static_cast<std::ptrdiff_t>(end));
        groups.push_back(make_group(engine.layout(), members, engine.weights()));
        for (std::size_t c = 0; c < members.size(); ++c) {
            batch.push_back(batch_client(*members[c], groups.back().get(), static_cast<std::int64_t>(c)));
            place.emplace_back(groups.back().get(), static_cast<std::int64_t>(c));
        }
        begin = end;
    }
    const RowLosses losses = engine.train(make_batch(engine.weights(), batch));
    std::vector<Answer> answers;
    auto row = losses.loss_L.begin();
    for (std::size_t i = 0; i < clients.size(); ++i) {
        const auto count = static_cast<std::ptrdiff_t>(n_targets(*clients[i]));
        answers.push_back({{row, row + count}, place[i].first->get_gradient(place[i].second, clients[i]->lora_rank)});
        row += count;
    }
    return answers;
}

struct Variant {
    char geometry;
    at::ScalarType dtype;
    GemmPath gemm;
    int threads;
};

void PrintTo(const Variant& v, std::ostream* out) {
    *out << v.geometry << ' ' << c10::toString(v.dtype) << ' ' << name_of(v.gemm) << ' ' << v.threads << " threads";
}

class SameBits : public ::testing::TestWithParam<Variant> {
protected:
    void SetUp() override {
        threads_before_ = at::get_num_threads();
        if (GetParam().dtype == at::kBFloat16 && GetParam().gemm == GemmPath::onednn && !has_bf16_hardware())
            GTEST_SKIP() << "NOT TESTED: this processor has no bfloat16 instructions";
        at::set_num_threads(GetParam().threads);
    }
    void TearDown() override { at::set_num_threads(threads_before_); }

private:
    int threads_before_ = 1;
};

TEST_P(SameBits, alone_or_in_any_pack) {
    const ModelConfig config = geometry(GetParam().geometry);
    const LlamaWeights weights = scaled_weights(config, GetParam().dtype);
    const AdapterLayout layout = make_adapter_layout(config, {"q_proj", "v_proj", "down_proj"});
    Engine engine(weights, layout, {.gemm = GetParam().gemm});
    const auto vocabulary = static_cast<std::uint64_t>(config.vocab_size);
    // Equal and ragged lengths, a client of few rows, widths 8 and 16.
    const std::vector<std::vector<std::int64_t>> lengths{{64, 64}, {64, 64}, {33, 50},   {5},
                                                         {64, 64}, {16},     {17, 2, 40}};
    const std::vector<std::int64_t> lora_ranks{8, 8, 4, 3, 8, 12, 16};
    std::vector<TestClient> clients;
    for (int k = 0; k < 7; ++k) {
        const auto i = static_cast<std::size_t>(k);
        clients.push_back(make_client(layout, k, lora_ranks[i], lengths[i], vocabulary));
    }
    std::vector<Answer> alone;
    for (const auto& client : clients) alone.push_back(train_together(engine, {&client}).front());

    for (const std::vector<std::size_t>& order :
         {std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1, 0}, {3, 0}, {5, 3}, {2, 6, 4}}) {
        std::vector<const TestClient*> pack;
        for (const std::size_t k : order) pack.push_back(&clients[k]);
        const std::vector<Answer> together = train_together(engine, pack);
        for (std::size_t i = 0; i < order.size(); ++i) {
            EXPECT_EQ(together[i].losses, alone[order[i]].losses) << "client " << order[i] << " in place " << i;
            EXPECT_EQ(together[i].gradient, alone[order[i]].gradient) << "client " << order[i] << " in place " << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Engine, SameBits,
    ::testing::Values(Variant{'T', at::kFloat, GemmPath::mkl, 1}, Variant{'T', at::kFloat, GemmPath::mkl, 2},
                      Variant{'T', at::kFloat, GemmPath::onednn, 1}, Variant{'T', at::kFloat, GemmPath::tiles, 1},
                      Variant{'T', at::kFloat, GemmPath::tiles, 2}, Variant{'S', at::kFloat, GemmPath::tiles, 1},
                      Variant{'S', at::kFloat, GemmPath::tiles, 2}, Variant{'M', at::kFloat, GemmPath::tiles, 1},
                      Variant{'T', at::kBFloat16, GemmPath::onednn, 1},
                      Variant{'S', at::kBFloat16, GemmPath::onednn, 2},
                      Variant{'M', at::kBFloat16, GemmPath::onednn, 1},
                      Variant{'T', at::kBFloat16, GemmPath::widened, 1}, Variant{'S', at::kFloat, GemmPath::mkl, 1},
                      Variant{'S', at::kFloat, GemmPath::mkl, 2}, Variant{'S', at::kFloat, GemmPath::onednn, 1},
                      Variant{'S', at::kFloat, GemmPath::onednn, 2}, Variant{'S', at::kBFloat16, GemmPath::widened, 2},
                      Variant{'M', at::kFloat, GemmPath::mkl, 1}, Variant{'M', at::kFloat, GemmPath::onednn, 2},
                      Variant{'M', at::kBFloat16, GemmPath::widened, 1}));

/// One client of a geometry, and what the engine says of it.
struct Single {
    explicit Single(char name) : config(geometry(name)), layout(make_adapter_layout(config, {"all-linear"})) {
        client = make_client(layout, 3, 8, {40, 61}, static_cast<std::uint64_t>(config.vocab_size));
    }
    [[nodiscard]] Answer train(at::ScalarType dtype, const EngineOptions& options) const {
        Engine engine(scaled_weights(config, dtype), layout, options);
        return train_together(engine, {&client}).front();
    }
    ModelConfig config;
    AdapterLayout layout;
    TestClient client;
};

TEST(EnginePaths, every_path_of_the_products_gives_the_same_numbers) {
    for (const char name : {'T', 'S'}) {
        const Single single(name);
        const Answer mkl = single.train(at::kFloat, {.gemm = GemmPath::mkl});
        const Answer onednn = single.train(at::kFloat, {.gemm = GemmPath::onednn});
        EXPECT_LT(relative_difference(onednn.losses, mkl.losses), 1e-6);
        EXPECT_LT(relative_difference(onednn.gradient, mkl.gradient), 1e-5);
        const Answer tiles = single.train(at::kFloat, {.gemm = GemmPath::tiles});
        EXPECT_LT(relative_difference(tiles.losses, mkl.losses), 1e-6);
        EXPECT_LT(relative_difference(tiles.gradient, mkl.gradient), 1e-5);
        // at::mm on bfloat16, which is what processors with such instructions run: slow here, but the same values.
        const Answer half = single.train(at::kBFloat16, {.gemm = GemmPath::mkl});
        const Answer widened = single.train(at::kBFloat16, {.gemm = GemmPath::widened});
        EXPECT_LT(relative_difference(widened.losses, half.losses), 2e-3);
        EXPECT_LT(relative_difference(widened.gradient, half.gradient), 0.05);
    }
}

TEST(EnginePaths, recomputing_changes_no_bit) {
    const Single single('T');
    const Answer kept = single.train(at::kFloat, {});
    const Answer again = single.train(at::kFloat, {.gemm = GemmPath::mkl, .recompute = true});
    EXPECT_EQ(again.losses, kept.losses);
    EXPECT_EQ(again.gradient, kept.gradient);
}

TEST(EnginePaths, the_memory_of_packed_originals_comes_back) {
    for (const GemmPath gemm : {GemmPath::onednn, GemmPath::tiles}) {
        Engine engine(scaled_weights(geometry('T'), at::kFloat), {}, {.gemm = gemm});
        EXPECT_FALSE(engine.weights().layer[0].qkv_XD.defined());
        EXPECT_TRUE(engine.weights().embedding_VD.defined());
    }
}

TEST(EnginePrecision, fp32_gradients_equal_autograd) {
    for (const char name : {'T', 'S'}) {
        const Single single(name);
        std::vector<double> expected;
        const LlamaWeights truth = scaled_weights(single.config, at::kFloat);
        const double loss = reference_loss(truth, single.layout, single.client, &expected);
        const Answer answer = single.train(at::kFloat, {});
        EXPECT_NEAR(client_mean({answer.losses, {}}, 0, answer.losses.size()), loss, 1e-5 * loss);
        EXPECT_LT(relative_difference(answer.gradient, expected), 1e-5);
    }
}

TEST(EnginePrecision, bf16_is_no_worse_than_autograd_in_bf16) {
    const Single single('S');
    std::vector<double> truth;
    std::vector<double> autograd;
    const double loss = reference_loss(scaled_weights(single.config, at::kFloat), single.layout, single.client, &truth);
    LlamaWeights half = scaled_weights(single.config, at::kBFloat16);
    for (auto& layer : half.layer) {  // everything in bfloat16, as a model in bf16 has it
        layer.input_norm_D = layer.input_norm_D.to(at::kBFloat16);
        layer.mlp_norm_D = layer.mlp_norm_D.to(at::kBFloat16);
    }
    half.final_norm_D = half.final_norm_D.to(at::kBFloat16);
    half.rotary = {half.rotary.cos.to(at::kBFloat16), half.rotary.sin.to(at::kBFloat16)};
    const double autograd_loss = reference_loss(half, single.layout, single.client, &autograd);
    const Answer ours = single.train(at::kBFloat16, {.gemm = GemmPath::widened});
    const double our_loss = client_mean({ours.losses, {}}, 0, ours.losses.size());
    const double autograd_error = relative_difference(autograd, truth);
    const double our_error = relative_difference(ours.gradient, truth);
    std::printf("bf16 gradient error: ours %.4f, autograd %.4f; loss error: ours %.2e, autograd %.2e\n", our_error,
                autograd_error, std::abs(our_loss / loss - 1), std::abs(autograd_loss / loss - 1));
    EXPECT_GT(our_error, 1e-4) << "this is not bfloat16";
    EXPECT_LT(our_error, autograd_error);
    EXPECT_NEAR(our_loss, loss, 2e-3 * loss);
}

TEST(EngineThreads, two_threads_agree_with_one) {
    const Single single('S');
    const int before = at::get_num_threads();
    at::set_num_threads(1);
    const Answer one = single.train(at::kFloat, {});
    at::set_num_threads(2);
    const Answer two = single.train(at::kFloat, {});
    at::set_num_threads(before);
    std::printf("1 and 2 threads: %s\n", one.gradient == two.gradient ? "the same bits" : "not the same bits");
    EXPECT_LT(relative_difference(two.gradient, one.gradient), 1e-5);
}

TEST(EngineMemory, steps_after_the_first_ask_for_no_more) {
    const Single single('S');
    for (const GemmPath gemm : {GemmPath::mkl, GemmPath::onednn, GemmPath::tiles}) {
        Engine engine(scaled_weights(single.config, at::kFloat), single.layout, {.gemm = gemm});
        const auto group = make_group(single.layout, {&single.client}, engine.weights());
        const TokenBatch batch = make_batch(engine.weights(), std::vector{batch_client(single.client, group.get(), 0)});
        mallopt(M_MMAP_THRESHOLD, 1 << 30);  // as the program does
        mallopt(M_TRIM_THRESHOLD, 2147483647);
        for (int step = 0; step < 3; ++step) (void)engine.train(batch);
        const std::int64_t arena = engine.activation_bytes();
        const auto heap = mallinfo2().arena + mallinfo2().hblkhd;
        for (int step = 0; step < 5; ++step) (void)engine.train(batch);
        EXPECT_EQ(engine.activation_bytes(), arena);
        EXPECT_EQ(mallinfo2().arena + mallinfo2().hblkhd, heap);
    }
}

TEST(EngineMemory, prediction_covers_what_a_step_takes) {
    for (const bool recompute : {false, true}) {
        const Single single('S');
        Engine engine(scaled_weights(single.config, at::kFloat), single.layout,
                      {.gemm = GemmPath::mkl, .recompute = recompute});
        for (int step = 0; step < 2; ++step) (void)train_together(engine, {&single.client});
        const EngineMemory predicted = engine_memory(single.config, single.layout,
                                                     {.activation_bytes = 4,
                                                      .residual_bytes = 4,
                                                      .frozen_copies = 1.0,
                                                      .recompute = recompute,
                                                      .lora_width = 8});
        const auto activations = static_cast<double>(engine.activation_bytes());
        const auto expected = static_cast<double>(101 * predicted.bytes_per_row + 101 * 8192 * 4 * 2);
        EXPECT_LT(activations, 1.1 * expected);
        EXPECT_GT(activations, 0.3 * expected);
        EXPECT_EQ(engine.frozen_bytes(), predicted.frozen_bytes);
    }
}

}  // namespace
}  // namespace hetlora
