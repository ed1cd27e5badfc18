#include "hetlora/model/weights.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "gguf_model.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/safetensors.hpp"
#include "hetlora/tensor/arena.hpp"

namespace hetlora {
namespace {

at::ScalarType scalar_type_of(const TensorInfo& info, const std::filesystem::path& folder) {
    if (info.dtype == "F32") return at::kFloat;
    if (info.dtype == "F16") return at::kHalf;
    if (info.dtype == "BF16") return at::kBFloat16;
    if (info.dtype == "F64") return at::kDouble;
    throw input_error(
        "{}: tensor {} has dtype {}: only F32, F16, BF16 (and F64) weights can be read; convert the model first "
        "(`hetlora convert hf`)",
        folder.string(), info.name, info.dtype);
}

/// Buffers that old exporters wrote and that are recomputed, not read.
bool is_recomputed_buffer(const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn.bias") ||
           name.ends_with(".attn.masked_bias");  // GPT-2's causal masks
}

/// Parts of an encoder's checkpoint that stand on the body or beside it, which classification does not read.
bool stands_beside_encoder(const ModelFamily& family, std::string_view name) {
    if (!family.encoder) return false;
    constexpr std::string_view heads[] = {
        "cls.",        "lm_head.",        "vocab_transform.", "vocab_layer_norm.", "vocab_projector.",
        "qa_outputs.", "pre_classifier.", "classifier."};
    if (std::ranges::any_of(heads, [&](std::string_view head) { return name.starts_with(head); })) return true;
    if (name.starts_with(family.prefix)) name.remove_prefix(family.prefix.size());
    if (name == "embeddings.position_ids" || name == "embeddings.token_type_ids") return true;
    return family.names.pooler.empty() && name.starts_with("pooler.dense.");
}

bool is_pooler(const ModelFamily& family, std::string_view name) {
    return !family.names.pooler.empty() && name.starts_with(family.prefix) &&
           name.substr(family.prefix.size()).starts_with(family.names.pooler);
}

/// The name under which a checkpoint has this tensor (itself where it has it under none): old encoders call a norm's
/// weight gamma and its bias beta, and some checkpoints are of the bare body, without the prefix.
std::string stored_name(const CheckpointFolder& checkpoint, const ModelFamily& family, const std::string& name) {
    std::vector<std::string> known{name};
    constexpr std::string_view weight = "LayerNorm.weight";
    constexpr std::string_view bias = "LayerNorm.bias";
    if (family.encoder && name.ends_with(weight))
        known.push_back(name.substr(0, name.size() - weight.size()) + "LayerNorm.gamma");
    if (family.encoder && name.ends_with(bias))
        known.push_back(name.substr(0, name.size() - bias.size()) + "LayerNorm.beta");
    for (std::size_t i = 0, given = known.size(); family.base_prefix_optional && i < given; ++i) {
        if (known[i].starts_with(family.prefix)) known.push_back(known[i].substr(family.prefix.size()));
    }
    const auto found = std::ranges::find_if(known, [&](const std::string& one) { return checkpoint.contains(one); });
    return found == known.end() ? name : *found;
}

LlamaWeights allocate_in_huge_pages(const ModelConfig& config, const at::TensorOptions& options) {
    LlamaWeights weights = allocate_weights(config, options);
    prefer_huge_pages(weights.embedding_VD);
    for (const LayerWeights& layer : weights.layer) {
        for (const at::Tensor& matrix : {layer.qkv_XD, layer.o_DX, layer.gate_up_ID, layer.down_DI})
            prefer_huge_pages(matrix);
    }
    return weights;
}

}  // namespace

std::vector<NamedWeight> named_weights(const LlamaWeights& weights) {
    const ModelConfig& config = weights.config;
    const ModelFamily& family = *config.family;
    const ModuleNames& names = family.names;
    const std::int64_t q = config.query_width();
    const std::int64_t kv = config.kv_width();
    const std::int64_t width = config.intermediate_size;
    std::vector<NamedWeight> all;
    const std::string model(family.prefix);
    std::string prefix = model;
    const auto add = [&](std::string_view module, std::string_view kind, const at::Tensor& tensor) {
        if (tensor.defined() && !module.empty()) all.push_back({fmt::format("{}{}.{}", prefix, module, kind), tensor});
    };
    const auto add_matrix = [&](LayerMatrix matrix, const at::Tensor& weight_OI) {
        add(names.matrix[matrix], "weight", family.transposed ? weight_OI.t() : weight_OI);
    };
    const auto part = [](const at::Tensor& x, std::int64_t first, std::int64_t count) {
        return x.defined() ? x.narrow(0, first, count) : x;
    };
    add(names.embedding, "weight", weights.embedding_VD);
    add(names.positions, "weight", weights.position_PD);
    add(names.token_types, "weight", weights.token_type_YD);
    const auto add_norm = [&](std::string_view module, const at::Tensor& weight_D, const at::Tensor& bias_D) {
        add(module, "weight", weight_D);
        add(module, "bias", bias_D);
    };
    if (family.encoder) {
        const LayerWeights& first = weights.layer.front();
        add_norm(names.embedding_norm, first.input_norm_D, first.input_norm_bias_D);
    }
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        const LayerWeights& layer = weights.layer[l];
        prefix = fmt::format("{}{}{}.", model, names.layer, l);
        if (!family.encoder) add_norm(names.attention_norm, layer.input_norm_D, layer.input_norm_bias_D);
        add_matrix(q_proj, layer.qkv_XD.narrow(0, 0, q));
        add_matrix(k_proj, layer.qkv_XD.narrow(0, q, kv));
        add_matrix(v_proj, layer.qkv_XD.narrow(0, q + kv, kv));
        add_matrix(qkv_proj, layer.qkv_XD);
        add_matrix(o_proj, layer.o_DX);
        add(names.matrix[q_proj], "bias", part(layer.qkv_bias_X, 0, q));
        add(names.matrix[k_proj], "bias", part(layer.qkv_bias_X, q, kv));
        add(names.matrix[v_proj], "bias", part(layer.qkv_bias_X, q + kv, kv));
        add(names.matrix[qkv_proj], "bias", layer.qkv_bias_X);
        add(names.matrix[o_proj], "bias", layer.o_bias_D);
        if (layer.q_norm_E.defined()) {
            all.push_back({prefix + "self_attn.q_norm.weight", layer.q_norm_E});
            all.push_back({prefix + "self_attn.k_norm.weight", layer.k_norm_E});
        }
        add_norm(family.encoder ? names.attention_norm : names.mlp_norm, layer.mlp_norm_D, layer.mlp_norm_bias_D);
        if (family.gated) add_matrix(gate_proj, layer.gate_up_ID.narrow(0, 0, width));
        add_matrix(up_proj, layer.gate_up_ID.narrow(0, family.gated ? width : 0, width));
        add(names.matrix[up_proj], "bias", layer.up_bias_I);
        add_matrix(down_proj, layer.down_DI);
        add(names.matrix[down_proj], "bias", layer.down_bias_D);
        if (!family.encoder) continue;
        const bool last = l + 1 == weights.layer.size();
        add_norm(names.mlp_norm, last ? weights.final_norm_D : weights.layer[l + 1].input_norm_D,
                 last ? weights.final_norm_bias_D : weights.layer[l + 1].input_norm_bias_D);
    }
    prefix = model;
    add_norm(names.final_norm, weights.final_norm_D, weights.final_norm_bias_D);
    add(names.pooler, "weight", weights.pooler_DD);
    add(names.pooler, "bias", weights.pooler_bias_D);
    if (!config.tied_head && !family.encoder) all.push_back({"lm_head.weight", weights.head_VD});
    return all;
}

