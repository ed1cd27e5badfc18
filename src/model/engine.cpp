#include "hetlora/model/engine.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {
namespace {

enum Target : int { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, target_count };

/// FLOPs of causal attention's forward: two products over the lower triangle of each sequence.
double attention_flops(const std::vector<AttentionSpan>& spans, std::int64_t query_width) {
    double pairs = 0.0;
    for (const auto& span : spans)
        pairs += 0.5 * static_cast<double>(span.length) * static_cast<double>(span.length + 1);
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

KeyValueCache::KeyValueCache(const LlamaWeights& weights, std::int64_t sequences, std::int64_t max_length)
    : length(static_cast<std::size_t>(sequences), 0) {
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        k_SMK.push_back(at::empty({sequences, max_length, weights.config.kv_width()}, weights.embedding_VD.options()));
        v_SMK.push_back(at::empty_like(k_SMK.back()));
    }
}

/// What a layer's backward needs; norms and SwiGLU outputs are cheap and are computed again.
struct Engine::Saved {
    at::Tensor x_ND;  ///< input of the layer
    at::Tensor rstd_N;
    at::Tensor qkv_NX;       ///< after rotary
    at::Tensor attended_NQ;  ///< attention's output, before o
    at::Tensor lse_NH;
    at::Tensor middle_ND;  ///< after attention's residual
    at::Tensor middle_rstd_N;
    at::Tensor gate_up_N2I;
    std::vector<std::vector<at::Tensor>> z;  ///< [target] -> per run
};

Engine::Engine(LlamaWeights weights, const AdapterLayout& layout, const EngineOptions& options)
    : weights_(std::move(weights)),
      layout_(layout),
      options_(options),
      placement_(weights_.layer.size(), std::vector<int>(target_count, -1)),
      first_adapted_(weights_.layer.size()),
      residual_dtype_(weights_.final_norm_D.scalar_type()),
      activation_dtype_(weights_.embedding_VD.scalar_type()),
      arena_(activation_dtype_, weights_.embedding_VD.device()),
      scratch_(activation_dtype_, weights_.embedding_VD.device()) {
    const auto& names = lora_target_names();
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto& matrix = layout.matrices[m];
        const auto target = std::ranges::find(names, matrix.target) - names.begin();
        placement_.at(static_cast<std::size_t>(matrix.layer)).at(static_cast<std::size_t>(target)) =
            static_cast<int>(m);
        first_adapted_ = std::min(first_adapted_, static_cast<std::size_t>(matrix.layer));
    }
    // One matrix at a time, so that packing never holds two copies of the whole model.
    const auto freeze = [&](at::Tensor& dense) {
        FrozenLinear linear(dense, options.gemm);
        if (options.gemm != GemmPath::mkl) dense = at::Tensor();
        return linear;
    };
    for (LayerWeights& layer : weights_.layer) {
        frozen_.push_back({.qkv = freeze(layer.qkv_XD),
                           .o = freeze(layer.o_DX),
                           .gate_up = freeze(layer.gate_up_ID),
                           .down = freeze(layer.down_DI)});
    }
    head_ = FrozenLinear(weights_.head_VD, options.gemm);
    if (options.gemm != GemmPath::mkl && !weights_.config.tied_head) weights_.head_VD = at::Tensor();
}

std::int64_t Engine::frozen_bytes() const {
    std::int64_t bytes = head_.bytes();
    for (const auto& layer : frozen_)
        bytes += layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes();
    const bool embedding_is_head = weights_.config.tied_head && options_.gemm == GemmPath::mkl;
    return bytes + (embedding_is_head ? 0 : static_cast<std::int64_t>(weights_.embedding_VD.nbytes()));
}

at::Tensor Engine::as(const at::Tensor& x, at::ScalarType dtype) {
    if (x.scalar_type() == dtype) return x;
    at::Tensor converted = scratch_.take(x.sizes(), dtype);
    converted.copy_(x);
    return converted;
}

