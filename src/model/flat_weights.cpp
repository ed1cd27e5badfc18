#include "hetlora/model/flat_weights.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"

namespace hetlora {

FlatWeights::FlatWeights(const LlamaWeights& weights) : tensors_(stored_weights(weights)), first_{0} {
    for (const auto& [name, tensor] : tensors_) {
        const bool known = tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble;
        if (!known || !tensor.is_cpu() || !tensor.is_contiguous()) {
            throw bug_error("FlatWeights: {} is not dense on the CPU in float32 or float64", name);
        }
        first_.push_back(first_.back() + static_cast<std::size_t>(tensor.numel()));
    }
}

/// visit(tensor, first value in it, place in the row of `count` values, number of values)
template <typename Visit>
void FlatWeights::for_each_part(std::size_t first, std::size_t count, Visit visit) const {
    if (first > size() || count > size() - first) {
        throw bug_error("FlatWeights: {} values from {} of {}", count, first, size());
    }
    const std::size_t end = first + count;
    auto t = static_cast<std::size_t>(std::ranges::upper_bound(first_, first) - first_.begin()) - 1;
    for (std::size_t at = first; at < end; ++t) {
        const std::size_t n = std::min(end, first_[t + 1]) - at;
        visit(tensors_[t].tensor, at - first_[t], at - first, n);
        at += n;
    }
}

void FlatWeights::read(std::size_t first, std::span<double> values) const {
    for_each_part(first, values.size(),
                  [&](const at::Tensor& tensor, std::size_t begin, std::size_t to, std::size_t n) {
                      AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "read_weights", [&] {
                          std::copy_n(tensor.const_data_ptr<scalar_t>() + begin, n, values.data() + to);
                      });
                  });
}

void FlatWeights::write(std::size_t first, std::span<const double> values) {
    for_each_part(first, values.size(),
                  [&](const at::Tensor& tensor, std::size_t begin, std::size_t to, std::size_t n) {
                      AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "write_weights", [&] {
                          auto* target = static_cast<scalar_t*>(tensor.mutable_data_ptr()) + begin;
                          std::transform(values.data() + to, values.data() + to + n, target,
                                         [](double value) { return static_cast<scalar_t>(value); });
                      });
                  });
}

LlamaWeights copy_of_weights(const LlamaWeights& weights) {
    LlamaWeights copy = allocate_weights(weights.config, weights.options());
    copy_weights(weights, copy);
    return copy;
}

void copy_weights(const LlamaWeights& source, const LlamaWeights& target) {
    const at::NoGradGuard no_grad;
    const auto from = stored_weights(source);
    const auto to = stored_weights(target);
    if (from.size() != to.size()) throw bug_error("copy_weights: {} tensors into {}", from.size(), to.size());
    for (std::size_t t = 0; t < from.size(); ++t) {
        at::Tensor tensor = to[t].tensor;
        tensor.copy_(from[t].tensor);
    }
}

}  // namespace hetlora
