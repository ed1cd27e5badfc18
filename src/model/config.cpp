#include "hetlora/model/config.hpp"

#include <algorithm>
#include <set>

#include "config_reader.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/hub_cache.hpp"

namespace hetlora {
namespace {

/// The rule in an object that transformers 4 calls rope_scaling and 5 rope_parameters.
RotaryRule rotary_rule(ConfigReader& reader, const char* name, const ModelConfig& config) {
    RotaryRule rule;
    const json& rope = reader.at(name);
    if (!rope.is_object()) {
        reader.complain("`{}` is not an object", name);
        return rule;
    }
    const auto text = [&](const char* key) {
        return rope.contains(key) && rope.at(key).is_string() ? rope.at(key).get<std::string>() : std::string();
    };
    const std::string type = !text("rope_type").empty() ? text("rope_type")
                             : !text("type").empty()    ? text("type")
                                                        : "default";
    const auto& kinds = rotary_kinds();
    const auto kind = std::ranges::find(kinds, type, [](RotaryKind one) { return std::string(name_of(one)); });
    if (kind == kinds.end()) {
        reader.complain("rotary rule `{}` (`{}`) is not implemented", type, name);
        return rule;
    }
    rule.kind = *kind;
    std::set<std::string> known{"rope_type", "rope_theta", "type"};
    const auto take = [&](const char* key, double& value, double fallback = 0.0) {
        known.insert(key);
        const bool there = rope.contains(key) && !rope.at(key).is_null();
        value = there && rope.at(key).is_number() ? rope.at(key).get<double>() : there ? 0.0 : fallback;
        if (value > 0.0) return;
        reader.complain("`{}.{}` is {}; rotary rule `{}` needs a positive number", name, key,
                        there ? rope.at(key).dump() : "missing", type);
        value = 1.0;
    };
    if (rule.kind != RotaryKind::plain) take("factor", rule.factor);
    if (rule.kind == RotaryKind::llama3) {
        take("low_freq_factor", rule.low_frequency);
        take("high_freq_factor", rule.high_frequency);
        take("original_max_position_embeddings", rule.original_positions, static_cast<double>(config.max_positions));
        if (!(rule.high_frequency > rule.low_frequency)) {
            reader.complain("`{}`: high_freq_factor {} is not above low_freq_factor {}", name, rule.high_frequency,
                            rule.low_frequency);
        }
    } else {
        known.insert("original_max_position_embeddings");  // some write it along; these rules do not read it
    }
    for (const auto& [key, value] : rope.items()) {
        const bool harmless = value.is_null() || (key == "partial_rotary_factor" && value == 1.0);
        if (!known.contains(key) && !harmless) {
            reader.complain("`{}.{}` = {} is not implemented for rotary rule `{}`", name, key, value.dump(), type);
        }
    }
    return rule;
}

void read_rope(ConfigReader& reader, ModelConfig& config) {
    config.rope_theta = reader.number("rope_theta", 10000.0);
    if (reader.present("rope_scaling")) {  // transformers 4
        config.rotary = rotary_rule(reader, "rope_scaling", config);
    }
    if (reader.present("rope_parameters")) {  // transformers 5
        config.rotary = rotary_rule(reader, "rope_parameters", config);
        const json& rope = reader.at("rope_parameters");
        if (!rope.is_object()) return;
        if (rope.contains("rope_theta") && rope.at("rope_theta").is_number()) {
            config.rope_theta = rope.at("rope_theta").get<double>();
        } else if (!reader.present("rope_theta")) {
            reader.complain("`rope_parameters.rope_theta` is missing");
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

void refuse_unimplemented(ConfigReader& reader, const ModelFamily& family) {
    for (const char* bias : {"attention_bias", "mlp_bias", "bias", "qkv_bias"}) {
        if (reader.flag(bias, false)) reader.complain("`{}` = true: biases are not implemented", bias);
    }
    for (const char* layout : {"rope_interleaved", "use_mrope"}) {
        if (reader.flag(layout, false)) reader.complain("`{}` = true is not implemented", layout);
    }
    const std::string activation(family.activation);
    if (reader.present("hidden_act") && reader.at("hidden_act") != activation) {
        reader.complain("`hidden_act` = {} is not implemented (only \"{}\")", reader.at("hidden_act").dump(),
                        activation);
    }
    for (const char* key :
         {"num_local_experts", "num_experts", "n_routed_experts", "logit_scale", "final_logit_softcapping",
          "attn_logit_softcapping", "residual_multiplier", "embedding_multiplier", "quantization_config"}) {
        if (reader.present(key)) reader.complain("`{}` = {} is not implemented", key, reader.at(key).dump());
    }
}

/// Sliding windows, as the family writes them: none, or one that a run's sequences must fit into.
void read_window(ConfigReader& reader, const ModelFamily& family, ModelConfig& config) {
    if (family.window == WindowRule::none && reader.present("sliding_window")) {
        reader.complain("`sliding_window` = {} is not implemented for `{}`", reader.at("sliding_window").dump(),
                        family.model_type);
    }
    if (family.window == WindowRule::flagged && reader.flag("use_sliding_window", false)) {
        reader.complain("`use_sliding_window` = true: attention in sliding windows is not implemented");
        return;
    }
    if (family.window == WindowRule::always && reader.present("sliding_window")) {
        config.sliding_window = reader.positive("sliding_window");
    }
    if (!reader.present("layer_types") || !reader.at("layer_types").is_array()) return;
    for (const json& type : reader.at("layer_types")) {
        if (type == "full_attention" || (type == "sliding_attention" && config.sliding_window > 0)) continue;
        reader.complain("`layer_types` holds {}: only full attention is implemented", type.dump());
        return;
    }
}

/// The row of the table for this file. @throws Error (input) for a model_type or class that has none
const ModelFamily& family_of(const json& object, const std::string& path) {
    const auto text = [](const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
    const std::string type = object.contains("model_type") ? text(object.at("model_type")) : "?";
    const ModelFamily* family = find_model_family(type);
    if (family == nullptr) {
        throw input_error("{}: model_type `{}` is not supported: choose one of {} in `model.path` (docs/models.md)",
                          path, type, supported_families());
    }
    if (object.contains("architectures") && object.at("architectures").is_array()) {
        for (const json& name : object.at("architectures")) {
            if (name == std::string(family->architecture) || name == "LLaMAForCausalLM") continue;
            throw input_error(
                "{}: architecture {} of model_type `{}` is not supported: hetlora trains causal language models ({}): "
                "choose one of {} in `model.path` (docs/models.md)",
                path, name.dump(), type, family->architecture, supported_families());
        }
    }
    return *family;
}

}  // namespace

std::int64_t ModelConfig::parameters() const {
    const std::int64_t per_layer = hidden_size * (query_width() + 2 * kv_width()) + query_width() * hidden_size +
                                   3 * hidden_size * intermediate_size + 2 * hidden_size +
                                   (family->qkv_bias ? query_width() + 2 * kv_width() : 0) +
                                   (family->qk_norm ? 2 * head_size : 0);
    return layers * per_layer + hidden_size + vocab_size * hidden_size * (tied_head ? 1 : 2);
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
    const auto path = folder / "config.json";
    if (!std::filesystem::is_directory(folder)) {
        throw input_error(
            "model folder {} does not exist: give `model.path` a Hugging Face folder with config.json and "
            "model.safetensors (`hetlora convert` makes one){}",
            folder.string(), hub_advice(folder));
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
    ModelConfig config;
    config.family = &family_of(object, path.string());
    config.vocab_size = reader.positive("vocab_size");
    config.hidden_size = reader.positive("hidden_size");
    config.intermediate_size = reader.positive("intermediate_size");
    config.layers = reader.positive("num_hidden_layers");
    config.heads = reader.positive("num_attention_heads");
    config.kv_heads = reader.positive("num_key_value_heads", config.heads);
    config.head_size = reader.positive("head_dim", std::max<std::int64_t>(1, config.hidden_size / config.heads));
    config.max_positions = reader.positive("max_position_embeddings", 2048);
    config.rms_eps = reader.number("rms_norm_eps", 1e-6);
    config.tied_head = reader.flag("tie_word_embeddings", config.family->tied_head);
    read_rope(reader, config);
    read_tokens(reader, config);
    read_window(reader, *config.family, config);
    refuse_unimplemented(reader, *config.family);
    if (config.heads % config.kv_heads != 0) {
        reader.complain("{} attention heads are no multiple of {} key/value heads", config.heads, config.kv_heads);
    }
    if (config.head_size % 2 != 0) reader.complain("head_dim {} is odd: rotary positions need pairs", config.head_size);
    reader.finish();
    return config;
}

std::string write_model_config(const ModelConfig& config, const std::string& dtype) {
    const ModelFamily& family = *config.family;
    json object{{"architectures", {family.architecture}},
                {"model_type", family.model_type},
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
                {"hidden_act", family.activation},
                {"attention_bias", false},
                {"mlp_bias", false},
                {"tie_word_embeddings", config.tied_head},
                {"torch_dtype", dtype}};
    if (config.rotary.kind != RotaryKind::plain) {
        json& rope = object["rope_scaling"];
        rope = {{"rope_type", name_of(config.rotary.kind)}, {"factor", config.rotary.factor}};
        if (config.rotary.kind == RotaryKind::llama3) {
            rope["low_freq_factor"] = config.rotary.low_frequency;
            rope["high_freq_factor"] = config.rotary.high_frequency;
            rope["original_max_position_embeddings"] = static_cast<std::int64_t>(config.rotary.original_positions);
        }
    }
    // The classes have windows of their own where nothing is said.
    if (family.window == WindowRule::always) {
        object["sliding_window"] = config.sliding_window > 0 ? json(config.sliding_window) : json(nullptr);
    }
    if (family.window == WindowRule::flagged) object["use_sliding_window"] = false;
    if (config.bos_id >= 0) object["bos_token_id"] = config.bos_id;
    if (config.eos_ids.size() == 1) object["eos_token_id"] = config.eos_ids.front();
    if (config.eos_ids.size() > 1) object["eos_token_id"] = config.eos_ids;
    return object.dump(2) + "\n";
}

}  // namespace hetlora
