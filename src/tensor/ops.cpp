// Spreads the CPU kernels over rows or (sequence, head) pairs; see tensor/ops.hpp.
#include "hetlora/tensor/ops.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <variant>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/matrix_unit.hpp"
#include "ops_dispatch.hpp"

namespace hetlora::ops {
namespace {

bool aten_forced = false;

}  // namespace

void force_aten(bool forced) { aten_forced = forced; }

bool has_kernels(const at::Tensor& x) { return x.is_cpu() && !aten_forced; }

void rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor y, at::Tensor rstd) {
    if (!has_kernels(x)) return aten::rms_norm(x, w, eps, y, rstd);
    with_scalar(y, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().rms_norm(data_of<T>(x) + begin * width, data_of<T>(w), data_of<S>(y) + begin * width,
                                  rstd.defined() ? data_of<T>(rstd) + begin : nullptr, end - begin, width, eps);
        });
    });
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                       at::Tensor dx) {
    if (!has_kernels(x)) return aten::rms_norm_backward(dy, x, w, rstd, dx);
    with_scalar(dy, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().rms_norm_backward(data_of<S>(dy) + begin * width, data_of<T>(x) + begin * width, data_of<T>(w),
                                           data_of<T>(rstd) + begin, data_of<T>(dx) + begin * width, end - begin,
                                           width);
        });
    });
}

void add(const at::Tensor& x, const at::Tensor& y, at::Tensor out) {
    if (!has_kernels(x)) {
        at::add_out(out, x, y);
        return;
    }
    with_scalar(y, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        at::parallel_for(0, x.numel(), 16384, [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().add(data_of<T>(x) + begin, data_of<S>(y) + begin, data_of<T>(out) + begin, end - begin);
        });
    });
}

RotaryTable make_rotary_table(std::int64_t positions, std::int64_t head_size, double theta,
                              const at::TensorOptions& options) {
    const bool single = options.dtype() == at::kFloat;
    std::vector<double> inverse;
    for (std::int64_t i = 0; i < head_size / 2; ++i) {
        const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_size);
        // transformers forms 1 / theta^x with float32 operations
        const float power = std::pow(static_cast<float>(theta), static_cast<float>(exponent));
        inverse.push_back(single ? static_cast<double>(1.0F / power) : 1.0 / std::pow(theta, exponent));
    }
    return make_rotary_table(positions, inverse, options);
}

RotaryTable make_rotary_table(std::int64_t positions, const std::vector<double>& inverse_frequencies,
                              const at::TensorOptions& options) {
    const std::int64_t half = std::ssize(inverse_frequencies);
    const bool single = options.dtype() == at::kFloat;
    at::Tensor cos = at::empty({positions, half}, at::TensorOptions().dtype(at::kDouble));
    at::Tensor sin = at::empty_like(cos);
    for (std::int64_t i = 0; i < half; ++i) {
        const double inverse = inverse_frequencies[static_cast<std::size_t>(i)];
        for (std::int64_t p = 0; p < positions; ++p) {
            const double angle = single ? static_cast<double>(static_cast<float>(p) * static_cast<float>(inverse))
                                        : static_cast<double>(p) * inverse;
            cos.data_ptr<double>()[p * half + i] = std::cos(angle);
            sin.data_ptr<double>()[p * half + i] = std::sin(angle);
        }
    }
    return {.cos = cos.to(options), .sin = sin.to(options)};
}

void rotary(at::Tensor x, std::int64_t heads, std::int64_t head_size, const RotaryTable& table,
            const at::Tensor& position, int direction) {
    if (!has_kernels(x)) return aten::rotary(x, heads, head_size, table, position, direction);
    with_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        const std::int64_t stride = x.stride(0);
        at::parallel_for(0, x.size(0), row_grain(heads * head_size), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().rotary(data_of<S>(x) + begin * stride, stride, data_of<T>(table.cos), data_of<T>(table.sin),
                                position.const_data_ptr<std::int32_t>() + begin, end - begin, heads, head_size,
                                direction);
        });
    });
}