std::vector<NamedWeight> stored_weights(const LlamaWeights& weights) {
    std::vector<NamedWeight> all;
    const auto add = [&](const std::string& name, const at::Tensor& tensor) {
        if (tensor.defined()) all.push_back({name, tensor});
    };
    add("embedding", weights.embedding_VD);
    add("final_norm", weights.final_norm_D);
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        const LayerWeights& layer = weights.layer[l];
        const std::string prefix = fmt::format("layer{}.", l);
        add(prefix + "input_norm", layer.input_norm_D);
        add(prefix + "qkv", layer.qkv_XD);
        add(prefix + "o", layer.o_DX);
        add(prefix + "mlp_norm", layer.mlp_norm_D);
        add(prefix + "gate_up", layer.gate_up_ID);
        add(prefix + "down", layer.down_DI);
        add(prefix + "qkv_bias", layer.qkv_bias_X);
        add(prefix + "q_norm", layer.q_norm_E);
        add(prefix + "k_norm", layer.k_norm_E);
        add(prefix + "input_norm_bias", layer.input_norm_bias_D);
        add(prefix + "mlp_norm_bias", layer.mlp_norm_bias_D);
        add(prefix + "o_bias", layer.o_bias_D);
        add(prefix + "down_bias", layer.down_bias_D);
        add(prefix + "up_bias", layer.up_bias_I);
    }
    add("position", weights.position_PD);
    add("final_norm_bias", weights.final_norm_bias_D);
    if (!weights.config.tied_head) add("head", weights.head_VD);
    return all;
}

