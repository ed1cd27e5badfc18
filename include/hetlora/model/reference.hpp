// A plain, differentiable forward pass from ATen's own ops: the oracle of the explicit engine, and the path on which
// `pretrain` trains all weights through autograd. One batch of equally long sequences; nothing is fused or reused.
#pragma once

#include <vector>

#include "hetlora/model/class_head.hpp"
#include "hetlora/model/weights.hpp"

namespace hetlora {

/// A and Bt of every adapted matrix (layout order) of one client, [W, D] and [W, O]; may require gradients.
struct ReferenceAdapter {
    std::vector<at::Tensor> a_WD;
    std::vector<at::Tensor> bt_WO;
};

/// The stream after the final norm, [S, T, D], of token_ST (int64). With an adapter, W0 x becomes W0 x + scale * B A x.
[[nodiscard]] at::Tensor reference_hidden(const LlamaWeights& weights, const at::Tensor& token_ST,
                                          const AdapterLayout& layout = {}, const ReferenceAdapter* adapter = nullptr,
                                          double scale = 1.0);

/// Logits [S, K] of classes, from reference_hidden and a head's values [P] (which may require a gradient).
[[nodiscard]] at::Tensor reference_class_logits(const LlamaWeights& weights, const at::Tensor& hidden_STD,
                                                const ClassHeadShape& shape, const at::Tensor& head_P);

/// Logits [S, T, V] of token_ST (int64); the arguments are reference_hidden's.
/// @throws Error (usage) for an encoder
[[nodiscard]] at::Tensor reference_logits(const LlamaWeights& weights, const at::Tensor& token_ST,
                                          const AdapterLayout& layout = {}, const ReferenceAdapter* adapter = nullptr,
                                          double scale = 1.0);

}  // namespace hetlora
