// Encoders and classification heads without running them: names as transformers has them, configs and checkpoints that
// are refused.
#include "engine_fixtures.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/model/class_head.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

TEST(ClassHeadNames, targets_and_head_have_the_names_of_transformers) {
    struct Names {
        const char* family;
        std::vector<std::string> targets;
        std::vector<std::string> modules;
        std::string classifier;
    };
    const std::vector<std::string> bert{"query",       "key", "value", "attention.output.dense", "intermediate.dense",
                                        "output.dense"};
    for (const Names& names :
         {Names{"bert", bert, {"classifier"}, "BertForSequenceClassification"},
          Names{"roberta", bert, {"classifier"}, "RobertaForSequenceClassification"},
          Names{"distilbert",
                {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
                {"pre_classifier", "classifier"},
                "DistilBertForSequenceClassification"},
          Names{"gpt2", {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}, {"score"}, "GPT2ForSequenceClassification"}}) {
        ModelConfig config;
        config.family = find_model_family(names.family);
        config.hidden_size = 8;
        std::vector<std::string> targets;
        for (const LoraTarget& target : lora_targets(*config.family)) {
            targets.push_back(target.name);
            EXPECT_EQ(target.ambiguous, target.name == "output.dense");
        }
        EXPECT_EQ(targets, names.targets);
        EXPECT_EQ(class_head_shape(config, 5).modules(), names.modules);
        EXPECT_EQ(config.family->classifier_class(), names.classifier);
    }
}

/// What read_model_config says of a small encoder's config with a change; empty: it reads it.
std::string complaint_about(const char* family, const std::string& change) {
    const fs::path folder = fs::temp_directory_path() / fmt::format("hetlora_encoder_config_{}", getpid());
    fs::create_directories(folder);
    const bool distil = std::string_view(family) == "distilbert";
    const std::string sizes = distil ? R"("dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2)"
                                     : R"("hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                                          "num_attention_heads": 2, "type_vocab_size": 2)";
    write_file_atomically(folder / "config.json",
                          fmt::format(R"({{"model_type": "{}", "vocab_size": 9, "max_position_embeddings": 6, {}{}}})",
                                      family, sizes, change));
    std::string text;
    try {
        (void)read_model_config(folder);
    } catch (const Error& error) {
        text = error.what();
    }
    fs::remove_all(folder);
    return text;
}

TEST(EncoderConfig, what_is_not_implemented_is_refused_by_name) {
    for (const char* family : {"bert", "distilbert", "roberta"}) {
        EXPECT_EQ(complaint_about(family, ""), "");
        EXPECT_EQ(complaint_about(family, R"(, "is_decoder": false, "pruned_heads": {})"), "");
        for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
                 {"is_decoder", "true"},
                 {"add_cross_attention", "true"},
                 {"is_encoder_decoder", "true"},
                 {"position_embedding_type", "\"relative_key_query\""},
                 {family == std::string("distilbert") ? "activation" : "hidden_act", "\"silu\""},
                 {"pruned_heads", "{\"0\": [1]}"},
                 {"quantization_config", "{\"bits\": 8}"},
                 {"architectures", "[\"EncoderDecoderModel\"]"},
                 {"pad_token_id", "9"}}) {
            const std::string change = fmt::format(R"(, "{}": {})", key, value);
            const std::string text = complaint_about(family, change);
            EXPECT_NE(text.find(key == "architectures" ? "EncoderDecoderModel" : key), std::string::npos)
                << family << change << ": " << text;
        }
    }
    EXPECT_NE(complaint_about("roberta", R"(, "pad_token_id": 5)").find("leaves no position"), std::string::npos);
}

TEST(EncoderConfig, a_checkpoint_without_its_pooler_says_what_to_do) {
    const fs::path folder = fs::temp_directory_path() / fmt::format("hetlora_no_pooler_{}", getpid());
    ModelConfig config = testing_engine::small_config();
    config.family = find_model_family("bert");
    config.kv_heads = config.heads;
    config.token_types = 2;
    config.pad_id = 0;
    config.tied_head = false;
    LlamaWeights weights = testing_engine::random_weights(at::kFloat, config);
    save_weights(weights, folder, at::kFloat);
    (void)load_weights(folder, at::kFloat, at::kCPU);
    weights.pooler_DD = weights.pooler_bias_D = at::Tensor();
    save_weights(weights, folder, at::kFloat);
    try {
        (void)load_weights(folder, at::kFloat, at::kCPU);
        FAIL() << "the pooler is missing";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("bert.pooler.dense.weight"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("AutoModel"), std::string::npos) << error.what();
    }
    fs::remove_all(folder);
}

}  // namespace
}  // namespace hetlora