LlamaWeights allocate_weights(const ModelConfig& config, const at::TensorOptions& options) {
    LlamaWeights weights;
    weights.config = config;
    const ModelFamily& family = *config.family;
    const std::int64_t D = config.hidden_size;
    const at::TensorOptions wide = options.dtype() == at::kBFloat16 ? options.dtype(at::kFloat) : options;
    weights.embedding_VD = at::empty({config.vocab_size, D}, options);
    for (std::int64_t l = 0; l < config.layers; ++l) {
        LayerWeights& layer = weights.layer.emplace_back();
        layer.input_norm_D = at::empty({D}, wide);
        layer.qkv_XD = at::empty({config.query_width() + 2 * config.kv_width(), D}, options);
        layer.o_DX = at::empty({D, config.query_width()}, options);
        layer.mlp_norm_D = at::empty({D}, wide);
        layer.gate_up_ID = at::empty({config.up_width(), D}, options);
        layer.down_DI = at::empty({D, config.intermediate_size}, options);
        if (family.qkv_bias) layer.qkv_bias_X = at::empty({layer.qkv_XD.size(0)}, options);
        if (family.qk_norm) {
            layer.q_norm_E = at::empty({config.head_size}, wide);
            layer.k_norm_E = at::empty({config.head_size}, wide);
        }
        if (family.layer_norm) {
            layer.input_norm_bias_D = at::empty({D}, wide);
            layer.mlp_norm_bias_D = at::empty({D}, wide);
        }
        if (family.linear_bias) {
            layer.o_bias_D = at::empty({D}, wide);
            layer.down_bias_D = at::empty({D}, wide);
            layer.up_bias_I = at::empty({config.up_width()}, options);
        }
    }
    weights.final_norm_D = at::empty({D}, wide);
    if (family.layer_norm) weights.final_norm_bias_D = at::empty({D}, wide);
    if (!family.encoder) {
        weights.head_VD = config.tied_head ? weights.embedding_VD : at::empty({config.vocab_size, D}, options);
    }
    if (config.token_types > 0) weights.token_type_YD = at::empty({config.token_types, D}, options);
    if (config.has_pooler()) {
        weights.pooler_DD = at::empty({D, D}, options);
        weights.pooler_bias_D = at::empty({D}, wide);
    }
    if (family.learned_positions) {
        weights.position_PD = at::empty({config.max_positions, D}, options);
        return weights;
    }
    weights.rotary = ops::make_rotary_table(
        config.usable_positions(),
        rotary_frequencies(config.head_size, config.rope_theta, config.rotary, wide.dtype() == at::kFloat), wide);
    return weights;
}

