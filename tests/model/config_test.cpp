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
        {R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8.0})", "low_freq_factor` is missing"},
        {R"(, "rope_scaling": {"type": "linear", "factor": -2.0})", "rope_scaling.factor` is -2.0"},
        {R"(, "rope_scaling": {"type": "dynamic", "factor": 2.0})", "dynamic"},
        {R"(, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3})", "beta_fast"},
        {R"(, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0})", "yarn"},
        {R"(, "attention_bias": true)", "attention_bias"},
        {R"(, "mlp_bias": true)", "mlp_bias"},
        {R"(, "hidden_act": "gelu")", "gelu"},
        {R"(, "sliding_window": 128)", "sliding_window"},
        {R"(, "layer_types": ["full_attention", "sliding_attention"])", "sliding_attention"},
        {R"(, "num_local_experts": 8)", "num_local_experts"},
        {R"(, "head_dim": 5)", "odd"},
        {R"(, "num_hidden_layers": "many")", "num_hidden_layers"}};
    for (const auto& [extra, word] : cases) {
        write_config(extra);
        EXPECT_NE(complaint().find(word), std::string::npos) << extra << "\n" << complaint();
    }
}

TEST_F(ModelFolder, rotary_rules_as_transformers_4_and_5_write_them) {
    const std::string llama3 =
        R"("rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192)";
    write_config(R"(, "rope_theta": 500000.0, "rope_scaling": {)" + llama3 + "}");
    const ModelConfig four = read_model_config(folder_);
    write_config(R"(, "rope_parameters": {"rope_theta": 500000.0, )" + llama3 + "}");
    const ModelConfig five = read_model_config(folder_);
    EXPECT_EQ(four.rotary, (RotaryRule{RotaryKind::llama3, 32.0, 1.0, 4.0, 8192.0}));
    EXPECT_EQ(four.rotary, five.rotary);
    EXPECT_EQ(four.rope_theta, five.rope_theta);
    write_config(R"(, "rope_scaling": {"type": "linear", "factor": 2.0})");
    EXPECT_EQ(read_model_config(folder_).rotary.kind, RotaryKind::linear);
}

TEST_F(ModelFolder, sliding_windows_are_positions_a_flag_or_refused) {
    write_config(R"(, "sliding_window": 4096, "max_position_embeddings": 32768)", "mistral");
    EXPECT_EQ(read_model_config(folder_).usable_positions(), 4096);
    write_config(R"(, "sliding_window": null, "max_position_embeddings": 32768)", "mistral");
    EXPECT_EQ(read_model_config(folder_).usable_positions(), 32768);
    write_config(R"(, "sliding_window": 4096, "use_sliding_window": false, "max_position_embeddings": 32768)", "qwen2");
    EXPECT_EQ(read_model_config(folder_).usable_positions(), 32768);
    write_config(R"(, "sliding_window": 4096, "use_sliding_window": true)", "qwen3");
    EXPECT_NE(complaint().find("use_sliding_window"), std::string::npos);
}

/// config.json of published models, geometry and what concerns the family, and the parameters their makers count.
struct Published {
    const char* config;
    std::int64_t parameters;
};

TEST_F(ModelFolder, published_models_have_their_published_size) {
    const std::vector<Published> models{
        {R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
             "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32,
             "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
             "rope_scaling": null, "tie_word_embeddings": false, "vocab_size": 32000})",
         6738415616},  // Llama-2-7b
        {R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
             "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
             "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
             "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
             "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
             "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
             "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256})",
         1235814400},  // Llama-3.2-1B
        {R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
             "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192,
             "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05,
             "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
             "vocab_size": 49152})",
         134515008},  // SmolLM2-135M
        {R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
             "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
             "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
             "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000})",
         7241732096},  // Mistral-7B-v0.1
        {R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896,
             "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
             "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
             "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false,
             "use_sliding_window": false, "vocab_size": 151936})",
         494032768},  // Qwen2.5-0.5B
        {R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "head_dim": 128,
             "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
             "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
             "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
             "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})",
         596049920},  // Qwen3-0.6B
        {R"({"architectures": ["BertForMaskedLM"], "model_type": "bert", "attention_probs_dropout_prob": 0.1,
             "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
             "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
             "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
             "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522})",
         109482240},  // bert-base-uncased, without the head that predicts masked words
        {R"({"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert", "activation": "gelu",
             "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02,
             "max_position_embeddings": 512, "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
             "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false, "tie_weights_": true, "vocab_size": 30522})",
         66362880},  // distilbert-base-uncased
        {R"({"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "attention_probs_dropout_prob": 0.1,
             "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
             "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
             "max_position_embeddings": 514, "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
             "type_vocab_size": 1, "vocab_size": 50265})",
         124055040}};  // roberta-base, without its pooler
    for (const auto& model : models) {
        std::ofstream(folder_ / "config.json") << model.config;
        EXPECT_EQ(complaint(), "");
        EXPECT_EQ(read_model_config(folder_).parameters(), model.parameters) << model.config;
    }
    EXPECT_EQ(read_model_config(folder_).usable_positions(), 512) << "RoBERTa's begin after the padding's";
}

TEST_F(ModelFolder, reports_all_problems_at_once) {
    write_config(R"(, "attention_bias": true, "hidden_act": "relu")");
    EXPECT_NE(complaint().find("attention_bias"), std::string::npos);
    EXPECT_NE(complaint().find("relu"), std::string::npos);
}

TEST_F(ModelFolder, refuses_another_architecture_and_broken_files) {
    for (const char* type : {"gptj", "mixtral", "gemma2", "qwen2_moe"}) {
        write_config("", type);
        EXPECT_NE(complaint().find(type), std::string::npos);
        for (const auto& family : model_families()) {
            EXPECT_NE(complaint().find(family.model_type), std::string::npos) << complaint();
        }
    }
    write_config(R"(, "architectures": ["LlamaForSequenceClassification"])");
    EXPECT_NE(complaint().find("LlamaForSequenceClassification"), std::string::npos);
    EXPECT_NE(complaint().find("LlamaForCausalLM"), std::string::npos);
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

TEST(AdapterLayoutOf, a_family_with_one_matrix_for_q_k_and_v_has_targets_of_its_own) {
    ModelConfig config;
    config.family = find_model_family("gpt2");
    config.hidden_size = 8;
    config.intermediate_size = 12;
    config.layers = 1;
    config.heads = config.kv_heads = 2;
    config.head_size = 4;
    const AdapterLayout layout = make_adapter_layout(config, {"all-linear"});
    std::vector<std::string> targets;
    for (const auto& matrix : layout.matrices) targets.push_back(matrix.target);
    EXPECT_EQ(targets, (std::vector<std::string>{"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}));
    EXPECT_EQ(layout.matrices[0].name, "transformer.h.0.attn.c_attn");
    EXPECT_EQ(layout.matrices[0].d_out, 24);
    EXPECT_EQ(layout.matrices[3].d_in, 12);
    try {
        (void)make_adapter_layout(config, {"q_proj"});
        FAIL() << "q_proj was taken";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("c_attn, attn.c_proj, c_fc, mlp.c_proj"), std::string::npos);
    }
}

}  // namespace
}  // namespace hetlora
