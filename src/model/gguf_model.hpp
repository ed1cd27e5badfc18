// A model in a GGUF file: its config and its weights (private to model).
//
// Every key that the file has for its architecture must be known here, and every tensor be used: what is not
// implemented is refused. Names, keys and bits are those that `hetlora convert gguf` makes of the same file.
#pragma once

#include <nlohmann/json.hpp>

#include "hetlora/model/weights.hpp"
#include "hetlora/store/gguf.hpp"

namespace hetlora {

/// The metadata as the keys of a config.json.
/// @throws Error (input) for another architecture, keys that are missing, unknown or say what is not implemented, and
///         sizes that the tensors have not; all of them named.
[[nodiscard]] nlohmann::json gguf_config(const GgufFile& file);

/// The file's name for a tensor of a family with Llama's names: "model.layers.3.mlp.up_proj.weight" is
/// "blk.3.ffn_up.weight". Empty for another name.
[[nodiscard]] std::string gguf_tensor_name(const std::string& name);

/// Copies the file's tensors into weights allocated for its config, a few rows at a time.
/// @throws Error (input) for a missing, misshapen or unused tensor, each named
void fill_weights(const GgufFile& file, LlamaWeights& weights);

}  // namespace hetlora
