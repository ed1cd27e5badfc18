#include "hetlora/model/config.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

using nlohmann::json;

/// Collects what is wrong with a config.json, so that all of it is said at once.
class ConfigReader {
public:
    ConfigReader(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

    std::int64_t positive(const std::string& key, std::int64_t fallback = 0) {
        if (!present(key)) {
            if (fallback > 0) return fallback;
            complain("`{}` is missing", key);
            return 1;
        }
        const json& value = object_.at(key);
        if (!value.is_number_integer() || value.get<std::int64_t>() <= 0 || value.get<std::int64_t>() > (1LL << 32)) {
            complain("`{}` = {} is not a positive whole number", key, value.dump());
            return 1;
        }
        return value.get<std::int64_t>();
    }
    double number(const std::string& key, double fallback) {
        if (!present(key)) return fallback;
        if (!object_.at(key).is_number() || !(object_.at(key).get<double>() > 0)) {
            complain("`{}` = {} is not a positive number", key, object_.at(key).dump());
            return fallback;
        }
        return object_.at(key).get<double>();
    }
    bool flag(const std::string& key, bool fallback) {
        if (!present(key)) return fallback;
        if (!object_.at(key).is_boolean()) {
            complain("`{}` = {} is neither true nor false", key, object_.at(key).dump());
            return fallback;
        }
        return object_.at(key).get<bool>();
    }
    [[nodiscard]] bool present(const std::string& key) const {
        return object_.contains(key) && !object_.at(key).is_null();
    }
    [[nodiscard]] const json& at(const std::string& key) const { return object_.at(key); }

    template <typename... Args>
    void complain(fmt::format_string<Args...> text, Args&&... args) {
        problems_.push_back(fmt::format(text, std::forward<Args>(args)...));
    }
    void finish() const {
        if (problems_.empty()) return;
        throw input_error(
            "{}: this model cannot be used:\n  - {}\nhetlora implements Llama-type models (RMSNorm, plain rotary "
            "positions, SwiGLU, no biases): choose such a model folder in `model.path`",
            path_, fmt::join(problems_, "\n  - "));
    }

private:
    const json& object_;
    std::string path_;
    std::vector<std::string> problems_;
};

void read_rope(ConfigReader& reader, ModelConfig& config) {
    config.rope_theta = reader.number("rope_theta", 10000.0);
    if (reader.present("rope_scaling")) {
        const json& scaling = reader.at("rope_scaling");
        const std::string type = scaling.is_object() ? scaling.value("rope_type", scaling.value("type", "?")) : "?";
        if (type != "default") reader.complain("`rope_scaling` of type `{}` is not implemented", type);
    }
    if (reader.present("rope_parameters")) {  // transformers 5
        const json& rope = reader.at("rope_parameters");
        if (!rope.is_object()) {
            reader.complain("`rope_parameters` is not an object");
            return;
        }
        const std::string type = rope.value("rope_type", std::string("default"));
        if (type != "default") reader.complain("`rope_parameters.rope_type` = `{}` is not implemented", type);
        if (rope.contains("rope_theta") && rope.at("rope_theta").is_number()) {
            config.rope_theta = rope.at("rope_theta").get<double>();
        } else if (!reader.present("rope_theta")) {
            reader.complain("`rope_parameters.rope_theta` is missing");
        }
        static const std::set<std::string> known{"rope_type", "rope_theta", "type"};
        for (const auto& [key, value] : rope.items()) {
            if (!known.contains(key) && !value.is_null()) {
                reader.complain("`rope_parameters.{}` = {} is not implemented", key, value.dump());
            }
        }
    }
    if (reader.number("partial_rotary_factor", 1.0) != 1.0)
        reader.complain("`partial_rotary_factor` below 1 is not implemented");
}

void read_tokens(ConfigReader& reader, ModelConfig& config) {
    if (reader.present("bos_token_id") && reader.at("bos_token_id").is_number_integer()) {
        config.bos_id = reader.at("bos_token_id").get<std::int64_t>();
    }
    if (reader.present("eos_token_id")) {
        const json& eos = reader.at("eos_token_id");
        if (eos.is_number_integer()) config.eos_ids.push_back(eos.get<std::int64_t>());
        if (eos.is_array()) {
            for (const auto& id : eos) {
                if (id.is_number_integer()) config.eos_ids.push_back(id.get<std::int64_t>());
            }
        }
    }
}

void refuse_unimplemented(ConfigReader& reader) {
    for (const char* bias : {"attention_bias", "mlp_bias", "bias", "qkv_bias"}) {
        if (reader.flag(bias, false)) reader.complain("`{}` = true: biases are not implemented", bias);
    }
    if (reader.present("hidden_act") && reader.at("hidden_act") != "silu") {
        reader.complain("`hidden_act` = {} is not implemented (only \"silu\")", reader.at("hidden_act").dump());
    }
    for (const char* key :
         {"num_local_experts", "num_experts", "sliding_window", "logit_scale", "final_logit_softcapping",
          "attn_logit_softcapping", "residual_multiplier", "embedding_multiplier", "quantization_config"}) {
        if (reader.present(key)) reader.complain("`{}` = {} is not implemented", key, reader.at(key).dump());
    }
}

}  // namespace

