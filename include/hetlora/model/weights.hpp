// The frozen weights of a model on one device, laid out for few, large GEMMs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/model/config.hpp"
#include "hetlora/tensor/ops.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// One transformer layer. Matrices that read the same input are stacked, so that they are one GEMM.
struct LayerWeights {
    at::Tensor input_norm_D;
    at::Tensor qkv_XD;  ///< [q | k | v] rows: [H*E + 2*K*E, D]
    at::Tensor o_DX;    ///< [D, H*E]
    at::Tensor mlp_norm_D;
    at::Tensor gate_up_ID;  ///< [gate | up] rows: [2*I, D]; without a gate [I, D]
    at::Tensor down_DI;     ///< [D, I]
    // Of some families only, else undefined:
    at::Tensor qkv_bias_X;  ///< [q | k | v], in the matrices' dtype
    at::Tensor q_norm_E;    ///< of every head of q, in the norms' dtype
    at::Tensor k_norm_E;
    at::Tensor input_norm_bias_D;  ///< biases of LayerNorms and of what adds to the residual stream: in its dtype
    at::Tensor mlp_norm_bias_D;
    at::Tensor o_bias_D;
    at::Tensor down_bias_D;
    at::Tensor up_bias_I;  ///< in the matrices' dtype
};

/// Encoders normalise after each branch's residual addition. They are kept in the order of the others: a layer's input
/// norm is the one that ends the layer before it (the first layer's: the embedding's), the norm before the feed-forward
/// is the one that ends attention, and the final norm is the one that ends the last layer.
struct LlamaWeights {
    ModelConfig config;
    at::Tensor embedding_VD;
    std::vector<LayerWeights> layer;
    at::Tensor final_norm_D;
    at::Tensor head_VD;       ///< the same tensor as embedding_VD where the head is tied; undefined in encoders
    ops::RotaryTable rotary;  ///< undefined where positions are learned
    // Of some families only, else undefined:
    at::Tensor position_PD;  ///< learned positions, added to the embedding
    at::Tensor final_norm_bias_D;
    at::Tensor token_type_YD;  ///< its first row is added to every embedding
    at::Tensor pooler_DD;
    at::Tensor pooler_bias_D;  ///< in the norms' dtype

    /// Of the residual stream and the adapters: float32 beside bfloat16 matrices, else the matrices' own dtype.
    [[nodiscard]] at::TensorOptions options() const { return final_norm_D.options(); }
};

/// A tensor of a checkpoint and where it lies in LlamaWeights: the one table of names, used for reading and writing.
struct NamedWeight {
    std::string name;   ///< Hugging Face name
    at::Tensor tensor;  ///< a view into the weights
};
[[nodiscard]] std::vector<NamedWeight> named_weights(const LlamaWeights& weights);

/// Every weight of a decoder once, as it lies in memory: stacked matrices whole, a tied head with the embedding. These
/// are what training of the base itself changes.
[[nodiscard]] std::vector<NamedWeight> stored_weights(const LlamaWeights& weights);

/// Uninitialised weights of this architecture; with dtype bfloat16 the matrices are, norms and rotary table are
/// float32.
[[nodiscard]] LlamaWeights allocate_weights(const ModelConfig& config, const at::TensorOptions& options);

/// Reads a Hugging Face folder (model.safetensors, or sharded with an index; F32, F16 or BF16) or a GGUF file
/// (store/gguf.hpp), memory-mapped.
/// @param dtype of the weights in memory (float, double or bfloat16; see allocate_weights)
/// @throws Error (input) for a missing, misshapen, non-floating or unused tensor, each named.
[[nodiscard]] LlamaWeights load_weights(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device);

/// Writes these tensors as model.safetensors (dtype float32, float64 or bfloat16), whole or not at all.
/// @pre the folder exists
void save_tensors(const std::vector<NamedWeight>& tensors, const std::filesystem::path& folder, at::ScalarType dtype);
/// "float32", "float64" or "bfloat16", as config.json names it.
[[nodiscard]] std::string dtype_name(at::ScalarType dtype);

/// Writes config.json and model.safetensors (dtype as above). Files are written whole or not at all.
void save_weights(const LlamaWeights& weights, const std::filesystem::path& folder, at::ScalarType dtype);

}  // namespace hetlora
