// Full fine-tuning: one client's local training of all weights, in a copy of its own, by autograd over
// model/reference.hpp. One client after another: nothing is packed.
//
// Windows, batches and their order, the loss (mean over the loss tokens of a step's batch), clipping, weight decay,
// optimiser and learning rate are those of every other method (local_training.hpp). What is trained is
// stored_weights(): every weight once, a tied head with the embedding.
#pragma once

#include <cstdint>
#include <vector>

#include "hetlora/model/flat_weights.hpp"
#include "hetlora/train/dense_update.hpp"
#include "hetlora/train/local_training.hpp"

namespace hetlora {

/// Memory for one client at a time: a copy of the weights, gradients and, with AdamW, two moments.
class FullTraining {
public:
    /// @param received what every client starts from; must outlive this. Float32 or float64, on the CPU
    /// @param pass_rows token rows of a pass, at most (one sequence at least): what a step needs beyond is accumulated
    FullTraining(const LlamaWeights& received, OptimizerKind optimizer, std::int64_t pass_rows);

    /// Trains a client from `received`, with a fresh optimiser. @return the steps; `trained` stays empty
    /// @throws Error (input) for tokens or sequences that the model cannot take
    [[nodiscard]] ClientOutcome train(const Corpus& corpus, std::int64_t client, std::int64_t n_steps,
                                      const LocalOptions& options);

    /// What the last client made of the weights.
    [[nodiscard]] const LlamaWeights& trained() const { return copy_; }

    /// trained() - received from place `first` of the FlatWeights on, in fp64. A weight that training left as it was
    /// has a change of 0, whatever it holds: a checkpoint may have non-finite values where no token ever looks.
    void read_changes(std::size_t first, std::span<double> changes) const;
    [[nodiscard]] std::size_t n_weights() const { return flat_copy_.size(); }

private:
    /// Adds the gradients of one step. @return its mean loss
    double accumulate(const std::vector<WindowTokens>& windows, std::int64_t n_loss_tokens);

    const LlamaWeights& received_;
    LlamaWeights copy_;
    FlatWeights flat_received_;
    FlatWeights flat_copy_;
    std::int64_t pass_rows_;
    std::vector<DenseTensor> tensors_;
};

}  // namespace hetlora