void swiglu(const at::Tensor& gate_up, at::Tensor out) {
    if (!has_kernels(gate_up)) return aten::swiglu(gate_up, out);
    with_scalar(gate_up, [&](auto zero) {
        using S = decltype(zero);
        const std::int64_t width = out.size(1);
        at::parallel_for(0, out.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().swiglu(data_of<S>(gate_up) + begin * 2 * width, data_of<S>(out) + begin * width, end - begin,
                                width);
        });
    });
}

void swiglu_backward(const at::Tensor& d_out, const at::Tensor& gate_up, at::Tensor dgate_up) {
    if (!has_kernels(gate_up)) return aten::swiglu_backward(d_out, gate_up, dgate_up);
    with_scalar(gate_up, [&](auto zero) {
        using S = decltype(zero);
        const std::int64_t width = d_out.size(1);
        at::parallel_for(0, d_out.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().swiglu_backward(data_of<S>(d_out) + begin * width, data_of<S>(gate_up) + begin * 2 * width,
                                         data_of<S>(dgate_up) + begin * 2 * width, end - begin, width);
        });
    });
}

namespace {

AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k, std::int64_t heads, std::int64_t kv_heads,
                               const at::Tensor& out, bool causal) {
    const std::int64_t head_size = q.size(1) / heads;
    return {.heads = heads,
            .kv_heads = kv_heads,
            .head_size = head_size,
            .q_stride = q.stride(0),
            .kv_stride = k.stride(0),
            .out_stride = out.stride(0),
            .scale = 1.0 / std::sqrt(static_cast<double>(head_size)),
            .causal = causal};
}

std::int64_t longest(const std::vector<AttentionSpan>& spans) {
    std::int64_t length = 1;
    for (const auto& span : spans) length = std::max(length, span.length);
    return length;
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse, const at::Tensor& place,
               bool causal) {
    if (!has_kernels(q)) return aten::attention(q, k, v, heads, kv_heads, spans, out, lse, place, causal);
    const AttentionShape shape = attention_shape(q, k, heads, kv_heads, out, causal);
    const std::int64_t scratch_size = attention_scratch_size(longest(spans), shape.head_size);
    with_scalar(q, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        at::parallel_for(0, std::ssize(spans) * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            [[maybe_unused]] const std::conditional_t<std::is_same_v<S, Bfloat16>, MatrixUnitUse, std::monostate> use;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t task = begin; task < end; ++task) {
                kernels<S>().attention(data_of<S>(q), data_of<S>(k), data_of<S>(v), data_of<S>(out),
                                       lse.defined() ? data_of<T>(lse) : nullptr, shape,
                                       spans[static_cast<std::size_t>(task / kv_heads)], task % kv_heads,
                                       scratch.data());
            }
        });
    });
}

void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse, const at::Tensor& d_out, AttentionGradient gradient,
                        const at::Tensor& place, bool causal) {
    if (!has_kernels(q))
        return aten::attention_backward(q, k, v, heads, kv_heads, spans, out, lse, d_out, gradient, place, causal);
    const AttentionShape shape = attention_shape(q, k, heads, kv_heads, out, causal);
    if (gradient.q.stride(0) != shape.q_stride || gradient.k.stride(0) != shape.kv_stride ||
        gradient.v.stride(0) != shape.kv_stride || d_out.stride(0) != shape.out_stride) {
        throw bug_error("attention_backward: the gradients' row strides differ from those of q, k, v and out");
    }
    const std::int64_t scratch_size = attention_scratch_size(longest(spans), shape.head_size);
    with_scalar(q, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        at::parallel_for(0, std::ssize(spans) * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            [[maybe_unused]] const std::conditional_t<std::is_same_v<S, Bfloat16>, MatrixUnitUse, std::monostate> use;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t task = begin; task < end; ++task) {
                kernels<S>().attention_backward(
                    data_of<S>(q), data_of<S>(k), data_of<S>(v), data_of<T>(lse), data_of<S>(d_out),
                    data_of<S>(gradient.q), data_of<S>(gradient.k), data_of<S>(gradient.v), shape,
                    spans[static_cast<std::size_t>(task / kv_heads)], task % kv_heads, scratch.data());
            }
        });
    });
}

namespace {

LoraShape lora_shape(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z_CRW, double scale) {
    return {.rows = z_CRW.size(1),
            .inputs = x.size(1),
            .outputs = y.size(1),
            .width = z_CRW.size(2),
            .x_stride = x.stride(0),
            .y_stride = y.stride(0),
            .dx_stride = 0,
            .scale = scale};
}

}  // namespace