LlamaWeights load_weights(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device) {
    const ModelConfig config = read_model_config(folder);
    const at::TensorOptions options = at::TensorOptions().dtype(dtype).device(device);
    if (std::filesystem::is_regular_file(folder)) {
        LlamaWeights weights = allocate_in_huge_pages(config, options);
        fill_weights(GgufFile(folder), weights);
        return weights;
    }
    const CheckpointFolder checkpoint(folder);
    LlamaWeights weights = allocate_in_huge_pages(config, options);
    std::set<std::string> used;
    for (const auto& [full_name, tensor] : named_weights(weights)) {
        const std::string name = stored_name(checkpoint, *config.family, full_name);
        if (!checkpoint.contains(name) && is_pooler(*config.family, name)) {
            throw input_error(
                "{}: tensor {} is missing: this checkpoint was saved without its pooler, which stays frozen here; take "
                "one that has it, or let transformers start one (AutoModel.from_pretrained(...).save_pretrained(...))",
                folder.string(), name);
        }
        if (!checkpoint.contains(name)) {
            throw input_error(
                "{}: tensor {} is missing: config.json promises {} layers; the checkpoint is incomplete or belongs "
                "to another config",
                folder.string(), name, config.layers);
        }
        const TensorInfo& info = checkpoint.info(name);
        if (info.shape != tensor.sizes().vec()) {
            throw input_error("{}: tensor {} has shape [{}] but config.json asks for [{}]", folder.string(), name,
                              fmt::join(info.shape, ", "), fmt::join(tensor.sizes(), ", "));
        }
        const at::ScalarType stored = scalar_type_of(info, folder);
        const auto bytes = checkpoint.bytes(name);
        // from_blob does not own: the mapping outlives this copy. Unaligned foreign files are copied bytewise first.
        const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % c10::elementSize(stored) == 0;
        at::Tensor source;
        if (aligned) {
            source =
                at::from_blob(const_cast<std::byte*>(bytes.data()), tensor.sizes(), at::TensorOptions().dtype(stored));
        } else {
            source = at::empty(tensor.sizes(), at::TensorOptions().dtype(stored));
            std::memcpy(source.mutable_data_ptr(), bytes.data(), bytes.size());
        }
        at::Tensor target = tensor;
        target.copy_(source);
        drop_pages(bytes);
        used.insert(name);
    }
    for (const auto& name : checkpoint.names()) {
        if (used.contains(name) || is_recomputed_buffer(name) || stands_beside_encoder(*config.family, name)) continue;
        if (config.tied_head && name == "lm_head.weight") continue;  // some exporters store the tied head a second time
        throw input_error(
            "{}: tensor {} is not used by a model of this config.json: the model would not be the one that was "
            "trained; check `model_type` and the config",
            folder.string(), name);
    }
    return weights;
}

void save_tensors(const std::vector<NamedWeight>& tensors, const std::filesystem::path& folder, at::ScalarType dtype) {
    std::vector<at::Tensor> kept;  // the bytes must live until they are written
    std::vector<TensorData> data;
    for (const auto& [name, tensor] : tensors) {
        kept.push_back(tensor.detach().to(at::kCPU, dtype).contiguous());
        const at::Tensor& stored = kept.back();
        data.push_back({.name = name,
                        .dtype = dtype == at::kBFloat16 ? "BF16"
                                 : dtype == at::kDouble ? "F64"
                                                        : "F32",
                        .shape = stored.sizes().vec(),
                        .bytes = {static_cast<const std::byte*>(stored.const_data_ptr()), stored.nbytes()}});
    }
    write_safetensors(folder / "model.safetensors", data, {{"format", "pt"}});
}

std::string dtype_name(at::ScalarType dtype) {
    if (dtype == at::kBFloat16) return "bfloat16";
    return dtype == at::kDouble ? "float64" : "float32";
}

void save_weights(const LlamaWeights& weights, const std::filesystem::path& folder, at::ScalarType dtype) {
    std::filesystem::create_directories(folder);
    save_tensors(named_weights(weights), folder, dtype);
    write_file_atomically(folder / "config.json", write_model_config(weights.config, dtype_name(dtype)));
}

}  // namespace hetlora
