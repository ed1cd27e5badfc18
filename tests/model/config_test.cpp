#include "hetlora/model/config.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/model/weights.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

class ModelFolder : public ::testing::Test {
protected:
    void SetUp() override {
        folder_ = fs::temp_directory_path() / fmt::format("hetlora_model_{}", getpid());
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }
    void write_config(const std::string& extra, const std::string& type = "llama") const {
        std::ofstream(folder_ / "config.json")
            << R"({"model_type": ")" << type << R"(", "vocab_size": 11, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "tie_word_embeddings": true)"
            << extra << "}";
    }
    [[nodiscard]] std::string complaint() const {
        try {
            (void)read_model_config(folder_);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            return error.what();
        }
        return {};
    }
    fs::path folder_;
};

TEST_F(ModelFolder, reads_transformers_4_and_5) {
    write_config(R"(, "rope_theta": 5000.0, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3], "rope_scaling": null)");
    const ModelConfig four = read_model_config(folder_);
    write_config(
        R"(, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3])");
    const ModelConfig five = read_model_config(folder_);
    EXPECT_EQ(four.rope_theta, 5000.0);
    EXPECT_EQ(five.rope_theta, 5000.0);
    EXPECT_EQ(five.head_size, 4);
    EXPECT_EQ(five.eos_ids, (std::vector<std::int64_t>{2, 3}));
}

TEST_F(ModelFolder, refuses_what_is_not_implemented) {
    const std::vector<std::pair<std::string, std::string>> cases{
        {R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8.0})", "llama3"},
        {R"(, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0})", "yarn"},
        {R"(, "attention_bias": true)", "attention_bias"},
        {R"(, "mlp_bias": true)", "mlp_bias"},
        {R"(, "hidden_act": "gelu")", "gelu"},
        {R"(, "sliding_window": 128)", "sliding_window"},
        {R"(, "num_local_experts": 8)", "num_local_experts"},
        {R"(, "head_dim": 5)", "odd"},
        {R"(, "num_hidden_layers": "many")", "num_hidden_layers"}};
    for (const auto& [extra, word] : cases) {
        write_config(extra);
        EXPECT_NE(complaint().find(word), std::string::npos) << extra << "\n" << complaint();
    }
}

TEST_F(ModelFolder, reports_all_problems_at_once) {
    write_config(R"(, "attention_bias": true, "hidden_act": "relu")");
    EXPECT_NE(complaint().find("attention_bias"), std::string::npos);
    EXPECT_NE(complaint().find("relu"), std::string::npos);
}

TEST_F(ModelFolder, refuses_another_architecture_and_broken_files) {
    write_config("", "gpt2");
    EXPECT_NE(complaint().find("gpt2"), std::string::npos);
    std::ofstream(folder_ / "config.json") << "{\"model_type\": \"lla";
    EXPECT_NE(complaint().find("not valid JSON"), std::string::npos);
    fs::remove_all(folder_);
    EXPECT_NE(complaint().find("does not exist"), std::string::npos);
}

class Checkpoint : public ModelFolder {
protected:
    /// Writes a checkpoint of the folder's config in a dtype, after a change of its tensors.
    template <typename Change>
    void write(Change change) {
        write_config("");
        LlamaWeights weights = allocate_weights(read_model_config(folder_), at::TensorOptions().dtype(at::kFloat));
        std::vector<NamedWeight> named = named_weights(weights);
        double number = 0.0;
        for (auto& [name, tensor] : named) tensor.fill_(number += 0.5);
        change(named);
        std::vector<TensorData> data;
        std::vector<at::Tensor> kept;
        for (const auto& [name, tensor] : named) {
            kept.push_back(tensor.contiguous());
            const std::string dtype = tensor.scalar_type() == at::kHalf       ? "F16"
                                      : tensor.scalar_type() == at::kBFloat16 ? "BF16"
                                      : tensor.scalar_type() == at::kLong     ? "I64"
                                                                              : "F32";
            data.push_back({name,
                            dtype,
                            kept.back().sizes().vec(),
                            {static_cast<const std::byte*>(kept.back().const_data_ptr()), kept.back().nbytes()}});
        }
        write_safetensors(folder_ / "model.safetensors", data);
    }
    [[nodiscard]] std::string load_complaint() const {
        try {
            (void)load_weights(folder_, at::kFloat, at::kCPU);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            return error.what();
        }
        return {};
    }
};