bool Engine::adapted(std::size_t l, std::initializer_list<int> targets) const {
    return std::ranges::any_of(targets,
                               [&](int target) { return placement_[l][static_cast<std::size_t>(target)] >= 0; });
}

void Engine::reset_arenas() {
    arena_.reset();
    scratch_.reset();
}

RowLosses RowLossTensors::to_host() const {
    const std::int64_t L = loss_L.size(0);
    RowLosses losses{.loss_L = std::vector<double>(static_cast<std::size_t>(L)),
                     .correct_L = std::vector<std::uint8_t>(static_cast<std::size_t>(L))};
    if (loss_L.is_cpu()) {
        std::copy_n(loss_L.const_data_ptr<double>(), L, losses.loss_L.begin());
        std::copy_n(correct_L.const_data_ptr<std::uint8_t>(), L, losses.correct_L.begin());
        return losses;
    }
    const at::Tensor both = at::stack({loss_L, correct_L.to(at::kDouble)}).to(at::kCPU);  // one copy
    const double* values = both.const_data_ptr<double>();
    std::copy_n(values, L, losses.loss_L.begin());
    std::transform(values + L, values + 2 * L, losses.correct_L.begin(), [](double hit) { return hit > 0.0 ? 1 : 0; });
    return losses;
}

RowLosses Engine::train(const TokenBatch& batch, double dropout) {
    const RowLossTensors losses =
        runner_ != nullptr ? runner_->train(*this, batch, dropout) : train_on_device(batch, dropout);
    return losses.to_host();
}

RowLossTensors Engine::train_on_device(const TokenBatch& batch, double dropout) {
    const at::NoGradGuard no_grad;
    reset_arenas();
    const LoraPass pass{.runs = batch.runs, .dropout = dropout};
    std::vector<Saved> saved(weights_.layer.size());
    const at::Tensor x_ND = forward(batch, pass, &saved);
    at::Tensor dx_ND = arena_.take(x_ND.sizes(), residual_dtype_).zero_();
    const RowLossTensors losses = head(batch, x_ND, dx_ND);
    for (std::size_t l = weights_.layer.size(); l-- > first_adapted_;) {
        const std::int64_t mark = arena_.mark();
        if (options_.recompute) {
            const at::Tensor input_ND = saved[l].x_ND;
            (void)layer_forward(l, batch, pass, input_ND, &saved[l]);
        }
        layer_backward(l, batch, pass, saved[l], dx_ND);
        arena_.release(mark);
    }
    return losses;
}

RowLosses Engine::evaluate(const TokenBatch& batch) {
    const at::NoGradGuard no_grad;
    reset_arenas();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    return head(batch, x_ND, {}).to_host();
}

