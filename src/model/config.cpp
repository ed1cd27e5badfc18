#include "hetlora/model/config.hpp"

#include <algorithm>
#include <set>

#include "config_reader.hpp"
#include "gguf_model.hpp"
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
    if (reader.present("pad_token_id") && reader.at("pad_token_id").is_number_integer()) {
        const auto id = reader.at("pad_token_id").get<std::int64_t>();
        if (id >= 0 && id < config.vocab_size) config.pad_id = id;
    }
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
    if (family.gated && reader.present("hidden_act") && reader.at("hidden_act") != activation) {
        reader.complain("`hidden_act` = {} is not implemented (only \"{}\")", reader.at("hidden_act").dump(),
                        activation);
    }
    for (const char* key : {"scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"}) {
        if (reader.flag(key, false)) reader.complain("`{}` = true is not implemented", key);
    }
    if (!reader.flag("scale_attn_weights", true)) reader.complain("`scale_attn_weights` = false is not implemented");
    for (const char* key :
         {"num_local_experts", "num_experts", "n_routed_experts", "logit_scale", "final_logit_softcapping",
          "attn_logit_softcapping", "residual_multiplier", "embedding_multiplier", "quantization_config"}) {
        if (reader.present(key)) reader.complain("`{}` = {} is not implemented", key, reader.at(key).dump());
    }
}

/// The activation of a feed-forward without a gate.
void read_activation(ConfigReader& reader, ModelConfig& config) {
    const char* key = config.family->keys.activation;
    const std::string name =
        reader.present(key) && reader.at(key).is_string() ? reader.at(key).get<std::string>() : std::string();
    const std::string_view usual = config.family->activation;
    if (name == "gelu" || (!reader.present(key) && usual == "gelu")) {
        config.activation = Activation::gelu;
    } else if (name == "relu") {
        config.activation = Activation::relu;
    } else if (name == "gelu_new" || name == "gelu_pytorch_tanh" || (!reader.present(key) && usual == "gelu_new")) {
        config.activation = Activation::gelu_tanh;
    } else {
        reader.complain("`{}` = {} is not implemented (only gelu_new, gelu_pytorch_tanh, gelu and relu)", key,
                        reader.present(key) ? reader.at(key).dump() : "missing");
    }
}

/// What only encoders have: token types, padding's id.
void read_encoder(ConfigReader& reader, ModelConfig& config) {
    const ModelFamily& family = *config.family;
    if (!family.encoder) return;
    if (!family.names.token_types.empty()) config.token_types = reader.positive("type_vocab_size");
    config.pad_id = family.pad_id;
    if (reader.present("pad_token_id")) {
        const json& id = reader.at("pad_token_id");
        const bool token = id.is_number_integer() && id >= 0 && id < config.vocab_size;
        if (token) config.pad_id = id.get<std::int64_t>();
        if (!token) reader.complain("`pad_token_id` = {} is no token of the vocabulary", id.dump());
    }
    if (config.usable_positions() < 1) {
        reader.complain("`{}` = {} leaves no position after the padding's {}", family.keys.max_positions,
                        config.max_positions, config.pad_id);
    }
    for (const char* key : {"is_decoder", "is_encoder_decoder"}) {
        if (reader.flag(key, false)) reader.complain("`{}` = true is not implemented: this family is an encoder", key);
    }
    if (reader.present("position_embedding_type") && reader.at("position_embedding_type") != "absolute") {
        reader.complain("`position_embedding_type` = {} is not implemented (only \"absolute\")",
                        reader.at("position_embedding_type").dump());
    }
    if (reader.present("pruned_heads") && !reader.at("pruned_heads").empty()) {
        reader.complain("`pruned_heads` = {} is not implemented", reader.at("pruned_heads").dump());
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
            const std::vector<std::string> known = family->read_classes();
            if (std::ranges::find(known, text(name)) != known.end() || name == "LLaMAForCausalLM") continue;
            throw input_error(
                "{}: architecture {} of model_type `{}` is not supported: hetlora reads checkpoints of {}: "
                "choose one of {} in `model.path` (docs/models.md)",
                path, name.dump(), type, fmt::join(known, ", "), supported_families());
        }
    }
    return *family;
}

}  // namespace

