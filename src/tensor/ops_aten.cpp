// The operations of tensor/ops.hpp from ATen's own ops, attention apart (ops_aten_attention.cpp): every device, every
// floating dtype.
#include "hetlora/tensor/ops.hpp"

namespace hetlora::aten {
namespace {

/// What values stored in the tensor's dtype are computed in.
at::ScalarType wide_dtype(const at::Tensor& x) {
    return x.scalar_type() == at::kBFloat16 ? at::kFloat : x.scalar_type();
}

}  // namespace

void rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor y, at::Tensor rstd) {
    const at::Tensor r = x.square().mean(1, /*keepdim=*/true).add(eps).rsqrt();
    y.copy_(x * r * w);
    if (rstd.defined()) rstd.copy_(r.squeeze(1));
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                       at::Tensor dx) {
    const at::Tensor r = rstd.unsqueeze(1);
    const at::Tensor scaled = dy * w;
    const at::Tensor dot = (scaled * x).mean(1, /*keepdim=*/true);
    dx.add_(r * scaled - r.pow(3) * dot * x);
}

void layer_norm(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, double eps, at::Tensor y,
                at::Tensor rstd) {
    const at::Tensor centred = x - x.mean(1, /*keepdim=*/true);
    const at::Tensor r = centred.square().mean(1, /*keepdim=*/true).add(eps).rsqrt();
    y.copy_(centred * r * w + b);
    if (rstd.defined()) rstd.copy_(r.squeeze(1));
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd,
                         at::Tensor dx) {
    const at::Tensor r = rstd.unsqueeze(1);
    const at::Tensor normed = (x - x.mean(1, /*keepdim=*/true)) * r;
    const at::Tensor scaled = dy * w;
    const at::Tensor dot = (scaled * normed).mean(1, /*keepdim=*/true);
    dx.add_(r * (scaled - scaled.mean(1, /*keepdim=*/true) - normed * dot));
}

void activate(const at::Tensor& x, Activation activation, at::Tensor out) {
    const at::Tensor wide = x.to(wide_dtype(x));
    if (activation == Activation::relu) {
        out.copy_(at::relu(wide));
    } else {
        out.copy_(at::gelu(wide, activation == Activation::gelu ? "none" : "tanh"));
    }
}

void activate_backward(const at::Tensor& d_out, const at::Tensor& x, Activation activation, at::Tensor dx) {
    const at::Tensor wide = x.to(wide_dtype(x));
    const at::Tensor d = d_out.to(wide.scalar_type());
    if (activation == Activation::relu) {
        dx.copy_(at::threshold_backward(d, wide, 0));
    } else {
        dx.copy_(at::gelu_backward(d, wide, activation == Activation::gelu ? "none" : "tanh"));
    }
}

void rotary(at::Tensor x, std::int64_t heads, std::int64_t head_size, const ops::RotaryTable& table,
            const at::Tensor& position, int direction) {
    const std::int64_t half = head_size / 2;
    const at::Tensor cos = table.cos.index_select(0, position).unsqueeze(1);
    const at::Tensor sin = table.sin.index_select(0, position).unsqueeze(1) * static_cast<double>(direction);
    at::Tensor view = x.narrow(1, 0, heads * head_size).unflatten(1, {heads, head_size});
    at::Tensor lo = view.narrow(2, 0, half);
    at::Tensor hi = view.narrow(2, half, half);
    const at::Tensor new_lo = lo * cos - hi * sin;
    hi.copy_(hi * cos + lo * sin);
    lo.copy_(new_lo);
}

void swiglu(const at::Tensor& gate_up, at::Tensor out) {
    const std::int64_t width = out.size(1);
    const at::Tensor wide = gate_up.to(wide_dtype(gate_up));
    out.copy_(at::silu(wide.narrow(1, 0, width)) * wide.narrow(1, width, width));
}

void swiglu_backward(const at::Tensor& d_out, const at::Tensor& gate_up, at::Tensor dgate_up) {
    const std::int64_t width = d_out.size(1);
    const at::Tensor wide = gate_up.to(wide_dtype(gate_up));
    const at::Tensor d = d_out.to(wide.scalar_type());
    const at::Tensor gate = wide.narrow(1, 0, width);
    const at::Tensor up = wide.narrow(1, width, width);
    dgate_up.narrow(1, width, width).copy_(d * at::silu(gate));
    dgate_up.narrow(1, 0, width).copy_(at::silu_backward(d * up, gate));
}

void cross_entropy(at::Tensor logits, const at::Tensor& target, const at::Tensor& row_scale, at::Tensor loss,
                   at::Tensor correct, bool want_gradient) {
    const at::Tensor index = target.unsqueeze(1);
    const at::Tensor wide = logits.to(wide_dtype(logits));
    at::Tensor log_p = at::log_softmax(wide, 1);
    loss.copy_(log_p.gather(1, index).squeeze(1).neg_());
    if (correct.defined()) correct.copy_(wide.gather(1, index).squeeze(1).ge(wide.amax({1})));
    if (!want_gradient) return;
    log_p.exp_();
    log_p.scatter_add_(1, index, at::full(index.sizes(), -1.0, log_p.options()));
    logits.copy_(log_p.mul_(row_scale.unsqueeze(1)));
}

}  // namespace hetlora::aten
