// The table of model families: one row says how a family differs from the one forward that the engine has.
//
// A row is all that a new family of this kind needs: config.json and tensors are read and written by it, the engine
// and the reference branch on its flags, and the tests against `transformers` go through the table.
#pragma once

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

struct ModelFamily {
    std::string_view model_type;    ///< as config.json names it
    std::string_view architecture;  ///< the class of `transformers`, in `architectures`
    std::string_view members;       ///< for people
    std::string_view prefix;        ///< of the names of all tensors but the head's
    std::string_view activation;    ///< `hidden_act`: of the gate of the feed-forward
    bool qkv_bias = false;          ///< biases on q, k and v
    bool qk_norm = false;           ///< RMSNorm of every head of q and k, before rotary
    bool tied_head = false;         ///< where `tie_word_embeddings` is not said
    WindowRule window = WindowRule::none;
};

/// All rows. @post the first is Llama
[[nodiscard]] const std::vector<ModelFamily>& model_families();

/// The row of this model_type, or nullptr.
[[nodiscard]] const ModelFamily* find_model_family(std::string_view model_type);

/// "llama (Llama 2, ...), mistral (...), ...": for messages that refuse another one.
[[nodiscard]] std::string supported_families();

}  // namespace hetlora
