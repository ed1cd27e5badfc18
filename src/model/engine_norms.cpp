// The norms of the engine's layers, forward and backward (private to model).
#include "engine_saved.hpp"

namespace hetlora {

void RowNorm::forward(const at::Tensor& x_ND, at::Tensor y_ND, at::Tensor rstd_N) const {
    if (bias_D.defined()) {
        ops::layer_norm(x_ND, weight_D, bias_D, eps, y_ND, rstd_N);
    } else {
        ops::rms_norm(x_ND, weight_D, eps, y_ND, rstd_N);
    }
}

void RowNorm::backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& rstd_N,
                       at::Tensor dx_ND) const {
    if (bias_D.defined()) {
        ops::layer_norm_backward(dy_ND, x_ND, weight_D, rstd_N, dx_ND);
    } else {
        ops::rms_norm_backward(dy_ND, x_ND, weight_D, rstd_N, dx_ND);
    }
}

void HeadNorm::forward(at::Tensor x, at::Tensor& raw_ME, at::Tensor& rstd_M, Arena& arena, Arena& scratch) const {
    const std::int64_t E = weight_E.size(0);
    const std::int64_t M = x.numel() / E;
    raw_ME = arena.take({M, E}, weight_E.scalar_type());
    rstd_M = arena.take({M}, weight_E.scalar_type());
    raw_ME.view({x.size(0), x.size(1)}).copy_(x);
    const std::int64_t mark = scratch.mark();
    at::Tensor normed_ME = scratch.take({M, E}, x.scalar_type());
    ops::rms_norm(raw_ME, weight_E, eps, normed_ME, rstd_M);
    x.copy_(normed_ME.view({x.size(0), x.size(1)}));
    scratch.release(mark);
}

void HeadNorm::backward(at::Tensor dx, const at::Tensor& raw_ME, const at::Tensor& rstd_M, Arena& scratch) const {
    const std::int64_t mark = scratch.mark();
    at::Tensor dy_ME = scratch.take(raw_ME.sizes(), dx.scalar_type());
    at::Tensor d_raw_ME = scratch.take(raw_ME.sizes(), raw_ME.scalar_type()).zero_();
    dy_ME.view({dx.size(0), dx.size(1)}).copy_(dx);
    ops::rms_norm_backward(dy_ME, raw_ME, weight_E, rstd_M, d_raw_ME);
    dx.copy_(d_raw_ME.view({dx.size(0), dx.size(1)}));
    scratch.release(mark);
}

}  // namespace hetlora
