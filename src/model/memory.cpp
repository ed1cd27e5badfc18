#include "hetlora/model/memory.hpp"

#include "hetlora/model/engine.hpp"

namespace hetlora {

EngineMemory engine_memory(const ModelConfig& config, const AdapterLayout& layout, const EngineGeometry& geometry) {
    const std::int64_t D = config.hidden_size;
    const std::int64_t Q = config.query_width();
    const std::int64_t X = Q + 2 * config.kv_width();
    const std::int64_t I = config.intermediate_size;
    const std::int64_t up = config.up_width();
    const std::int64_t activation = geometry.activation_bytes;
    const std::int64_t residual = geometry.residual_bytes;
    std::int64_t first_adapted = config.layers;
    for (const auto& matrix : layout.matrices) first_adapted = std::min<std::int64_t>(first_adapted, matrix.layer);
    const std::int64_t layers = config.layers - first_adapted;
    const std::int64_t targets = layers > 0 ? (std::ssize(layout.matrices) + layers - 1) / layers : 0;

    // Per row, as Engine::Saved holds them, and the largest set of temporaries (those of a feed-forward's backward).
    const std::int64_t head_norms =
        config.family->qk_norm ? residual * (config.heads + config.kv_heads) * (config.head_size + 1) : 0;
    const std::int64_t saved =
        activation * (X + Q + up) + head_norms + residual * (2 * D + config.heads + 2 + targets * geometry.lora_width);
    const std::int64_t kept = geometry.recompute ? layers * residual * D + saved : layers * saved;
    const std::int64_t temporary = activation * (2 * I + up + 2 * D + X) + residual * (2 * D) +
                                   (config.family->encoder ? residual * 2 * D : 0);  // normed streams in full precision
    EngineMemory memory;
    memory.temporary_bytes_per_row = temporary;
    memory.bytes_per_row = kept + temporary + 3 * residual * D;
    const std::int64_t logits = config.family->encoder ? 0 : 2 * head_chunk_rows * config.vocab_size * activation;
    memory.fixed_bytes = logits + (std::int64_t{64} << 20);
    const std::int64_t embedding = config.vocab_size * D;
    const std::int64_t matrices = config.layers * (X * D + D * Q + (up + I) * D) + (config.has_pooler() ? D * D : 0);
    const bool own_copies = !config.family->encoder && (geometry.frozen_copies != 1.0 || !config.tied_head);
    memory.frozen_bytes =
        activation *
            (embedding + static_cast<std::int64_t>(geometry.frozen_copies *
                                                   static_cast<double>(matrices + (own_copies ? embedding : 0)))) +
        (config.family->learned_positions ? activation * config.max_positions * D
                                          : residual * config.usable_positions() * config.head_size);
    return memory;
}

EngineMemory full_training_memory(const ModelConfig& config, const FullTrainingGeometry& geometry) {
    const std::int64_t D = config.hidden_size;
    const std::int64_t Q = config.query_width();
    const std::int64_t X = Q + 2 * config.kv_width();
    // What autograd keeps of a layer: two norms and residuals, q, k, v before and after rotary and repetition, three
    // forms of the attention scores, the feed-forward's parts; of the head: logits, probabilities and their gradients.
    const std::int64_t layer = 12 * D + X + 8 * Q + 3 * config.heads * geometry.sequence_length + config.up_width() +
                               3 * config.intermediate_size;
    EngineMemory memory;
    memory.bytes_per_row = geometry.value_bytes * (config.layers * layer + 2 * D + 4 * config.vocab_size);
    memory.frozen_bytes =
        geometry.value_bytes *
        (config.parameters() + (config.family->learned_positions ? 0 : config.usable_positions() * config.head_size));
    // A client's copy, its gradients, the moments, and root's copy of the last complete round.
    memory.fixed_bytes = config.parameters() * (geometry.value_bytes * (3 + geometry.moments) + geometry.sum_bytes) +
                         (std::int64_t{64} << 20);
    return memory;
}

}  // namespace hetlora
