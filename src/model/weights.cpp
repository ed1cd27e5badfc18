#include "hetlora/model/weights.hpp"

#include <fmt/ranges.h>

#include <cstring>
#include <set>

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
bool is_recomputed_buffer(const std::string& name) { return name.ends_with("rotary_emb.inv_freq"); }

}  // namespace

std::vector<NamedWeight> named_weights(const LlamaWeights& weights) {
    const ModelConfig& config = weights.config;
    const std::int64_t q = config.query_width();
    const std::int64_t kv = config.kv_width();
    const std::int64_t width = config.intermediate_size;
    std::vector<NamedWeight> all;
    const std::string model(config.family->prefix);
    all.push_back({model + "embed_tokens.weight", weights.embedding_VD});
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        const LayerWeights& layer = weights.layer[l];
        const std::string prefix = fmt::format("{}layers.{}.", model, l);
        all.push_back({prefix + "input_layernorm.weight", layer.input_norm_D});
        all.push_back({prefix + "self_attn.q_proj.weight", layer.qkv_XD.narrow(0, 0, q)});
        all.push_back({prefix + "self_attn.k_proj.weight", layer.qkv_XD.narrow(0, q, kv)});
        all.push_back({prefix + "self_attn.v_proj.weight", layer.qkv_XD.narrow(0, q + kv, kv)});
        all.push_back({prefix + "self_attn.o_proj.weight", layer.o_DX});
        if (layer.qkv_bias_X.defined()) {
            all.push_back({prefix + "self_attn.q_proj.bias", layer.qkv_bias_X.narrow(0, 0, q)});
            all.push_back({prefix + "self_attn.k_proj.bias", layer.qkv_bias_X.narrow(0, q, kv)});
            all.push_back({prefix + "self_attn.v_proj.bias", layer.qkv_bias_X.narrow(0, q + kv, kv)});
        }
        if (layer.q_norm_E.defined()) {
            all.push_back({prefix + "self_attn.q_norm.weight", layer.q_norm_E});
            all.push_back({prefix + "self_attn.k_norm.weight", layer.k_norm_E});
        }
        all.push_back({prefix + "post_attention_layernorm.weight", layer.mlp_norm_D});
        all.push_back({prefix + "mlp.gate_proj.weight", layer.gate_up_ID.narrow(0, 0, width)});
        all.push_back({prefix + "mlp.up_proj.weight", layer.gate_up_ID.narrow(0, width, width)});
        all.push_back({prefix + "mlp.down_proj.weight", layer.down_DI});
    }
    all.push_back({model + "norm.weight", weights.final_norm_D});
    if (!config.tied_head) all.push_back({"lm_head.weight", weights.head_VD});
    return all;
}

LlamaWeights allocate_weights(const ModelConfig& config, const at::TensorOptions& options) {
    LlamaWeights weights;
    weights.config = config;
    const std::int64_t D = config.hidden_size;
    const at::TensorOptions wide = options.dtype() == at::kBFloat16 ? options.dtype(at::kFloat) : options;
    weights.embedding_VD = at::empty({config.vocab_size, D}, options);
    for (std::int64_t l = 0; l < config.layers; ++l) {
        weights.layer.push_back({.input_norm_D = at::empty({D}, wide),
                                 .qkv_XD = at::empty({config.query_width() + 2 * config.kv_width(), D}, options),
                                 .o_DX = at::empty({D, config.query_width()}, options),
                                 .mlp_norm_D = at::empty({D}, wide),
                                 .gate_up_ID = at::empty({2 * config.intermediate_size, D}, options),
                                 .down_DI = at::empty({D, config.intermediate_size}, options),
                                 .qkv_bias_X = {},
                                 .q_norm_E = {},
                                 .k_norm_E = {}});
        LayerWeights& layer = weights.layer.back();
        if (config.family->qkv_bias) layer.qkv_bias_X = at::empty({layer.qkv_XD.size(0)}, options);
        if (config.family->qk_norm) {
            layer.q_norm_E = at::empty({config.head_size}, wide);
            layer.k_norm_E = at::empty({config.head_size}, wide);
        }
    }
    weights.final_norm_D = at::empty({D}, wide);
    weights.head_VD = config.tied_head ? weights.embedding_VD : at::empty({config.vocab_size, D}, options);
    weights.rotary = ops::make_rotary_table(
        config.usable_positions(),
        rotary_frequencies(config.head_size, config.rope_theta, config.rotary, wide.dtype() == at::kFloat), wide);
    return weights;
}

LlamaWeights load_weights(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device) {
    const ModelConfig config = read_model_config(folder);
    const CheckpointFolder checkpoint(folder);
    LlamaWeights weights = allocate_weights(config, at::TensorOptions().dtype(dtype).device(device));
    std::set<std::string> used;
    prefer_huge_pages(weights.embedding_VD);
    for (const LayerWeights& layer : weights.layer) {
        for (const at::Tensor& matrix : {layer.qkv_XD, layer.o_DX, layer.gate_up_ID, layer.down_DI})
            prefer_huge_pages(matrix);
    }
    for (const auto& [name, tensor] : named_weights(weights)) {
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
        if (used.contains(name) || is_recomputed_buffer(name)) continue;
        if (config.tied_head && name == "lm_head.weight") continue;  // some exporters store the tied head a second time
        throw input_error(
            "{}: tensor {} is not used by a model of this config.json: the model would not be the one that was "
            "trained; check `model_type` and the config",
            folder.string(), name);
    }
    return weights;
}

void save_weights(const LlamaWeights& weights, const std::filesystem::path& folder, at::ScalarType dtype) {
    std::filesystem::create_directories(folder);
    std::vector<at::Tensor> kept;  // the bytes must live until they are written
    std::vector<TensorData> data;
    for (const auto& [name, tensor] : named_weights(weights)) {
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
    write_file_atomically(folder / "config.json",
                          write_model_config(weights.config, dtype == at::kBFloat16 ? "bfloat16"
                                                             : dtype == at::kDouble ? "float64"
                                                                                    : "float32"));
}

}  // namespace hetlora
