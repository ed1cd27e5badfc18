// Builds the TokenBatch of a pass from sequences of tokens: flat rows, sequence spans, loss rows, adapter runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/model/engine.hpp"

namespace hetlora {

/// One sequence: inputs, and for each the token that follows (-1: carries no loss). Classification: one target, the
/// sequence's class, on whatever row; it is the pooled row's, an encoder's first and a decoder's last.
struct BatchSequence {
    std::span<const std::int32_t> inputs;
    std::span<const std::int32_t> targets;
};

/// The sequences of one client in a pass, and its adapter (null: the base alone).
struct BatchClient {
    AdapterGroup* group = nullptr;
    std::int64_t client_in_group = 0;
    double scale = 1.0;  ///< s in W0 + s B A
    std::uint64_t dropout_seed = 0;
    ClassHeadGroup* head = nullptr;  ///< classification: targets are classes, one per sequence; null: next tokens
    std::int64_t client_in_head = 0;
    std::vector<BatchSequence> sequences;
};

/// Rows in the order given. Consecutive clients of one group with consecutive indices and equally many rows share a
/// run. Rows that belong to nobody and carry no loss fill the last block of gemm_row_block rows.
/// The loss of a client's rows is weighted by 1 / (its own number of loss tokens).
/// @throws Error (input) for a sequence longer than the model's positions, a token outside the vocabulary or a class
///         outside the head's; (bug) for a sequence with two classes
[[nodiscard]] TokenBatch make_batch(const LlamaWeights& weights, std::span<const BatchClient> clients);

}  // namespace hetlora
