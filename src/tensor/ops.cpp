// Spreads the CPU kernels over rows or (sequence, head) pairs; see tensor/ops.hpp.
#include "hetlora/tensor/ops.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora::ops {
namespace {

/// Calls body(T{}) with T = float or double.
template <typename Body>
void with_scalar(const at::Tensor& tensor, Body body) {
    if (tensor.scalar_type() == at::kFloat) {
        body(float{});
    } else if (tensor.scalar_type() == at::kDouble) {
        body(double{});
    } else {
        throw bug_error("the CPU kernels have no {} version", c10::toString(tensor.scalar_type()));
    }
}

/// Rows per task so that a task has some ten thousand elements.
std::int64_t row_grain(std::int64_t width) {
    return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(width, 1));
}

}  // namespace

void rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor y, at::Tensor rstd) {
    if (!x.is_cpu()) return aten::rms_norm(x, w, eps, y, rstd);
    with_scalar(x, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().rms_norm(x.const_data_ptr<T>() + begin * width, w.const_data_ptr<T>(),
                                  y.data_ptr<T>() + begin * width,
                                  rstd.defined() ? rstd.data_ptr<T>() + begin : nullptr, end - begin, width, eps);
        });
    });
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                       at::Tensor dx) {
    if (!x.is_cpu()) return aten::rms_norm_backward(dy, x, w, rstd, dx);
    with_scalar(x, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().rms_norm_backward(
                dy.const_data_ptr<T>() + begin * width, x.const_data_ptr<T>() + begin * width, w.const_data_ptr<T>(),
                rstd.const_data_ptr<T>() + begin, dx.data_ptr<T>() + begin * width, end - begin, width);
        });
    });
}

RotaryTable make_rotary_table(std::int64_t positions, std::int64_t head_size, double theta,
                              const at::TensorOptions& options) {
    const std::int64_t half = head_size / 2;
    const bool single = options.dtype() == at::kFloat;
    at::Tensor cos = at::empty({positions, half}, at::TensorOptions().dtype(at::kDouble));
    at::Tensor sin = at::empty_like(cos);
    for (std::int64_t i = 0; i < half; ++i) {
        const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_size);
        const double inverse = 1.0 / std::pow(theta, exponent);
        // transformers forms 1 / theta^x with float32 operations
        const float power = std::pow(static_cast<float>(theta), static_cast<float>(exponent));
        const float inverse_single = 1.0F / power;
        for (std::int64_t p = 0; p < positions; ++p) {
            const double angle =
                single ? static_cast<double>(static_cast<float>(p) * inverse_single) : static_cast<double>(p) * inverse;
            cos.data_ptr<double>()[p * half + i] = std::cos(angle);
            sin.data_ptr<double>()[p * half + i] = std::sin(angle);
        }
    }
    return {.cos = cos.to(options), .sin = sin.to(options)};
}

void rotary(at::Tensor x, std::int64_t heads, std::int64_t head_size, const RotaryTable& table,
            const at::Tensor& position, int direction) {
    if (!x.is_cpu()) return aten::rotary(x, heads, head_size, table, position, direction);
    with_scalar(x, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t stride = x.stride(0);
        at::parallel_for(0, x.size(0), row_grain(heads * head_size), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().rotary(x.data_ptr<T>() + begin * stride, stride, table.cos.const_data_ptr<T>(),
                                table.sin.const_data_ptr<T>(), position.const_data_ptr<std::int32_t>() + begin,
                                end - begin, heads, head_size, direction);
        });
    });
}

void swiglu(const at::Tensor& gate_up, at::Tensor out) {
    if (!gate_up.is_cpu()) return aten::swiglu(gate_up, out);
    with_scalar(gate_up, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t width = out.size(1);
        at::parallel_for(0, out.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().swiglu(gate_up.const_data_ptr<T>() + begin * 2 * width, out.data_ptr<T>() + begin * width,
                                end - begin, width);
        });
    });
}

