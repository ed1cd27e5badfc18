#include "hetlora/model/engine.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

enum Target : int { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, target_count };

/// Rows of logits that exist at a time: V can be 50,000 and more.
constexpr std::int64_t head_chunk_rows = 256;

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
        k_SMK.push_back(at::empty({sequences, max_length, weights.config.kv_width()}, weights.options()));
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

Engine::Engine(const LlamaWeights& weights, const AdapterLayout& layout)
    : weights_(weights),
      layout_(layout),
      placement_(weights.layer.size(), std::vector<int>(target_count, -1)),
      first_adapted_(weights.layer.size()),
      arena_(weights.embedding_VD.scalar_type(), weights.embedding_VD.device()) {
    const auto& names = lora_target_names();
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto& matrix = layout.matrices[m];
        const auto target = std::ranges::find(names, matrix.target) - names.begin();
        placement_.at(static_cast<std::size_t>(matrix.layer)).at(static_cast<std::size_t>(target)) =
            static_cast<int>(m);
        first_adapted_ = std::min(first_adapted_, static_cast<std::size_t>(matrix.layer));
    }
}

RowLosses Engine::train(const TokenBatch& batch, double dropout) {
    const at::NoGradGuard no_grad;
    arena_.reset();
    const LoraPass pass{.runs = batch.runs, .dropout = dropout};
    std::vector<Saved> saved(weights_.layer.size());
    const at::Tensor x_ND = forward(batch, pass, &saved);
    at::Tensor dx_ND = arena_.zeros(x_ND.sizes());
    RowLosses losses = head(batch, x_ND, dx_ND);
    for (std::size_t l = weights_.layer.size(); l-- > first_adapted_;) layer_backward(l, batch, pass, saved[l], dx_ND);
    return losses;
}

RowLosses Engine::evaluate(const TokenBatch& batch) {
    const at::NoGradGuard no_grad;
    arena_.reset();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    return head(batch, x_ND, {});
}

at::Tensor Engine::logits(const TokenBatch& batch) {
    const at::NoGradGuard no_grad;
    arena_.reset();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    if (batch.cache != nullptr) {
        for (std::size_t s = 0; s < batch.spans.size(); ++s) batch.cache->length[s] += batch.spans[s].length;
    }
    const at::Tensor rows_LD = x_ND.index_select(0, batch.loss_row_L);
    at::Tensor normed_LD = at::empty_like(rows_LD);
    ops::rms_norm(rows_LD, weights_.final_norm_D, weights_.config.rms_eps, normed_LD, {});
    return at::mm(normed_LD, weights_.head_VD.t());
}

at::Tensor Engine::forward(const TokenBatch& batch, const LoraPass& pass, std::vector<Saved>* saved) {
    const std::int64_t N = batch.token_N.size(0);
    at::Tensor x_ND = arena_.take({N, weights_.config.hidden_size});
    at::index_select_out(x_ND, weights_.embedding_VD, 0, batch.token_N);
    if (saved != nullptr) {
        for (std::size_t l = 0; l < weights_.layer.size(); ++l)
            x_ND = layer_forward(l, batch, pass, x_ND, &(*saved)[l]);
        return x_ND;
    }
    // Without a backward only the residual stream survives a layer: two buffers take turns.
    at::Tensor spare_ND = arena_.take(x_ND.sizes());
    for (std::size_t l = 0; l < weights_.layer.size(); ++l) {
        const std::int64_t mark = arena_.mark();
        spare_ND.copy_(layer_forward(l, batch, pass, x_ND, nullptr));
        arena_.release(mark);
        std::swap(x_ND, spare_ND);
    }
    return x_ND;
}

