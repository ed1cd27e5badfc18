// Evaluation of the base or of base + global adapter: token-weighted negative log-likelihood over loss tokens.
//
// Windows are batched by a rule that knows nothing of MPI ranks, and each batch gives its own sums: adding these in the
// batches' order gives the same bits however the batches were shared out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/data/corpus.hpp"
#include "hetlora/model/engine.hpp"

namespace hetlora {

/// Sums over the loss tokens of some windows.
struct EvaluationSums {
    double loss = 0.0;  ///< natural-log NLL
    std::int64_t tokens = 0;
    std::int64_t correct = 0;  ///< next token most likely

    EvaluationSums& operator+=(const EvaluationSums& other);
    [[nodiscard]] double mean_loss() const;
    [[nodiscard]] double accuracy() const;
};

/// Indices of windows for each batch: longest first (few shapes, little waste), up to `batch_rows` rows a batch.
[[nodiscard]] std::vector<std::vector<std::size_t>> evaluation_batches(std::span<const WindowRef> windows,
                                                                       std::int64_t batch_rows);

/// What is evaluated beside the base: client 0 of each.
struct EvaluatedModel {
    AdapterGroup* adapter = nullptr;  ///< times `scale`; null: the base alone
    double scale = 1.0;
    ClassHeadGroup* head = nullptr;  ///< classification: loss and correct are of labels; null: next tokens
};

/// Sums of one batch.
[[nodiscard]] EvaluationSums evaluate_batch(Engine& engine, const Corpus& corpus, std::span<const WindowRef> windows,
                                            std::span<const std::size_t> batch, const EvaluatedModel& model);
/// The label that the head finds most likely for each window of a batch, in the batch's order. @pre model.head
[[nodiscard]] std::vector<std::int64_t> predicted_labels(Engine& engine, const Corpus& corpus,
                                                         std::span<const WindowRef> windows,
                                                         std::span<const std::size_t> batch,
                                                         const EvaluatedModel& model);

}  // namespace hetlora