std::int64_t ModelConfig::parameters() const {
    const std::int64_t norm = (family->layer_norm ? 2 : 1) * hidden_size;
    const std::int64_t per_layer = hidden_size * (query_width() + 2 * kv_width()) + query_width() * hidden_size +
                                   hidden_size * (up_width() + intermediate_size) + 2 * norm +
                                   (family->qkv_bias ? query_width() + 2 * kv_width() : 0) +
                                   (family->linear_bias ? up_width() + 2 * hidden_size : 0) +
                                   (family->qk_norm ? 2 * head_size : 0);
    const std::int64_t positions = family->learned_positions ? max_positions * hidden_size : 0;
    const std::int64_t pooler = has_pooler() ? hidden_size * (hidden_size + 1) : 0;
    // An encoder has no vocabulary's head; its norms end the embedding and the branches: as many as a decoder's.
    const std::int64_t tables = vocab_size * (tied_head || family->encoder ? 1 : 2) + token_types;
    return layers * per_layer + norm + positions + pooler + tables * hidden_size;
}

void check_task(const ModelConfig& config, bool classification) {
    if (classification || !config.family->encoder) return;
    throw usage_error(
        "model.path: a model of family {} is an encoder and has no next tokens to predict: set model.task = "
        "classification, or choose a causal model",
        config.family->model_type);
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
    if (std::filesystem::is_regular_file(folder)) {
        return parse_model_config(gguf_config(GgufFile(folder)), folder.string());
    }
    const auto path = folder / "config.json";
    if (!std::filesystem::is_directory(folder)) {
        throw input_error(
            "model folder {} does not exist: give `model.path` a Hugging Face folder with config.json and "
            "model.safetensors (`hetlora convert` makes one) or a GGUF file{}",
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
    return parse_model_config(object, path.string());
}

ModelConfig parse_model_config(const json& object, const std::string& path) {
    ConfigReader reader(object, path);
    ModelConfig config;
    config.family = &family_of(object, path);
    const ModelFamily& family = *config.family;
    const ConfigKeys& keys = family.keys;
    config.vocab_size = reader.positive("vocab_size");
    config.hidden_size = reader.positive(keys.hidden_size);
    // GPT-2's may be null, and is this then.
    config.intermediate_size =
        reader.positive(keys.intermediate_size, family.gated || family.encoder ? 0 : 4 * config.hidden_size);
    config.layers = reader.positive(keys.layers);
    config.heads = reader.positive(keys.heads);
    config.kv_heads = family.learned_positions ? config.heads : reader.positive("num_key_value_heads", config.heads);
    const std::int64_t even_share = std::max<std::int64_t>(1, config.hidden_size / config.heads);
    config.head_size = family.learned_positions ? even_share : reader.positive("head_dim", even_share);
    config.max_positions = reader.positive(keys.max_positions, family.learned_positions ? 0 : 2048);
    config.rms_eps = keys.norm_eps == nullptr ? family.norm_eps : reader.number(keys.norm_eps, family.norm_eps);
    config.tied_head = !family.encoder && reader.flag("tie_word_embeddings", family.tied_head);
    if (family.learned_positions) {
        if (config.hidden_size % config.heads != 0) {
            reader.complain("`{}` = {} is no multiple of `{}` = {}", keys.hidden_size, config.hidden_size, keys.heads,
                            config.heads);
        }
    } else {
        read_rope(reader, config);
        if (config.head_size % 2 != 0) {
            reader.complain("head_dim {} is odd: rotary positions need pairs", config.head_size);
        }
    }
    if (!family.gated) read_activation(reader, config);
    read_tokens(reader, config);
    read_encoder(reader, config);
    read_window(reader, *config.family, config);
    refuse_unimplemented(reader, *config.family);
    if (config.heads % config.kv_heads != 0) {
        reader.complain("{} attention heads are no multiple of {} key/value heads", config.heads, config.kv_heads);
    }
    reader.finish();
    return config;
}

}  // namespace hetlora
