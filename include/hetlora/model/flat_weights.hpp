// All weights of a decoder as one row of numbers: stored_weights() one after another. This is the form in which the
// changes of trained weights are summed and travel, a piece at a time, so that no second copy of a model is needed.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "hetlora/model/weights.hpp"

namespace hetlora {

class FlatWeights {
public:
    /// Keeps views: the tensors' values may change, and write() changes them.
    /// @throws Error (bug) where a tensor is not dense on the CPU in float32 or float64
    explicit FlatWeights(const LlamaWeights& weights);

    [[nodiscard]] std::size_t size() const { return first_.back(); }
    /// The weights from `first` on, as float64 (exact).
    void read(std::size_t first, std::span<double> values) const;
    /// The weights from `first` on take these values, rounded once to their own dtype.
    void write(std::size_t first, std::span<const double> values);

private:
    template <typename Visit>
    void for_each_part(std::size_t first, std::size_t count, Visit visit) const;

    std::vector<NamedWeight> tensors_;
    std::vector<std::size_t> first_;  ///< of each tensor, and the end of the last one
};

/// Weights of the same architecture, dtype and values in memory of their own.
[[nodiscard]] LlamaWeights copy_of_weights(const LlamaWeights& weights);

/// Sets `target` to the values of `source`. @pre both are of one architecture
void copy_weights(const LlamaWeights& source, const LlamaWeights& target);

}  // namespace hetlora