void swiglu_backward(const at::Tensor& d_out, const at::Tensor& gate_up, at::Tensor dgate_up) {
    if (!gate_up.is_cpu()) return aten::swiglu_backward(d_out, gate_up, dgate_up);
    with_scalar(gate_up, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t width = d_out.size(1);
        at::parallel_for(0, d_out.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().swiglu_backward(d_out.const_data_ptr<T>() + begin * width,
                                         gate_up.const_data_ptr<T>() + begin * 2 * width,
                                         dgate_up.data_ptr<T>() + begin * 2 * width, end - begin, width);
        });
    });
}

namespace {

AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, std::int64_t heads, std::int64_t kv_heads,
                               const at::Tensor& out) {
    const std::int64_t head_size = q.size(1) / heads;
    return {.heads = heads,
            .kv_heads = kv_heads,
            .head_size = head_size,
            .q_stride = q.stride(0),
            .kv_stride = k.stride(0),
            .out_stride = out.stride(0),
            .scale = 1.0 / std::sqrt(static_cast<double>(head_size))};
}

std::int64_t longest(const std::vector<AttentionSpan>& spans) {
    std::int64_t length = 1;
    for (const auto& span : spans) length = std::max(length, span.length);
    return length;
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse) {
    if (!q.is_cpu()) return aten::attention(q, k, v, heads, kv_heads, spans, out, lse);
    const AttentionShape shape = attention_shape(q, k, heads, kv_heads, out);
    const std::int64_t scratch_size = attention_scratch_size(longest(spans), shape.head_size);
    with_scalar(q, [&](auto zero) {
        using T = decltype(zero);
        at::parallel_for(0, std::ssize(spans) * heads, 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t task = begin; task < end; ++task) {
                kernels<T>().attention(q.const_data_ptr<T>(), k.const_data_ptr<T>(), v.const_data_ptr<T>(),
                                       out.data_ptr<T>(), lse.defined() ? lse.data_ptr<T>() : nullptr, shape,
                                       spans[static_cast<std::size_t>(task / heads)], task % heads, scratch.data());
            }
        });
    });
}

void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse, const at::Tensor& d_out, AttentionGradient gradient) {
    if (!q.is_cpu()) return aten::attention_backward(q, k, v, heads, kv_heads, spans, out, lse, d_out, gradient);
    const AttentionShape shape = attention_shape(q, k, heads, kv_heads, out);
    if (gradient.q.stride(0) != shape.q_stride || gradient.k.stride(0) != shape.kv_stride ||
        gradient.v.stride(0) != shape.kv_stride || d_out.stride(0) != shape.out_stride) {
        throw bug_error("attention_backward: the gradients' row strides differ from those of q, k, v and out");
    }
    const std::int64_t scratch_size = attention_scratch_size(longest(spans), shape.head_size);
    with_scalar(q, [&](auto zero) {
        using T = decltype(zero);
        at::parallel_for(0, std::ssize(spans) * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t task = begin; task < end; ++task) {
                kernels<T>().attention_backward(
                    q.const_data_ptr<T>(), k.const_data_ptr<T>(), v.const_data_ptr<T>(), out.const_data_ptr<T>(),
                    lse.const_data_ptr<T>(), d_out.const_data_ptr<T>(), gradient.q.data_ptr<T>(),
                    gradient.k.data_ptr<T>(), gradient.v.data_ptr<T>(), shape,
                    spans[static_cast<std::size_t>(task / kv_heads)], task % kv_heads, scratch.data());
            }
        });
    });
}

void cross_entropy(at::Tensor logits, const at::Tensor& target, const at::Tensor& row_scale, double* loss,
                   std::uint8_t* correct, bool want_gradient) {
    if (!logits.is_cpu()) return aten::cross_entropy(logits, target, row_scale, loss, correct, want_gradient);
    with_scalar(logits, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t vocabulary = logits.size(1);
        at::parallel_for(0, logits.size(0), row_grain(vocabulary), [&](std::int64_t begin, std::int64_t end) {
            kernels<T>().cross_entropy(
                logits.data_ptr<T>() + begin * vocabulary, target.const_data_ptr<std::int64_t>() + begin,
                want_gradient ? row_scale.const_data_ptr<T>() + begin : nullptr, loss + begin,
                correct == nullptr ? nullptr : correct + begin, end - begin, vocabulary, want_gradient);
        });
    });
}

}  // namespace hetlora::ops
