// The operations of tensor/ops.hpp from ATen's own ops: every device, every floating dtype.
#include <algorithm>
#include <cmath>

#include "hetlora/tensor/ops.hpp"

namespace hetlora::aten {

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

void rotary(at::Tensor x, std::int64_t heads, std::int64_t head_size, const ops::RotaryTable& table,
            const at::Tensor& position, int direction) {
    const std::int64_t half = head_size / 2;
    const at::Tensor index = position.to(x.device(), at::kLong);
    const at::Tensor cos = table.cos.index_select(0, index).unsqueeze(1);
    const at::Tensor sin = table.sin.index_select(0, index).unsqueeze(1) * static_cast<double>(direction);
    at::Tensor view = x.narrow(1, 0, heads * head_size).unflatten(1, {heads, head_size});
    at::Tensor lo = view.narrow(2, 0, half);
    at::Tensor hi = view.narrow(2, half, half);
    const at::Tensor new_lo = lo * cos - hi * sin;
    hi.copy_(hi * cos + lo * sin);
    lo.copy_(new_lo);
}

void swiglu(const at::Tensor& gate_up, at::Tensor out) {
    const std::int64_t width = out.size(1);
    out.copy_(at::silu(gate_up.narrow(1, 0, width)) * gate_up.narrow(1, width, width));
}

void swiglu_backward(const at::Tensor& d_out, const at::Tensor& gate_up, at::Tensor dgate_up) {
    const std::int64_t width = d_out.size(1);
    const at::Tensor gate = gate_up.narrow(1, 0, width);
    const at::Tensor up = gate_up.narrow(1, width, width);
    dgate_up.narrow(1, width, width).copy_(d_out * at::silu(gate));
    dgate_up.narrow(1, 0, width).copy_(at::silu_backward(d_out * up, gate));
}

namespace {

/// [length, heads, E] view of a span, heads first and each key/value head repeated for its group: [heads, length, E].
at::Tensor heads_first(const at::Tensor& x, AttentionSpan span, std::int64_t heads, std::int64_t repeat) {
    const at::Tensor rows =
        x.narrow(0, span.row0, span.length).unflatten(1, {heads, x.size(1) / heads}).transpose(0, 1);
    return repeat == 1 ? rows : rows.repeat_interleave(repeat, 0);
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(1) / heads));
    for (const auto& span : spans) {
        const at::Tensor mask = at::ones({span.length, span.length}, q.options().dtype(at::kBool)).triu(1);
        at::Tensor scores = at::matmul(heads_first(q, span, heads, 1),
                                       heads_first(k, span, kv_heads, heads / kv_heads).transpose(1, 2)) *
                            scale;
        scores.masked_fill_(mask, -std::numeric_limits<double>::infinity());
        const at::Tensor norm = at::logsumexp(scores, {2}, /*keepdim=*/true);
        const at::Tensor o = at::matmul((scores - norm).exp(), heads_first(v, span, kv_heads, heads / kv_heads));
        out.narrow(0, span.row0, span.length).copy_(o.transpose(0, 1).flatten(1));
        if (lse.defined()) lse.narrow(0, span.row0, span.length).copy_(norm.squeeze(2).transpose(0, 1));
    }
}

void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse, const at::Tensor& d_out, ops::AttentionGradient gradient) {
    const std::int64_t repeat = heads / kv_heads;
    const std::int64_t head_size = q.size(1) / heads;
    const double scale = 1.0 / std::sqrt(static_cast<double>(head_size));
    for (const auto& span : spans) {
        const at::Tensor mask = at::ones({span.length, span.length}, q.options().dtype(at::kBool)).triu(1);
        const at::Tensor q_h = heads_first(q, span, heads, 1);
        const at::Tensor k_h = heads_first(k, span, kv_heads, repeat);
        const at::Tensor v_h = heads_first(v, span, kv_heads, repeat);
        const at::Tensor o_h = heads_first(out, span, heads, 1);
        const at::Tensor d_h = heads_first(d_out, span, heads, 1);
        const at::Tensor row_lse = lse.narrow(0, span.row0, span.length).transpose(0, 1).unsqueeze(2);
        const at::Tensor p = (at::matmul(q_h, k_h.transpose(1, 2)) * scale - row_lse).exp().masked_fill(mask, 0);
        const at::Tensor delta = (o_h * d_h).sum(2, /*keepdim=*/true);
        const at::Tensor ds = p * (at::matmul(d_h, v_h.transpose(1, 2)) - delta) * scale;
        const auto store = [&](at::Tensor target, const at::Tensor& per_head, std::int64_t group) {
            const at::Tensor summed = group == 1 ? per_head : per_head.unflatten(0, {kv_heads, group}).sum(1);
            target.narrow(0, span.row0, span.length).copy_(summed.transpose(0, 1).flatten(1));
        };
        store(gradient.q, at::matmul(ds, k_h), 1);
        store(gradient.k, at::matmul(ds.transpose(1, 2), q_h), repeat);
        store(gradient.v, at::matmul(p.transpose(1, 2), d_h), repeat);
    }
}

void cross_entropy(at::Tensor logits, const at::Tensor& target, const at::Tensor& row_scale, double* loss,
                   std::uint8_t* correct, bool want_gradient) {
    const at::Tensor index = target.unsqueeze(1);
    const at::Tensor at_target = logits.gather(1, index);
    const at::Tensor norm = at::logsumexp(logits, {1}, /*keepdim=*/true);
    const at::Tensor loss_cpu = (norm - at_target).squeeze(1).to(at::kCPU, at::kDouble).contiguous();
    std::copy_n(loss_cpu.const_data_ptr<double>(), loss_cpu.numel(), loss);
    if (correct != nullptr) {
        const at::Tensor hit = at_target.squeeze(1).ge(std::get<0>(logits.max(1))).to(at::kCPU, at::kByte).contiguous();
        std::copy_n(hit.const_data_ptr<std::uint8_t>(), hit.numel(), correct);
    }
    if (want_gradient) {
        logits.sub_(norm).exp_();
        logits.scatter_add_(1, index, at::full_like(at_target, -1.0));
        logits.mul_(row_scale.unsqueeze(1));
    }
}

}  // namespace hetlora::aten
