// The architecture of a Llama-type causal language model, read from a Hugging Face `config.json`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

/// Everything that the forward pass needs to know. Only what is implemented can be represented: a config that asks for
/// anything else is refused when it is read.
struct ModelConfig {
    std::int64_t vocab_size = 0;
    std::int64_t hidden_size = 0;
    std::int64_t intermediate_size = 0;
    std::int64_t layers = 0;
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_size = 0;
    std::int64_t max_positions = 0;
    double rope_theta = 10000.0;
    double rms_eps = 1e-6;
    bool tied_head = false;
    std::int64_t bos_id = -1;           ///< -1: none
    std::vector<std::int64_t> eos_ids;  ///< generation stops at any of them

    [[nodiscard]] std::int64_t query_width() const { return heads * head_size; }
    [[nodiscard]] std::int64_t kv_width() const { return kv_heads * head_size; }
    /// Parameters of the whole model (a tied head counts once).
    [[nodiscard]] std::int64_t parameters() const;
};

/// Reads DIR/config.json as transformers 4 and 5 write it (5 keeps rope_theta inside rope_parameters).
/// @throws Error (input) for a missing or malformed file, another architecture, and every feature that is not
///         implemented (rope scaling, biases, another activation, ...), all of them named.
[[nodiscard]] ModelConfig read_model_config(const std::filesystem::path& folder);

/// config.json text for this model, as transformers 5 reads it.
[[nodiscard]] std::string write_model_config(const ModelConfig& config, const std::string& dtype);

/// Names of the seven matrices of a layer that may carry LoRA, in canonical order.
[[nodiscard]] const std::vector<std::string>& lora_target_names();

/// The adapted matrices for targets such as {"q_proj", "v_proj"} or {"all-linear"}.
/// @throws Error (usage) for an unknown or repeated target.
[[nodiscard]] AdapterLayout make_adapter_layout(const ModelConfig& config, const std::vector<std::string>& targets);

/// @throws Error (usage) if rank_max exceeds the smaller side of an adapted matrix.
void check_lora_rank(const AdapterLayout& layout, std::int64_t rank_max);

}  // namespace hetlora
