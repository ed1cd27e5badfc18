// The table of model families: one row says how a family differs from the one forward that the engine has.
//
// A row is all that a new family of this kind needs: config.json and tensors are read and written by it, the engine
// and the reference branch on its flags, and the tests against `transformers` go through the table.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// How a family's config.json speaks of sliding windows.
enum class WindowRule : int {
    none,     ///< no such key is known
    always,   ///< `sliding_window` positions are seen from every layer (null: all)
    flagged,  ///< `sliding_window` counts only where `use_sliding_window` is true
};

/// The function between the dense part of a classification head and its output.
enum class HeadActivation : int { none, tanh, relu };

/// The classification head of the family's ForSequenceClassification class.
struct ClassHeadRule {
    std::string_view output = "score";
    bool bias = false;         ///< of the output
    std::string_view dense{};  ///< a trained layer with a bias before the output; empty: none
    HeadActivation activation = HeadActivation::none;
};

/// The matrices of a layer that may carry LoRA, by their place in the forward.
enum LayerMatrix : int {
    q_proj,
    k_proj,
    v_proj,
    o_proj,
    gate_proj,
    up_proj,  ///< also the first matrix of a feed-forward without a gate
    down_proj,
    qkv_proj,  ///< queries, keys and values as one matrix with one adapter
    layer_matrix_count
};

/// What the family's config.json calls the sizes.
struct ConfigKeys {
    const char* hidden_size = "hidden_size";
    const char* intermediate_size = "intermediate_size";
    const char* layers = "num_hidden_layers";
    const char* heads = "num_attention_heads";
    const char* max_positions = "max_position_embeddings";
    const char* norm_eps = "rms_norm_eps";  ///< nullptr: no key, always the family's default
    const char* activation = "hidden_act";
};

/// What the family's tensors are called, without ".weight" and ".bias"; empty: it has no such one.
struct ModuleNames {
    std::string_view embedding = "embed_tokens";
    std::string_view positions{};        ///< learned positions
    std::string_view token_types{};      ///< a table whose first row is added to every embedding
    std::string_view embedding_norm{};   ///< of families with norms after each branch
    std::string_view layer = "layers.";  ///< followed by the layer's number and a dot
    std::string_view attention_norm = "input_layernorm";
    std::string_view mlp_norm = "post_attention_layernorm";
    std::string_view final_norm = "norm";
    std::string_view pooler{};  ///< a frozen tanh(W h + b) between the pooled row and the classification head
    /// By LayerMatrix.
    std::array<std::string_view, layer_matrix_count> matrix{
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",    ""};
};

struct ModelFamily {
    std::string_view model_type;    ///< as config.json names it
    std::string_view architecture;  ///< the class of `transformers`, in `architectures`; an encoder's bare body
    std::string_view members;       ///< for people
    std::string_view prefix;        ///< of the names of all tensors but the head's
    std::string_view activation;    ///< of the feed-forward, as config.json names it
    ConfigKeys keys{};
    ModuleNames names{};
    bool qkv_bias = false;              ///< biases on q, k and v
    bool qk_norm = false;               ///< RMSNorm of every head of q and k, before rotary
    bool tied_head = false;             ///< where `tie_word_embeddings` is not said
    bool layer_norm = false;            ///< LayerNorm with a bias in place of RMSNorm
    bool gated = true;                  ///< silu(gate) * up; else activation(up)
    bool linear_bias = false;           ///< biases on o and the feed-forward's matrices
    bool learned_positions = false;     ///< a table of positions, added to the embedding, in place of rotary ones
    bool transposed = false;            ///< matrices are stored as [inputs, outputs]
    bool base_prefix_optional = false;  ///< checkpoints of the bare body, without the prefix, are common
    WindowRule window = WindowRule::none;
    double norm_eps = 1e-6;  ///< where config.json does not say it
    /// Attention sees the whole sequence; no vocabulary's head; norms after each branch's residual addition instead of
    /// before the branch, and after the embedding instead of at the end.
    bool encoder = false;
    std::int64_t pad_id = -1;              ///< where config.json does not say it; -1: none
    bool positions_after_padding = false;  ///< the first token's position is pad_id + 1
    ClassHeadRule class_head{};

    [[nodiscard]] bool fused_qkv() const { return !names.matrix[qkv_proj].empty(); }
    /// The family's classes of `transformers` begin with this: "Llama", "Bert".
    [[nodiscard]] std::string_view class_stem() const;
    /// "LlamaForSequenceClassification": the class of body and classification head.
    [[nodiscard]] std::string classifier_class() const;
    /// Classes whose checkpoints hold the body that is needed: of an encoder every one that may stand on it.
    [[nodiscard]] std::vector<std::string> read_classes() const;
};

/// A matrix of every layer that may carry LoRA, as `lora.targets` and peft's target_modules name it.
struct LoraTarget {
    LayerMatrix matrix = q_proj;
    std::string name;
    bool ambiguous = false;  ///< another module's path ends so, too: peft needs the whole path to choose this one
};
/// In canonical order. A name is the shortest end of the module's path that no other of the family shares ("q_proj",
/// "attn.c_proj"), or the path within the layer where each is shared (BERT's "output.dense", which is ambiguous).
[[nodiscard]] std::vector<LoraTarget> lora_targets(const ModelFamily& family);

/// All rows. @post the first is Llama
[[nodiscard]] const std::vector<ModelFamily>& model_families();

/// The row of this model_type, or nullptr.
[[nodiscard]] const ModelFamily* find_model_family(std::string_view model_type);

/// "llama (Llama 2, ...), mistral (...), ...": for messages that refuse another one.
[[nodiscard]] std::string supported_families();

}  // namespace hetlora