at::Tensor Engine::logits(const TokenBatch& batch) {
    const at::NoGradGuard no_grad;
    reset_arenas();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    if (batch.cache != nullptr) {
        for (std::size_t s = 0; s < batch.spans.size(); ++s) batch.cache->length[s] += batch.spans[s].length;
    }
    const at::Tensor rows_LD = x_ND.index_select(0, batch.loss_row_L);
    at::Tensor normed_LD = scratch_.take(rows_LD.sizes());
    ops::rms_norm(rows_LD, weights_.final_norm_D, weights_.config.rms_eps, normed_LD, {});
    return head_.forward(normed_LD, scratch_).to(residual_dtype_, /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor Engine::forward(const TokenBatch& batch, const LoraPass& pass, std::vector<Saved>* saved) {
    at::Tensor x_ND = arena_.take({batch.token_N.size(0), weights_.config.hidden_size}, residual_dtype_);
    if (activation_dtype_ == residual_dtype_) {
        at::index_select_out(x_ND, weights_.embedding_VD, 0, batch.token_N);
    } else {
        x_ND.copy_(weights_.embedding_VD.index_select(0, batch.token_N));
    }
    at::Tensor spare_ND;  // where nothing of a layer is kept, two buffers take turns
    for (std::size_t l = 0; l < weights_.layer.size(); ++l) {
        const bool differentiated = saved != nullptr && l >= first_adapted_;
        if (differentiated && !options_.recompute) {
            x_ND = layer_forward(l, batch, pass, x_ND, &(*saved)[l]);
            continue;
        }
        at::Tensor next_ND =
            spare_ND.defined() && !differentiated ? spare_ND : arena_.take(x_ND.sizes(), residual_dtype_);
        const std::int64_t mark = arena_.mark();
        next_ND.copy_(layer_forward(l, batch, pass, x_ND, nullptr));
        arena_.release(mark);
        if (differentiated) {
            (*saved)[l].x_ND = x_ND;
        } else {
            spare_ND = x_ND;
        }
        x_ND = next_ND;
    }
    return x_ND;
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
    const std::int64_t scratch_mark = scratch_.mark();
    std::vector<std::vector<at::Tensor>> z(target_count);
    const auto adapt = [&](std::initializer_list<int> targets, const at::Tensor& input,
                           std::initializer_list<at::Tensor> outputs) {
        if (pass.runs.empty() || !adapted(l, targets)) return;
        const at::Tensor wide_input = as(input, residual_dtype_);
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const auto target = static_cast<std::size_t>(targets.begin()[i]);
            const int matrix = placement_[l][target];
            if (matrix < 0) continue;
            z[target] =
                lora_forward(pass, static_cast<std::size_t>(matrix), wide_input, outputs.begin()[i], arena_, scratch_);
        }
    };

    at::Tensor rstd_N = arena_.take({N}, residual_dtype_);
    at::Tensor normed_ND = scratch_.take(x_ND.sizes());
    {
        const PartTimer timer(StepPart::norm_rotary);
        ops::rms_norm(x_ND, layer.input_norm_D, config.rms_eps, normed_ND, rstd_N);
    }
    at::Tensor qkv_NX;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.qkv.flops(N));
        qkv_NX = frozen.qkv.forward(normed_ND, arena_);
    }
    const at::Tensor q = qkv_NX.narrow(1, 0, Q);
    const at::Tensor k = qkv_NX.narrow(1, Q, KV);
    const at::Tensor v = qkv_NX.narrow(1, Q + KV, KV);
    adapt({q_proj, k_proj, v_proj}, normed_ND, {q, k, v});
    {
        const PartTimer timer(StepPart::norm_rotary);
        ops::rotary(q, config.heads, config.head_size, weights_.rotary, batch.position_N, +1);
        ops::rotary(k, config.kv_heads, config.head_size, weights_.rotary, batch.position_N, +1);
    }
    at::Tensor attended_NQ = arena_.take({N, Q});
    at::Tensor lse_NH = arena_.take({N, config.heads}, residual_dtype_);
    if (batch.cache == nullptr) {
        const PartTimer timer(StepPart::attention, attention_flops(batch.spans, Q));
        ops::attention(q, k, v, config.heads, config.kv_heads, batch.spans, attended_NQ, lse_NH, batch.place_N);
    } else {
        cached_attention(*batch.cache, l, q, k, v, config, batch.spans, attended_NQ);
    }
    at::Tensor middle_ND;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.o.flops(N));
        middle_ND = frozen.o.forward_add(attended_NQ, x_ND, arena_);
    }
    adapt({o_proj}, attended_NQ, {middle_ND});

    at::Tensor middle_rstd_N = arena_.take({N}, residual_dtype_);
    {
        const PartTimer timer(StepPart::norm_rotary);
        ops::rms_norm(middle_ND, layer.mlp_norm_D, config.rms_eps, normed_ND, middle_rstd_N);
    }
    at::Tensor gate_up_N2I;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.gate_up.flops(N));
        gate_up_N2I = frozen.gate_up.forward(normed_ND, arena_);
    }
    adapt({gate_proj, up_proj}, normed_ND, {gate_up_N2I.narrow(1, 0, I), gate_up_N2I.narrow(1, I, I)});
    at::Tensor product_NI = scratch_.take({N, I});
    {
        const PartTimer timer(StepPart::swiglu);
        ops::swiglu(gate_up_N2I, product_NI);
    }
    at::Tensor out_ND;
    {
        const PartTimer timer(StepPart::frozen_gemm, frozen.down.flops(N));
        out_ND = frozen.down.forward_add(product_NI, middle_ND, arena_);
    }
    adapt({down_proj}, product_NI, {out_ND});
    scratch_.release(scratch_mark);

    if (saved != nullptr) {
        *saved = {.x_ND = x_ND,
                  .rstd_N = rstd_N,
                  .qkv_NX = qkv_NX,
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
    const std::int64_t scratch_mark = scratch_.mark();
    const auto through = [&](const FrozenLinear& linear, const at::Tensor& dy) {
        const PartTimer timer(StepPart::frozen_gemm, linear.flops(N));
        return linear.backward(dy, scratch_);
    };
    /// Gradients of the targets that read `input`, and their share of its gradient (where that is defined).
    const auto adapt = [&](std::initializer_list<int> targets, std::initializer_list<at::Tensor> d_outputs,
                           const at::Tensor& input, const at::Tensor& d_input) {
        const std::int64_t mark = scratch_.mark();
        const at::Tensor wide_input = as(input, residual_dtype_);
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const auto target = static_cast<std::size_t>(targets.begin()[i]);
            const int matrix = placement_[l][target];
            if (matrix < 0) continue;
            lora_backward(pass, static_cast<std::size_t>(matrix), as(d_outputs.begin()[i], residual_dtype_), wide_input,
                          saved.z[target], d_input, scratch_);
        }
        scratch_.release(mark);
    };
    const auto norm = [&](const at::Tensor& x, const at::Tensor& w) {
        const PartTimer timer(StepPart::norm_rotary);
        at::Tensor normed_ND = scratch_.take(x.sizes());
        ops::rms_norm(x, w, config.rms_eps, normed_ND, {});
        return normed_ND;
    };
    const auto norm_backward = [&](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                                   const at::Tensor& rstd) {
        const PartTimer timer(StepPart::norm_rotary);
        ops::rms_norm_backward(dy, x, w, rstd, dx_ND);
    };

    // Feed-forward: out = middle + down(silu(gate) * up)
    {
        const at::Tensor dx_narrow = as(dx_ND, activation_dtype_);
        const at::Tensor d_product_NI = through(frozen.down, dx_narrow);
        if (adapted(l, {down_proj})) {
            at::Tensor product_NI = scratch_.take({N, I});
            {
                const PartTimer timer(StepPart::swiglu);
                ops::swiglu(saved.gate_up_N2I, product_NI);
            }
            adapt({down_proj}, {dx_ND}, product_NI, d_product_NI);
        }
        at::Tensor d_gate_up_N2I = scratch_.take({N, 2 * I});
        {
            const PartTimer timer(StepPart::swiglu);
            ops::swiglu_backward(d_product_NI, saved.gate_up_N2I, d_gate_up_N2I);
        }
        const at::Tensor d_normed_ND = through(frozen.gate_up, d_gate_up_N2I);
        if (adapted(l, {gate_proj, up_proj})) {
            adapt({gate_proj, up_proj}, {d_gate_up_N2I.narrow(1, 0, I), d_gate_up_N2I.narrow(1, I, I)},
                  norm(saved.middle_ND, layer.mlp_norm_D), d_normed_ND);
        }
        norm_backward(d_normed_ND, saved.middle_ND, layer.mlp_norm_D, saved.middle_rstd_N);
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
        const PartTimer timer(StepPart::attention, 2.5 * attention_flops(batch.spans, Q));
        ops::attention_backward(part(saved.qkv_NX, 0), part(saved.qkv_NX, 1), part(saved.qkv_NX, 2), config.heads,
                                config.kv_heads, batch.spans, saved.attended_NQ, saved.lse_NH, d_attended_NQ,
                                {.q = part(d_qkv_NX, 0), .k = part(d_qkv_NX, 1), .v = part(d_qkv_NX, 2)},
                                batch.place_N);
    }
    {
        const PartTimer timer(StepPart::norm_rotary);
        ops::rotary(part(d_qkv_NX, 0), config.heads, config.head_size, weights_.rotary, batch.position_N, -1);
        ops::rotary(part(d_qkv_NX, 1), config.kv_heads, config.head_size, weights_.rotary, batch.position_N, -1);
    }
    const bool go_on = l > first_adapted_;  // below the first adapted layer nobody asks for a gradient
    const at::Tensor d_normed_ND = go_on ? through(frozen.qkv, d_qkv_NX) : at::Tensor();
    if (adapted(l, {q_proj, k_proj, v_proj})) {
        adapt({q_proj, k_proj, v_proj}, {part(d_qkv_NX, 0), part(d_qkv_NX, 1), part(d_qkv_NX, 2)},
              norm(saved.x_ND, layer.input_norm_D), d_normed_ND);
    }
    if (go_on) norm_backward(d_normed_ND, saved.x_ND, layer.input_norm_D, saved.rstd_N);
    scratch_.release(scratch_mark);
}