void lora_forward(const at::Tensor& x, const at::Tensor& a, const at::Tensor& bt, double scale, at::Tensor y,
                  at::Tensor z) {
    // A client's rows may be shared out: each part is a call of its own.
    LoraShape shape = lora_shape(x, y, z, scale);
    constexpr std::int64_t block = 64;
    const std::int64_t rows = shape.rows;
    const std::int64_t blocks = (rows + block - 1) / block;
    shape.rows = std::min(rows, block);
    const std::int64_t scratch_size = lora_scratch_size(shape);
    const bool residual = y.scalar_type() != x.scalar_type();
    with_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        at::parallel_for(0, z.size(0) * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t task = begin; task < end; ++task) {
                const std::int64_t client = task / blocks;
                const std::int64_t first = task % blocks * block;
                const std::int64_t row = client * rows + first;
                LoraShape part = shape;
                part.rows = std::min(block, rows - first);
                const auto call = [&](auto kernel, auto* y_row) {
                    kernel(data_of<S>(x) + row * part.x_stride, data_of<T>(a) + client * a.stride(0),
                           data_of<T>(bt) + client * bt.stride(0), data_of<T>(z) + row * part.width, y_row, part,
                           scratch.data());
                };
                if (residual) {
                    call(kernels<S>().lora_forward_residual, data_of<T>(y) + row * part.y_stride);
                } else {
                    call(kernels<S>().lora_forward, data_of<S>(y) + row * part.y_stride);
                }
            }
        });
    });
}

void lora_backward(const at::Tensor& x, const at::Tensor& dy, const at::Tensor& z, const at::Tensor& a,
                   const at::Tensor& bt, double scale, at::Tensor da, at::Tensor dbt, at::Tensor dx) {
    LoraShape shape = lora_shape(x, dy, z, scale);
    shape.dx_stride = dx.defined() ? dx.stride(0) : 0;
    const std::int64_t scratch_size = lora_scratch_size(shape);
    const bool residual = dy.scalar_type() != x.scalar_type();
    with_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        at::parallel_for(0, z.size(0), 1, [&](std::int64_t begin, std::int64_t end) {
            thread_local std::vector<T> scratch;
            scratch.resize(static_cast<std::size_t>(scratch_size));
            for (std::int64_t client = begin; client < end; ++client) {
                const std::int64_t row = client * shape.rows;
                const auto call = [&](auto kernel, const auto* dy_row) {
                    kernel(data_of<S>(x) + row * shape.x_stride, dy_row, data_of<T>(z) + row * shape.width,
                           data_of<T>(a) + client * a.stride(0), data_of<T>(bt) + client * bt.stride(0),
                           data_of<T>(da) + client * da.stride(0), data_of<T>(dbt) + client * dbt.stride(0),
                           dx.defined() ? data_of<S>(dx) + row * shape.dx_stride : nullptr, shape, scratch.data());
                };
                if (residual) {
                    call(kernels<S>().lora_backward_residual, data_of<T>(dy) + row * shape.y_stride);
                } else {
                    call(kernels<S>().lora_backward, data_of<S>(dy) + row * shape.y_stride);
                }
            }
        });
    });
}

void cross_entropy(at::Tensor logits, const at::Tensor& target, const at::Tensor& row_scale, at::Tensor loss,
                   at::Tensor correct, bool want_gradient) {
    if (!has_kernels(logits)) return aten::cross_entropy(logits, target, row_scale, loss, correct, want_gradient);
    with_scalar(logits, [&](auto zero) {
        using S = decltype(zero);
        const std::int64_t vocabulary = logits.size(1);
        at::parallel_for(0, logits.size(0), row_grain(vocabulary), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().cross_entropy(
                data_of<S>(logits) + begin * vocabulary, target.const_data_ptr<std::int64_t>() + begin,
                want_gradient ? data_of<Compute<S>>(row_scale) + begin : nullptr, loss.data_ptr<double>() + begin,
                correct.defined() ? correct.data_ptr<std::uint8_t>() + begin : nullptr, end - begin, vocabulary,
                want_gradient);
        });
    });
}

}  // namespace hetlora::ops
