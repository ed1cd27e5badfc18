// The architecture of a causal language model or encoder of one of the families (families.hpp), read from a Hugging
// Face `config.json`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/model/families.hpp"
#include "hetlora/model/rotary_rule.hpp"
#include "hetlora/tensor/kernels.hpp"

namespace hetlora {

/// Everything that the forward pass needs to know. Only what is implemented can be represented: a config that asks for
/// anything else is refused when it is read.
struct ModelConfig {
    const ModelFamily* family = &model_families().front();
    std::int64_t vocab_size = 0;
    std::int64_t hidden_size = 0;
    std::int64_t intermediate_size = 0;
    std::int64_t layers = 0;
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_size = 0;
    std::int64_t max_positions = 0;
    std::int64_t sliding_window = 0;  ///< positions that attention sees back; 0: all
    double rope_theta = 10000.0;
    RotaryRule rotary;
    double rms_eps = 1e-6;                          ///< of RMSNorm or LayerNorm
    Activation activation = Activation::gelu_tanh;  ///< of a feed-forward without a gate
    bool tied_head = false;
    std::int64_t token_types = 0;       ///< rows of the table of token types; 0: the model has none
    std::int64_t pad_id = -1;           ///< -1: none
    std::int64_t bos_id = -1;           ///< -1: none
    std::vector<std::int64_t> eos_ids;  ///< generation stops at any of them

    /// Position of a sequence's first token: RoBERTa's begin after the padding's.
    [[nodiscard]] std::int64_t first_position() const { return family->positions_after_padding ? pad_id + 1 : 0; }
    /// Tokens that a sequence may have. Attention is full: no sequence may be longer than a sliding window.
    [[nodiscard]] std::int64_t usable_positions() const {
        const std::int64_t positions = max_positions - first_position();
        return sliding_window > 0 && sliding_window < positions ? sliding_window : positions;
    }
    [[nodiscard]] bool has_pooler() const { return !family->names.pooler.empty(); }
    [[nodiscard]] std::int64_t query_width() const { return heads * head_size; }
    [[nodiscard]] std::int64_t kv_width() const { return kv_heads * head_size; }
    /// Columns of the feed-forward's first product: gate and up side by side, or up alone.
    [[nodiscard]] std::int64_t up_width() const { return (family->gated ? 2 : 1) * intermediate_size; }
    /// Parameters of the whole model (a tied head counts once, a classification head not).
    [[nodiscard]] std::int64_t parameters() const;
};

/// Reads DIR/config.json as transformers 4 and 5 write it (5 keeps rope_theta inside rope_parameters), or the metadata
/// of a GGUF file.
/// @throws Error (input) for a missing or malformed file, another family, and every feature that is not implemented
///         (other rotary rules, experts, another activation, ...), all of them named.
[[nodiscard]] ModelConfig read_model_config(const std::filesystem::path& folder);

/// @throws Error (usage) for an encoder that is asked to predict next tokens; every model can classify
void check_task(const ModelConfig& config, bool classification);

/// config.json text for this model, as transformers 4 and 5 read it.
[[nodiscard]] std::string write_model_config(const ModelConfig& config, const std::string& dtype);

/// The adapted matrices for targets such as {"q_proj", "v_proj"} or {"all-linear"} (all that the family has).
/// @throws Error (usage) for a repeated target, or one that the family has not; it names those of the family.
[[nodiscard]] AdapterLayout make_adapter_layout(const ModelConfig& config, const std::vector<std::string>& targets);

/// @throws Error (usage) if rank_max exceeds the smaller side of an adapted matrix.
void check_lora_rank(const AdapterLayout& layout, std::int64_t rank_max);

}  // namespace hetlora