at::Tensor Engine::layer_forward(std::size_t l, const TokenBatch& batch, const LoraPass& pass, const at::Tensor& x_ND,
                                 Saved* saved) {
    const ModelConfig& config = weights_.config;
    const LayerWeights& layer = weights_.layer[l];
    const std::int64_t N = x_ND.size(0);
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t I = config.intermediate_size;
    std::vector<std::vector<at::Tensor>> z(target_count);
    const auto adapt = [&](Target target, const at::Tensor& input, const at::Tensor& output) {
        const int matrix = placement_[l][target];
        if (matrix >= 0 && !pass.runs.empty()) {
            z[target] = lora_forward(pass, static_cast<std::size_t>(matrix), input, output, arena_);
        }
    };

    at::Tensor rstd_N = arena_.take({N});
    at::Tensor normed_ND = arena_.take(x_ND.sizes());
    ops::rms_norm(x_ND, layer.input_norm_D, config.rms_eps, normed_ND, rstd_N);
    at::Tensor qkv_NX = arena_.take({N, Q + 2 * KV});
    at::mm_out(qkv_NX, normed_ND, layer.qkv_XD.t());
    const at::Tensor q = qkv_NX.narrow(1, 0, Q);
    const at::Tensor k = qkv_NX.narrow(1, Q, KV);
    const at::Tensor v = qkv_NX.narrow(1, Q + KV, KV);
    adapt(q_proj, normed_ND, q);
    adapt(k_proj, normed_ND, k);
    adapt(v_proj, normed_ND, v);
    ops::rotary(q, config.heads, config.head_size, weights_.rotary, batch.position_N, +1);
    ops::rotary(k, config.kv_heads, config.head_size, weights_.rotary, batch.position_N, +1);
    at::Tensor attended_NQ = arena_.take({N, Q});
    at::Tensor lse_NH = arena_.take({N, config.heads});
    if (batch.cache == nullptr) {
        ops::attention(q, k, v, config.heads, config.kv_heads, batch.spans, attended_NQ, lse_NH);
    } else {
        cached_attention(*batch.cache, l, q, k, v, config, batch.spans, attended_NQ);
    }
    at::Tensor middle_ND = arena_.take(x_ND.sizes());
    at::addmm_out(middle_ND, x_ND, attended_NQ, layer.o_DX.t());
    adapt(o_proj, attended_NQ, middle_ND);

    at::Tensor middle_rstd_N = arena_.take({N});
    ops::rms_norm(middle_ND, layer.mlp_norm_D, config.rms_eps, normed_ND, middle_rstd_N);
    at::Tensor gate_up_N2I = arena_.take({N, 2 * I});
    at::mm_out(gate_up_N2I, normed_ND, layer.gate_up_ID.t());
    adapt(gate_proj, normed_ND, gate_up_N2I.narrow(1, 0, I));
    adapt(up_proj, normed_ND, gate_up_N2I.narrow(1, I, I));
    at::Tensor product_NI = arena_.take({N, I});
    ops::swiglu(gate_up_N2I, product_NI);
    at::Tensor out_ND = arena_.take(x_ND.sizes());
    at::addmm_out(out_ND, middle_ND, product_NI, layer.down_DI.t());
    adapt(down_proj, product_NI, out_ND);

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
    const std::int64_t N = dx_ND.size(0);
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t I = config.intermediate_size;
    const std::int64_t mark = arena_.mark();
    const auto adapted = [&](Target target) { return placement_[l][target] >= 0; };
    const auto adapt = [&](Target target, const at::Tensor& d_output, const at::Tensor& input,
                           const at::Tensor& d_input) {
        if (adapted(target)) {
            lora_backward(pass, static_cast<std::size_t>(placement_[l][target]), d_output, input, saved.z[target],
                          d_input, arena_);
        }
    };
    at::Tensor normed_ND = arena_.take(dx_ND.sizes());
    at::Tensor d_normed_ND = arena_.take(dx_ND.sizes());

    // Feed-forward: out = middle + down(silu(gate) * up)
    at::Tensor d_product_NI = arena_.take({N, I});
    at::mm_out(d_product_NI, dx_ND, layer.down_DI);
    if (adapted(down_proj)) {
        at::Tensor product_NI = arena_.take({N, I});
        ops::swiglu(saved.gate_up_N2I, product_NI);
        adapt(down_proj, dx_ND, product_NI, d_product_NI);
    }
    at::Tensor d_gate_up_N2I = arena_.take({N, 2 * I});
    ops::swiglu_backward(d_product_NI, saved.gate_up_N2I, d_gate_up_N2I);
    at::mm_out(d_normed_ND, d_gate_up_N2I, layer.gate_up_ID);
    if (adapted(gate_proj) || adapted(up_proj)) {
        ops::rms_norm(saved.middle_ND, layer.mlp_norm_D, config.rms_eps, normed_ND, {});
        adapt(gate_proj, d_gate_up_N2I.narrow(1, 0, I), normed_ND, d_normed_ND);
        adapt(up_proj, d_gate_up_N2I.narrow(1, I, I), normed_ND, d_normed_ND);
    }
    ops::rms_norm_backward(d_normed_ND, saved.middle_ND, layer.mlp_norm_D, saved.middle_rstd_N, dx_ND);

    // Attention: middle = x + o(attention(q, k, v))
    at::Tensor d_attended_NQ = arena_.take({N, Q});
    at::mm_out(d_attended_NQ, dx_ND, layer.o_DX);
    adapt(o_proj, dx_ND, saved.attended_NQ, d_attended_NQ);
    at::Tensor d_qkv_NX = arena_.take({N, Q + 2 * KV});
    const auto column = [&](const at::Tensor& x, int part) {
        return part == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (part - 1) * KV, KV);
    };
    ops::attention_backward(column(saved.qkv_NX, 0), column(saved.qkv_NX, 1), column(saved.qkv_NX, 2), config.heads,
                            config.kv_heads, batch.spans, saved.attended_NQ, saved.lse_NH, d_attended_NQ,
                            {.q = column(d_qkv_NX, 0), .k = column(d_qkv_NX, 1), .v = column(d_qkv_NX, 2)});
    ops::rotary(column(d_qkv_NX, 0), config.heads, config.head_size, weights_.rotary, batch.position_N, -1);
    ops::rotary(column(d_qkv_NX, 1), config.kv_heads, config.head_size, weights_.rotary, batch.position_N, -1);
    const bool go_on = l > first_adapted_;  // below the first adapted layer nobody asks for a gradient
    if (go_on) at::mm_out(d_normed_ND, d_qkv_NX, layer.qkv_XD);
    if (adapted(q_proj) || adapted(k_proj) || adapted(v_proj)) {
        ops::rms_norm(saved.x_ND, layer.input_norm_D, config.rms_eps, normed_ND, {});
        const at::Tensor d_input = go_on ? d_normed_ND : at::Tensor();
        adapt(q_proj, column(d_qkv_NX, 0), normed_ND, d_input);
        adapt(k_proj, column(d_qkv_NX, 1), normed_ND, d_input);
        adapt(v_proj, column(d_qkv_NX, 2), normed_ND, d_input);
    }
    if (go_on) ops::rms_norm_backward(d_normed_ND, saved.x_ND, layer.input_norm_D, saved.rstd_N, dx_ND);
    arena_.release(mark);
}

