// One layer of the engine, forward and backward (see hetlora/model/engine.hpp for the equations).
#include <algorithm>
#include <cmath>

#include "engine_saved.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {
namespace {

/// FLOPs of attention's forward: two products over each sequence's pairs, of causal attention over the lower triangle.
double attention_flops(const std::vector<AttentionSpan>& spans, std::int64_t query_width, bool causal) {
    double pairs = 0.0;
    for (const auto& span : spans) {
        const double length = static_cast<double>(span.length);
        pairs += causal ? 0.5 * length * (length + 1.0) : length * length;
    }
    return 4.0 * pairs * static_cast<double>(query_width);
}

/// Attention of the batch's rows over the cache of layer l, which takes up their keys and values first.
void cached_attention(KeyValueCache& cache, std::size_t l, const at::Tensor& q_NQ, const at::Tensor& k_NK,
                      const at::Tensor& v_NK, const ModelConfig& config, const std::vector<AttentionSpan>& spans,
                      at::Tensor out_NQ) {
    const std::int64_t group = config.heads / config.kv_heads;
    const double scale = 1.0 / std::sqrt(static_cast<double>(config.head_size));
    for (std::size_t s = 0; s < spans.size(); ++s) {
        const auto [row0, rows] = spans[s];
        const std::int64_t seen = cache.length[s];
        at::Tensor keys_MK = cache.k_SMK[l].select(0, static_cast<std::int64_t>(s));
        at::Tensor values_MK = cache.v_SMK[l].select(0, static_cast<std::int64_t>(s));
        keys_MK.narrow(0, seen, rows).copy_(k_NK.narrow(0, row0, rows));
        values_MK.narrow(0, seen, rows).copy_(v_NK.narrow(0, row0, rows));
        if (seen == 0) {
            ops::attention(q_NQ, k_NK, v_NK, config.heads, config.kv_heads, {spans[s]}, out_NQ, {});
            continue;
        }
        if (rows != 1) throw bug_error("cached_attention: {} rows continue a sequence, only 1 may", rows);
        const std::int64_t total = seen + 1;
        const auto per_head = [&](const at::Tensor& x_MK) {
            return x_MK.narrow(0, 0, total).unflatten(1, {config.kv_heads, config.head_size}).transpose(0, 1);
        };
        const at::Tensor q = q_NQ.select(0, row0).view({config.kv_heads, group, config.head_size});
        const at::Tensor p = at::softmax(at::matmul(q, per_head(keys_MK).transpose(1, 2)) * scale, -1);
        out_NQ.select(0, row0).copy_(at::matmul(p, per_head(values_MK)).flatten());
    }
}

}  // namespace

at::Tensor Engine::activated(const at::Tensor& gate_up) {
    const PartTimer timer(StepPart::swiglu);
    at::Tensor product_NI = scratch_.take({gate_up.size(0), weights_.config.intermediate_size});
    if (weights_.config.family->gated) {
        ops::swiglu(gate_up, product_NI);
    } else {
        ops::activate(gate_up, weights_.config.activation, product_NI);
    }
    return product_NI;
}