std::int64_t ModelConfig::parameters() const {
    const std::int64_t per_layer = hidden_size * (query_width() + 2 * kv_width()) + query_width() * hidden_size +
                                   3 * hidden_size * intermediate_size + 2 * hidden_size;
    return layers * per_layer + hidden_size + vocab_size * hidden_size * (tied_head ? 1 : 2);
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
    const auto path = folder / "config.json";
    if (!std::filesystem::is_directory(folder)) {
        throw input_error(
            "model folder {} does not exist: give `model.path` a Hugging Face folder with config.json and "
            "model.safetensors (`hetlora convert` makes one)",
            folder.string());
    }
    const std::string text = read_text_file(path);
    json object;
    try {
        object = json::parse(text);
    } catch (const json::exception& error) {
        throw input_error("{}: not valid JSON ({}): the download may be incomplete; fetch the model again",
                          path.string(), error.what());
    }
    if (!object.is_object()) throw input_error("{}: not a JSON object", path.string());
    ConfigReader reader(object, path.string());
    const std::string type = object.value("model_type", std::string("?"));
    if (type != "llama") {
        throw input_error(
            "{}: model_type `{}` is not supported: hetlora reads `llama` (Llama 1 and 2, TinyLlama, SmolLM, "
            "SmolLM2); choose such a folder in `model.path`",
            path.string(), type);
    }
    ModelConfig config;
    config.vocab_size = reader.positive("vocab_size");
    config.hidden_size = reader.positive("hidden_size");
    config.intermediate_size = reader.positive("intermediate_size");
    config.layers = reader.positive("num_hidden_layers");
    config.heads = reader.positive("num_attention_heads");
    config.kv_heads = reader.positive("num_key_value_heads", config.heads);
    config.head_size = reader.positive("head_dim", std::max<std::int64_t>(1, config.hidden_size / config.heads));
    config.max_positions = reader.positive("max_position_embeddings", 2048);
    config.rms_eps = reader.number("rms_norm_eps", 1e-6);
    config.tied_head = reader.flag("tie_word_embeddings", false);
    read_rope(reader, config);
    read_tokens(reader, config);
    refuse_unimplemented(reader);
    if (config.heads % config.kv_heads != 0) {
        reader.complain("{} attention heads are no multiple of {} key/value heads", config.heads, config.kv_heads);
    }
    if (config.head_size % 2 != 0) reader.complain("head_dim {} is odd: rotary positions need pairs", config.head_size);
    reader.finish();
    return config;
}

std::string write_model_config(const ModelConfig& config, const std::string& dtype) {
    json object{{"architectures", {"LlamaForCausalLM"}},
                {"model_type", "llama"},
                {"vocab_size", config.vocab_size},
                {"hidden_size", config.hidden_size},
                {"intermediate_size", config.intermediate_size},
                {"num_hidden_layers", config.layers},
                {"num_attention_heads", config.heads},
                {"num_key_value_heads", config.kv_heads},
                {"head_dim", config.head_size},
                {"max_position_embeddings", config.max_positions},
                {"rms_norm_eps", config.rms_eps},
                {"rope_theta", config.rope_theta},
                {"hidden_act", "silu"},
                {"attention_bias", false},
                {"mlp_bias", false},
                {"tie_word_embeddings", config.tied_head},
                {"torch_dtype", dtype}};
    if (config.bos_id >= 0) object["bos_token_id"] = config.bos_id;
    if (config.eos_ids.size() == 1) object["eos_token_id"] = config.eos_ids.front();
    if (config.eos_ids.size() > 1) object["eos_token_id"] = config.eos_ids;
    return object.dump(2) + "\n";
}

const std::vector<std::string>& lora_target_names() {
    static const std::vector<std::string> names{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
    return names;
}

AdapterLayout make_adapter_layout(const ModelConfig& config, const std::vector<std::string>& targets) {
    const auto& known = lora_target_names();
    std::set<std::string> chosen;
    for (const auto& target : targets) {
        if (target == "all-linear") {
            chosen.insert(known.begin(), known.end());
            continue;
        }
        if (std::ranges::find(known, target) == known.end()) {
            throw usage_error("lora.targets: unknown matrix `{}`{}; known are {} and all-linear", target,
                              did_you_mean(target, known), fmt::join(known, ", "));
        }
        if (!chosen.insert(target).second) throw usage_error("lora.targets: `{}` is named twice", target);
    }
    if (chosen.empty()) throw usage_error("lora.targets is empty: name at least one of {}", fmt::join(known, ", "));
    AdapterLayout layout;
    const std::int64_t D = config.hidden_size;
    const std::int64_t I = config.intermediate_size;
    const std::int64_t widths[7][2] = {{config.query_width(), D},
                                       {config.kv_width(), D},
                                       {config.kv_width(), D},
                                       {D, config.query_width()},
                                       {I, D},
                                       {I, D},
                                       {D, I}};  // d_out, d_in
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
        for (std::size_t t = 0; t < known.size(); ++t) {
            if (!chosen.contains(known[t])) continue;
            layout.matrices.push_back(
                {.name = fmt::format("model.layers.{}.{}.{}", layer, t < 4 ? "self_attn" : "mlp", known[t]),
                 .layer = static_cast<int>(layer),
                 .target = known[t],
                 .d_out = widths[t][0],
                 .d_in = widths[t][1]});
        }
    }
    return layout;
}

void check_lora_rank(const AdapterLayout& layout, std::int64_t rank_max) {
    for (const auto& matrix : layout.matrices) {
        const std::int64_t side = std::min(matrix.d_in, matrix.d_out);
        if (rank_max > side) {
            throw usage_error("lora.rank_max = {} is larger than the smaller side of {} [{} x {}]: take at most {}",
                              rank_max, matrix.name, matrix.d_out, matrix.d_in, side);
        }
    }
}

}  // namespace hetlora