RowLosses Engine::head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND) {
    const std::int64_t L = batch.loss_row_L.size(0);
    const std::int64_t D = weights_.config.hidden_size;
    const bool want_gradient = dx_ND.defined();
    RowLosses losses{.loss_L = std::vector<double>(static_cast<std::size_t>(L)),
                     .correct_L = std::vector<std::uint8_t>(static_cast<std::size_t>(L))};
    if (L == 0) return losses;
    at::Tensor rows_LD = arena_.take({L, D});
    at::index_select_out(rows_LD, x_ND, 0, batch.loss_row_L);
    at::Tensor rstd_L = arena_.take({L});
    at::Tensor normed_LD = arena_.take({L, D});
    ops::rms_norm(rows_LD, weights_.final_norm_D, weights_.config.rms_eps, normed_LD, rstd_L);
    at::Tensor d_normed_LD = want_gradient ? arena_.take({L, D}) : at::Tensor();
    const std::int64_t mark = arena_.mark();
    at::Tensor logits = arena_.take({std::min(L, head_chunk_rows), weights_.config.vocab_size});
    for (std::int64_t begin = 0; begin < L; begin += head_chunk_rows) {
        const std::int64_t rows = std::min(head_chunk_rows, L - begin);
        at::Tensor chunk = logits.narrow(0, 0, rows);
        at::mm_out(chunk, normed_LD.narrow(0, begin, rows), weights_.head_VD.t());
        ops::cross_entropy(chunk, batch.target_L.narrow(0, begin, rows),
                           want_gradient ? batch.row_scale_L.narrow(0, begin, rows) : at::Tensor(),
                           losses.loss_L.data() + begin, losses.correct_L.data() + begin, want_gradient);
        if (want_gradient) {
            at::Tensor target = d_normed_LD.narrow(0, begin, rows);
            at::mm_out(target, chunk, weights_.head_VD);
        }
    }
    arena_.release(mark);
    if (want_gradient) {
        at::Tensor d_rows_LD = arena_.zeros({L, D});
        ops::rms_norm_backward(d_normed_LD, rows_LD, weights_.final_norm_D, rstd_L, d_rows_LD);
        dx_ND.index_copy_(0, batch.loss_row_L, d_rows_LD);
    }
    return losses;
}

}  // namespace hetlora
