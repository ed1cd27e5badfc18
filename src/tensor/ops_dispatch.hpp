// From tensors to the CPU kernels: dtype, pointers, and how rows are shared out (private to tensor).
#pragma once

#include <algorithm>
#include <type_traits>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/ops.hpp"

namespace hetlora::ops {

/// Calls body(S{}) with the type that the kernels store the tensor's elements as.
template <typename Body>
void with_scalar(const at::Tensor& tensor, Body body) {
    if (tensor.scalar_type() == at::kFloat) {
        body(float{});
    } else if (tensor.scalar_type() == at::kDouble) {
        body(double{});
    } else if (tensor.scalar_type() == at::kBFloat16) {
        body(Bfloat16{});
    } else {
        throw bug_error("the CPU kernels have no {} version", c10::toString(tensor.scalar_type()));
    }
}

template <typename S>
using Compute = typename ComputeType<S>::type;

/// The elements as the kernels know them.
/// @pre the tensor's dtype is S's (data_ptr checks it, but for bfloat16, which goes by another name here)
template <typename S>
S* data_of(const at::Tensor& tensor) {
    if constexpr (std::is_same_v<S, Bfloat16>) {
        return reinterpret_cast<Bfloat16*>(tensor.data_ptr<at::BFloat16>());
    } else {
        return tensor.data_ptr<S>();
    }
}

/// Rows per task so that a task has some ten thousand elements.
inline std::int64_t row_grain(std::int64_t width) {
    return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(width, 1));
}

}  // namespace hetlora::ops
