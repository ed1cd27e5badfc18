// A trained classifier on top of the frozen model, in place of the vocabulary's head: one pooled row per sequence, K
// classes, cross-entropy over them. It is dense: clients train a copy each, and the server averages them by samples.
//
// The pooled row h (after the final norm, or the encoder's pooler) is the last token's of a decoder, as transformers'
// ForSequenceClassification classes take it, and the first token's of an encoder.
//     logits = W_o f(W_d h + b_d) + b_o      with the dense part (DistilBERT, RoBERTa)
//     logits = W_o h + b_o                   without it; decoders have no b_o either
// Shape letters: C clients, P parameters of one head, K classes, D hidden, L pooled rows (sequences).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hetlora/model/config.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// A tensor of the head, as checkpoints of the family name it, and where it lies in the head's values.
struct ClassHeadPart {
    std::string name;  ///< e.g. "score.weight"
    std::int64_t first = 0;
    std::int64_t rows = 0;
    std::int64_t columns = 0;  ///< 0: a bias of `rows` values
    [[nodiscard]] std::int64_t values() const { return rows * (columns == 0 ? 1 : columns); }
};

struct ClassHeadShape {
    std::int64_t labels = 0;  ///< K
    std::int64_t hidden = 0;  ///< D
    bool dense = false;       ///< a trained D x D layer with a bias before the output
    HeadActivation activation = HeadActivation::none;
    bool bias = false;        ///< of the output
    std::string dense_name;   ///< module's name in checkpoints, e.g. "classifier.dense"
    std::string output_name;  ///< e.g. "score"

    /// Values of one head, in the order W_d [D, D], b_d [D], W_o [K, D], b_o [K] of those that exist, row-major.
    [[nodiscard]] std::int64_t parameters() const;
    [[nodiscard]] std::vector<ClassHeadPart> parts() const;
    /// What `modules_to_save` of a peft adapter lists: the first parts of the modules' names.
    [[nodiscard]] std::vector<std::string> modules() const;
};

/// The head that transformers' ForSequenceClassification class of this family has; all of it is trained (peft by itself
/// keeps DistilBERT's pre_classifier frozen). BERT's pooler is no part of it: it is frozen, as the base.
/// @throws Error (usage) for fewer than two labels
[[nodiscard]] ClassHeadShape class_head_shape(const ModelConfig& config, std::int64_t labels);

/// Hashed start: weights N(0, 0.02), biases 0. @param round_to_fp32 values that float32 represents exactly
[[nodiscard]] std::vector<double> initial_class_head(const ClassHeadShape& shape, std::uint64_t seed,
                                                     bool round_to_fp32);

/// The heads of several clients.
class ClassHeadGroup {
public:
    ClassHeadGroup(const ClassHeadShape& shape, std::int64_t clients, bool with_gradient,
                   const at::TensorOptions& options);

    /// @throws Error (bug) unless there are shape().parameters() values
    void set(std::int64_t client, std::span<const double> values);
    [[nodiscard]] std::vector<double> get(std::int64_t client) const;
    [[nodiscard]] std::vector<double> get_gradient(std::int64_t client) const;

    [[nodiscard]] const ClassHeadShape& shape() const { return shape_; }
    [[nodiscard]] std::int64_t clients() const { return theta_CP.size(0); }

    at::Tensor theta_CP;
    at::Tensor gradient_CP;  ///< undefined without gradients

private:
    ClassHeadShape shape_;
};

/// Consecutive pooled rows of one client.
struct ClassHeadRun {
    ClassHeadGroup* group = nullptr;
    std::int64_t client = 0;
    std::int64_t row0 = 0;  ///< within L
    std::int64_t rows = 0;
};

/// Logits [rows, K] of pooled rows [rows, D] in the head's dtype.
[[nodiscard]] at::Tensor class_head_logits(const ClassHeadRun& run, const at::Tensor& pooled_RD);
/// Overwrites the client's gradient. @return the pooled rows' gradient [rows, D]
[[nodiscard]] at::Tensor class_head_backward(const ClassHeadRun& run, const at::Tensor& pooled_RD,
                                             const at::Tensor& d_logits_RK);

}  // namespace hetlora