RowLossTensors Engine::head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND) {
    const std::int64_t L = batch.loss_row_L.size(0);
    const std::int64_t D = weights_.config.hidden_size;
    const bool want_gradient = dx_ND.defined();
    const RowLossTensors losses{.loss_L = arena_.take({L}, at::kDouble), .correct_L = arena_.take({L}, at::kByte)};
    if (L == 0) return losses;
    const std::int64_t scratch_mark = scratch_.mark();
    at::Tensor rows_LD = scratch_.take({L, D}, residual_dtype_);
    at::Tensor rstd_L = scratch_.take({L}, residual_dtype_);
    at::Tensor normed_LD = scratch_.take({L, D});
    {
        const PartTimer timer(StepPart::norm_rotary);
        at::index_select_out(rows_LD, x_ND, 0, batch.loss_row_L);
        ops::rms_norm(rows_LD, weights_.final_norm_D, weights_.config.rms_eps, normed_LD, rstd_L);
    }
    at::Tensor d_normed_LD = want_gradient ? scratch_.take({L, D}) : at::Tensor();
    for (std::int64_t begin = 0; begin < L; begin += head_chunk_rows) {
        const std::int64_t mark = scratch_.mark();
        const std::int64_t rows = std::min(head_chunk_rows, L - begin);
        at::Tensor chunk;
        {
            const PartTimer timer(StepPart::head_gemm, head_.flops(rows));
            chunk = head_.forward(normed_LD.narrow(0, begin, rows), scratch_);
        }
        {
            const PartTimer timer(StepPart::cross_entropy);
            ops::cross_entropy(chunk, batch.target_L.narrow(0, begin, rows),
                               want_gradient ? batch.row_scale_L.narrow(0, begin, rows) : at::Tensor(),
                               losses.loss_L.narrow(0, begin, rows), losses.correct_L.narrow(0, begin, rows),
                               want_gradient);
        }
        if (want_gradient) {
            const PartTimer timer(StepPart::head_gemm, head_.flops(rows));
            d_normed_LD.narrow(0, begin, rows).copy_(head_.backward(chunk, scratch_));
        }
        scratch_.release(mark);
    }
    if (want_gradient) {
        const PartTimer timer(StepPart::norm_rotary);
        at::Tensor d_rows_LD = scratch_.take({L, D}, residual_dtype_).zero_();
        ops::rms_norm_backward(d_normed_LD, rows_LD, weights_.final_norm_D, rstd_L, d_rows_LD);
        dx_ND.index_copy_(0, batch.loss_row_L, d_rows_LD);
    }
    scratch_.release(scratch_mark);
    return losses;
}

}  // namespace hetlora
