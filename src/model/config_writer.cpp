// Writes a model's config.json, as transformers 4 and 5 read it (see hetlora/model/config.hpp).
#include <nlohmann/json.hpp>

#include "hetlora/model/config.hpp"

namespace hetlora {
namespace {

using nlohmann::json;

void add_tokens(json& object, const ModelConfig& config) {
    if (config.pad_id >= 0) object["pad_token_id"] = config.pad_id;
    if (config.bos_id >= 0) object["bos_token_id"] = config.bos_id;
    if (config.eos_ids.size() == 1) object["eos_token_id"] = config.eos_ids.front();
    if (config.eos_ids.size() > 1) object["eos_token_id"] = config.eos_ids;
}

const char* name_of(Activation activation) {
    switch (activation) {
        case Activation::gelu:
            return "gelu";
        case Activation::relu:
            return "relu";
        case Activation::gelu_tanh:
            break;
    }
    return "gelu_new";
}

/// Of a family with learned positions and a feed-forward without a gate: its own names for the sizes.
std::string learned_positions_config(const ModelConfig& config, const std::string& dtype) {
    const ModelFamily& family = *config.family;
    const ConfigKeys& keys = family.keys;
    json object{{"architectures", {family.architecture}},
                {"model_type", family.model_type},
                {"vocab_size", config.vocab_size},
                {keys.hidden_size, config.hidden_size},
                {keys.intermediate_size, config.intermediate_size},
                {keys.layers, config.layers},
                {keys.heads, config.heads},
                {keys.max_positions, config.max_positions},
                {keys.activation, name_of(config.activation)},
                {"torch_dtype", dtype}};
    if (keys.norm_eps != nullptr) object[keys.norm_eps] = config.rms_eps;
    if (!family.encoder) object["tie_word_embeddings"] = config.tied_head;
    if (config.token_types > 0) object["type_vocab_size"] = config.token_types;
    // The class has ids of its own where nothing is said.
    object["bos_token_id"] = nullptr;
    object["eos_token_id"] = nullptr;
    add_tokens(object, config);
    return object.dump(2) + "\n";
}

}  // namespace

std::string write_model_config(const ModelConfig& config, const std::string& dtype) {
    const ModelFamily& family = *config.family;
    if (family.learned_positions) return learned_positions_config(config, dtype);
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
    add_tokens(object, config);
    return object.dump(2) + "\n";
}

}  // namespace hetlora