at::Tensor Engine::layer_forward(std::size_t l, const TokenBatch& batch, const LoraPass& pass, const at::Tensor& x_ND,
                                 Saved* saved) {
    const ModelConfig& config = weights_.config;
    const LayerWeights& layer = weights_.layer[l];
    const FrozenLayer& frozen = frozen_[l];
    const std::int64_t N = x_ND.size(0);
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t I = config.intermediate_size;
    const std::int64_t up_first = config.up_width() - I;  // behind the gate, where there is one
    const bool causal = !config.family->encoder;
    const RowNorm input_norm{layer.input_norm_D, layer.input_norm_bias_D, config.rms_eps};
    const RowNorm mlp_norm{layer.mlp_norm_D, layer.mlp_norm_bias_D, config.rms_eps};
    const std::int64_t scratch_mark = scratch_.mark();
    std::vector<std::vector<at::Tensor>> z(layer_matrix_count);
    const auto adapt = [&](std::initializer_list<int> targets, const at::Tensor& input,
                           std::initializer_list<at::Tensor> outputs) {
        if (pass.runs.empty() || !adapted(l, targets)) return;
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const auto target = static_cast<std::size_t>(targets.begin()[i]);
            const int matrix = placement_[l][target];
            if (matrix < 0) continue;
            z[target] =
                lora_forward(pass, static_cast<std::size_t>(matrix), input, outputs.begin()[i], arena_, scratch_);
        }
    };

    at::Tensor rstd_N = arena_.take({N}, residual_dtype_);
    at::Tensor normed_ND = scratch_.take(x_ND.sizes());
    at::Tensor wide_ND = causal ? at::Tensor() : scratch_.take(x_ND.sizes(), residual_dtype_);
    // What the branch reads (in normed_ND), and what its result is added to: the stream, or an encoder's normed stream.
    const auto enter_branch = [&](const RowNorm& norm, const at::Tensor& stream_ND, const at::Tensor& rstd) {
        const PartTimer timer(StepPart::norm_rotary);
        norm.forward(stream_ND, causal ? normed_ND : wide_ND, rstd);
        if (causal) return stream_ND;
        normed_ND.copy_(wide_ND);
        return wide_ND;
    };
    const at::Tensor attention_residual_ND = enter_branch(input_norm, x_ND, rstd_N);
    at::Tensor qkv_NX;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.qkv.flops(N));
        qkv_NX = frozen.qkv.forward(normed_ND, arena_);
    }
    if (layer.qkv_bias_X.defined()) qkv_NX.add_(layer.qkv_bias_X);
    const at::Tensor q = qkv_NX.narrow(1, 0, Q);
    const at::Tensor k = qkv_NX.narrow(1, Q, KV);
    const at::Tensor v = qkv_NX.narrow(1, Q + KV, KV);
    adapt({q_proj, k_proj, v_proj, qkv_proj}, normed_ND, {q, k, v, qkv_NX});
    HeadNorms head_norms;
    {
        const PartTimer timer(StepPart::norm_rotary);
        if (layer.q_norm_E.defined()) {
            HeadNorm{layer.q_norm_E, config.rms_eps}.forward(q, head_norms.q_ME, head_norms.q_rstd_M, arena_, scratch_);
            HeadNorm{layer.k_norm_E, config.rms_eps}.forward(k, head_norms.k_ME, head_norms.k_rstd_M, arena_, scratch_);
        }
        if (weights_.rotary.cos.defined()) {
            ops::rotary(q, config.heads, config.head_size, weights_.rotary, batch.position_N, +1);
            ops::rotary(k, config.kv_heads, config.head_size, weights_.rotary, batch.position_N, +1);
        }
    }
    at::Tensor attended_NQ = arena_.take({N, Q});
    at::Tensor lse_NH = arena_.take({N, config.heads}, residual_dtype_);
    if (batch.cache == nullptr) {
        const PartTimer timer(StepPart::attention, attention_flops(batch.spans, Q, causal));
        ops::attention(q, k, v, config.heads, config.kv_heads, batch.spans, attended_NQ, lse_NH, batch.place_N, causal);
    } else {
        cached_attention(*batch.cache, l, q, k, v, config, batch.spans, attended_NQ);
    }
    at::Tensor middle_ND;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.o.flops(N));
        middle_ND = frozen.o.forward_add(attended_NQ, attention_residual_ND, arena_);
    }
    if (layer.o_bias_D.defined()) middle_ND.add_(layer.o_bias_D);
    adapt({o_proj}, attended_NQ, {middle_ND});

    at::Tensor middle_rstd_N = arena_.take({N}, residual_dtype_);
    const at::Tensor mlp_residual_ND = enter_branch(mlp_norm, middle_ND, middle_rstd_N);
    at::Tensor gate_up_N2I;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.gate_up.flops(N));
        gate_up_N2I = frozen.gate_up.forward(normed_ND, arena_);
    }
    if (layer.up_bias_I.defined()) gate_up_N2I.add_(layer.up_bias_I);
    adapt({gate_proj, up_proj}, normed_ND, {gate_up_N2I.narrow(1, 0, I), gate_up_N2I.narrow(1, up_first, I)});
    const at::Tensor product_NI = activated(gate_up_N2I);
    at::Tensor out_ND;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.down.flops(N));
        out_ND = frozen.down.forward_add(product_NI, mlp_residual_ND, arena_);
    }
    if (layer.down_bias_D.defined()) out_ND.add_(layer.down_bias_D);
    adapt({down_proj}, product_NI, {out_ND});
    scratch_.release(scratch_mark);

    if (saved != nullptr) {
        *saved = {.x_ND = x_ND,
                  .rstd_N = rstd_N,
                  .qkv_NX = qkv_NX,
                  .head_norms = std::move(head_norms),
                  .attended_NQ = attended_NQ,
                  .lse_NH = lse_NH,
                  .middle_ND = middle_ND,
                  .middle_rstd_N = middle_rstd_N,
                  .gate_up_N2I = gate_up_N2I,
                  .z = std::move(z)};
    }
    return out_ND;
}

