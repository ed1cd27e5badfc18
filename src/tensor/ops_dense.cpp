// LayerNorm and activations without a gate, spread over rows; see tensor/ops.hpp.
#include "ops_dispatch.hpp"

namespace hetlora::ops {

void layer_norm(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, double eps, at::Tensor y,
                at::Tensor rstd) {
    if (!has_kernels(x)) return aten::layer_norm(x, w, b, eps, y, rstd);
    with_scalar(y, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().layer_norm(data_of<T>(x) + begin * width, data_of<T>(w), data_of<T>(b),
                                    data_of<S>(y) + begin * width, rstd.defined() ? data_of<T>(rstd) + begin : nullptr,
                                    end - begin, width, eps);
        });
    });
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                         at::Tensor dx) {
    if (!has_kernels(x)) return aten::layer_norm_backward(dy, x, w, rstd, dx);
    with_scalar(dy, [&](auto zero) {
        using S = decltype(zero);
        using T = Compute<S>;
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().layer_norm_backward(data_of<S>(dy) + begin * width, data_of<T>(x) + begin * width,
                                             data_of<T>(w), data_of<T>(rstd) + begin, data_of<T>(dx) + begin * width,
                                             end - begin, width);
        });
    });
}

void activate(const at::Tensor& x, Activation activation, at::Tensor out) {
    if (!has_kernels(x)) return aten::activate(x, activation, out);
    with_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().activate(data_of<S>(x) + begin * width, data_of<S>(out) + begin * width, end - begin, width,
                                  activation);
        });
    });
}

void activate_backward(const at::Tensor& d_out, const at::Tensor& x, Activation activation, at::Tensor dx) {
    if (!has_kernels(x)) return aten::activate_backward(d_out, x, activation, dx);
    with_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        const std::int64_t width = x.size(1);
        at::parallel_for(0, x.size(0), row_grain(width), [&](std::int64_t begin, std::int64_t end) {
            kernels<S>().activate_backward(data_of<S>(d_out) + begin * width, data_of<S>(x) + begin * width,
                                           data_of<S>(dx) + begin * width, end - begin, width, activation);
        });
    });
}

}  // namespace hetlora::ops