TEST_F(Checkpoint, float32_float16_and_bfloat16_are_read) {
    for (const auto type : {at::kFloat, at::kHalf, at::kBFloat16}) {
        write([&](auto& named) {
            for (auto& entry : named) entry.tensor = entry.tensor.to(type);
        });
        const LlamaWeights weights = load_weights(folder_, at::kFloat, at::kCPU);
        EXPECT_EQ(weights.embedding_VD[3][3].item<double>(), 0.5);
        EXPECT_EQ(weights.layer[0].qkv_XD[9][0].item<double>(), 2.0);  // a row of k
    }
}

TEST_F(Checkpoint, names_a_missing_a_misshapen_an_unused_and_an_integer_tensor) {
    write([](auto& named) { named.erase(named.begin() + 2); });
    EXPECT_NE(load_complaint().find("self_attn.q_proj.weight is missing"), std::string::npos) << load_complaint();
    write([](auto& named) { named[5].tensor = named[5].tensor.t().contiguous().view({-1}); });
    EXPECT_NE(load_complaint().find("has shape"), std::string::npos) << load_complaint();
    write([](auto& named) { named.push_back({"model.layers.0.self_attn.q_proj.bias", at::ones({8})}); });
    EXPECT_NE(load_complaint().find("q_proj.bias is not used"), std::string::npos) << load_complaint();
    write([](auto& named) { named[0].tensor = named[0].tensor.to(at::kLong); });
    EXPECT_NE(load_complaint().find("dtype I64"), std::string::npos) << load_complaint();
}

TEST_F(Checkpoint, saved_weights_are_read_back) {
    write_config("");
    LlamaWeights weights = allocate_weights(read_model_config(folder_), at::TensorOptions().dtype(at::kFloat));
    for (auto& [name, tensor] : named_weights(weights)) tensor.normal_();
    save_weights(weights, folder_ / "copy", at::kFloat);
    const LlamaWeights copy = load_weights(folder_ / "copy", at::kFloat, at::kCPU);
    EXPECT_TRUE(at::equal(copy.layer[0].gate_up_ID, weights.layer[0].gate_up_ID));
    EXPECT_TRUE(at::equal(copy.embedding_VD, weights.embedding_VD));
    EXPECT_EQ(copy.config.rope_theta, weights.config.rope_theta);
}

TEST(AdapterLayoutOf, targets_in_canonical_order) {
    ModelConfig config;
    config.hidden_size = 8;
    config.intermediate_size = 12;
    config.layers = 2;
    config.heads = 2;
    config.kv_heads = 1;
    config.head_size = 4;
    const AdapterLayout layout = make_adapter_layout(config, {"v_proj", "q_proj"});
    ASSERT_EQ(layout.matrices.size(), 4U);
    EXPECT_EQ(layout.matrices[0].name, "model.layers.0.self_attn.q_proj");
    EXPECT_EQ(layout.matrices[1].d_out, 4);
    EXPECT_EQ(make_adapter_layout(config, {"all-linear"}).matrices.size(), 14U);
    EXPECT_THROW((void)make_adapter_layout(config, {"q_prj"}), Error);
    EXPECT_THROW((void)make_adapter_layout(config, {"q_proj", "q_proj"}), Error);
    EXPECT_NO_THROW(check_lora_rank(layout, 4));
    EXPECT_THROW(check_lora_rank(layout, 5), Error);
}

}  // namespace
}  // namespace hetlora