void Engine::layer_backward(std::size_t l, const TokenBatch& batch, const LoraPass& pass, const Saved& saved,
                            at::Tensor dx_ND) {
    const ModelConfig& config = weights_.config;
    const LayerWeights& layer = weights_.layer[l];
    const FrozenLayer& frozen = frozen_[l];
    const std::int64_t N = dx_ND.size(0);
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t I = config.intermediate_size;
    const std::int64_t up_first = config.up_width() - I;  // behind the gate, where there is one
    const bool causal = !config.family->encoder;
    const RowNorm input_norm{layer.input_norm_D, layer.input_norm_bias_D, config.rms_eps};
    const RowNorm mlp_norm{layer.mlp_norm_D, layer.mlp_norm_bias_D, config.rms_eps};
    const std::int64_t scratch_mark = scratch_.mark();
    const auto through = [&](const FrozenLinear& linear, const at::Tensor& dy) {
        const PartTimer timer(StepPart::frozen_gemm, linear.flops(N));
        return linear.backward(dy, scratch_);
    };
    /// Gradients of the targets that read `input`, and their share of its gradient (where that is defined).
    const auto adapt = [&](std::initializer_list<int> targets, std::initializer_list<at::Tensor> d_outputs,
                           const at::Tensor& input, const at::Tensor& d_input) {
        const std::int64_t mark = scratch_.mark();
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const auto target = static_cast<std::size_t>(targets.begin()[i]);
            const int matrix = placement_[l][target];
            if (matrix < 0) continue;
            lora_backward(pass, static_cast<std::size_t>(matrix), d_outputs.begin()[i], input, saved.z[target], d_input,
                          scratch_);
        }
        scratch_.release(mark);
    };
    const auto normed = [&](const RowNorm& norm, const at::Tensor& x) {
        const PartTimer timer(StepPart::norm_rotary);
        at::Tensor normed_ND = scratch_.take(x.sizes());
        norm.forward(x, normed_ND, {});
        return normed_ND;
    };
    /// dx, the gradient of a branch's sum, becomes that of the stream before the branch; d_normed is the branch's
    /// share.
    const auto norm_backward = [&](const RowNorm& norm, const at::Tensor& d_normed, const at::Tensor& x,
                                   const at::Tensor& rstd) {
        const PartTimer timer(StepPart::norm_rotary);
        if (causal) return norm.backward(d_normed, x, rstd, dx_ND);
        at::Tensor d_both_ND = scratch_.take(dx_ND.sizes(), residual_dtype_);  // branch and residual read the normed x
        ops::add(dx_ND, d_normed, d_both_ND);
        dx_ND.zero_();
        norm.backward(d_both_ND, x, rstd, dx_ND);
    };

    // Feed-forward: out = middle + down(silu(gate) * up), or down(activation(up)); an encoder's middle is the normed
    // one
    {
        const at::Tensor dx_narrow = as(dx_ND, activation_dtype_);
        const at::Tensor d_product_NI = through(frozen.down, dx_narrow);
        if (adapted(l, {down_proj})) {
            adapt({down_proj}, {dx_ND}, activated(saved.gate_up_N2I), d_product_NI);
        }
        at::Tensor d_gate_up_N2I = scratch_.take({N, config.up_width()});
        {
            const PartTimer timer(StepPart::swiglu);
            if (config.family->gated) {
                ops::swiglu_backward(d_product_NI, saved.gate_up_N2I, d_gate_up_N2I);
            } else {
                ops::activate_backward(d_product_NI, saved.gate_up_N2I, config.activation, d_gate_up_N2I);
            }
        }
        const at::Tensor d_normed_ND = through(frozen.gate_up, d_gate_up_N2I);
        if (adapted(l, {gate_proj, up_proj})) {
            adapt({gate_proj, up_proj}, {d_gate_up_N2I.narrow(1, 0, I), d_gate_up_N2I.narrow(1, up_first, I)},
                  normed(mlp_norm, saved.middle_ND), d_normed_ND);
        }
        norm_backward(mlp_norm, d_normed_ND, saved.middle_ND, saved.middle_rstd_N);
    }
    scratch_.release(scratch_mark);

    // Attention: middle = x + o(attention(q, k, v))
    const at::Tensor dx_narrow = as(dx_ND, activation_dtype_);
    const at::Tensor d_attended_NQ = through(frozen.o, dx_narrow);
    if (adapted(l, {o_proj})) adapt({o_proj}, {dx_ND}, saved.attended_NQ, d_attended_NQ);
    at::Tensor d_qkv_NX = scratch_.take({N, Q + 2 * KV});
    const auto part = [&](const at::Tensor& x, int which) {
        return which == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (which - 1) * KV, KV);
    };
    {
        const PartTimer timer(StepPart::attention, 2.5 * attention_flops(batch.spans, Q, causal));
        ops::attention_backward(part(saved.qkv_NX, 0), part(saved.qkv_NX, 1), part(saved.qkv_NX, 2), config.heads,
                                config.kv_heads, batch.spans, saved.attended_NQ, saved.lse_NH, d_attended_NQ,
                                {.q = part(d_qkv_NX, 0), .k = part(d_qkv_NX, 1), .v = part(d_qkv_NX, 2)}, batch.place_N,
                                causal);
    }
    {
        const PartTimer timer(StepPart::norm_rotary);
        if (weights_.rotary.cos.defined()) {
            ops::rotary(part(d_qkv_NX, 0), config.heads, config.head_size, weights_.rotary, batch.position_N, -1);
            ops::rotary(part(d_qkv_NX, 1), config.kv_heads, config.head_size, weights_.rotary, batch.position_N, -1);
        }
        if (layer.q_norm_E.defined()) {
            const HeadNorms& before = saved.head_norms;
            HeadNorm{layer.q_norm_E, config.rms_eps}.backward(part(d_qkv_NX, 0), before.q_ME, before.q_rstd_M,
                                                              scratch_);
            HeadNorm{layer.k_norm_E, config.rms_eps}.backward(part(d_qkv_NX, 1), before.k_ME, before.k_rstd_M,
                                                              scratch_);
        }
    }
    const bool go_on = l > first_adapted_;  // below the first adapted layer nobody asks for a gradient
    const at::Tensor d_normed_ND = go_on ? through(frozen.qkv, d_qkv_NX) : at::Tensor();
    if (adapted(l, {q_proj, k_proj, v_proj, qkv_proj})) {
        adapt({q_proj, k_proj, v_proj, qkv_proj}, {part(d_qkv_NX, 0), part(d_qkv_NX, 1), part(d_qkv_NX, 2), d_qkv_NX},
              normed(input_norm, saved.x_ND), d_normed_ND);
    }
    if (go_on) norm_backward(input_norm, d_normed_ND, saved.x_ND, saved.rstd_N);
    scratch_.release(scratch_mark);
}

}  // namespace hetlora
