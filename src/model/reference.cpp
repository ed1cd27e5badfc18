#include "hetlora/model/reference.hpp"

#include <cmath>

namespace hetlora {
namespace {

at::Tensor norm(const at::Tensor& x, const at::Tensor& w, double eps) {
    return x * x.square().mean(-1, /*keepdim=*/true).add(eps).rsqrt() * w;
}

/// x [S, T, heads, E] rotated by position, half-split convention.
at::Tensor rotate(const at::Tensor& x, const ops::RotaryTable& table) {
    const std::int64_t T = x.size(1);
    const std::int64_t half = x.size(3) / 2;
    const at::Tensor cos = table.cos.narrow(0, 0, T).unsqueeze(1);
    const at::Tensor sin = table.sin.narrow(0, 0, T).unsqueeze(1);
    const at::Tensor lo = x.narrow(3, 0, half);
    const at::Tensor hi = x.narrow(3, half, half);
    return at::cat({lo * cos - hi * sin, hi * cos + lo * sin}, 3);
}

}  // namespace

at::Tensor reference_logits(const LlamaWeights& weights, const at::Tensor& token_ST, const AdapterLayout& layout,
                            const ReferenceAdapter* adapter, double scale) {
    const ModelConfig& config = weights.config;
    const std::int64_t T = token_ST.size(1);
    const at::Tensor future = at::ones({T, T}, weights.options().dtype(at::kBool)).triu(1);
    const auto linear = [&](const at::Tensor& x, const at::Tensor& weight, std::size_t layer, const char* target) {
        at::Tensor y = at::matmul(x, weight.t());
        if (adapter == nullptr) return y;
        for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
            if (layout.matrices[m].layer == static_cast<int>(layer) && layout.matrices[m].target == target) {
                y = y + at::matmul(at::matmul(x, adapter->a_WD[m].t()), adapter->bt_WO[m]) * scale;
            }
        }
        return y;
    };
    const std::int64_t Q = config.query_width();
    const std::int64_t KV = config.kv_width();
    const std::int64_t I = config.intermediate_size;
    at::Tensor x = at::embedding(weights.embedding_VD, token_ST);
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        const LayerWeights& layer = weights.layer[l];
        at::Tensor h = norm(x, layer.input_norm_D, config.rms_eps);
        const auto heads_of = [&](std::int64_t first, std::int64_t heads, const char* target) {
            const std::int64_t width = heads * config.head_size;
            at::Tensor y = linear(h, layer.qkv_XD.narrow(0, first, width), l, target);
            if (layer.qkv_bias_X.defined()) y = y + layer.qkv_bias_X.narrow(0, first, width);
            return y.unflatten(2, {heads, config.head_size});
        };
        at::Tensor q = heads_of(0, config.heads, "q_proj");
        at::Tensor k = heads_of(Q, config.kv_heads, "k_proj");
        at::Tensor v = heads_of(Q + KV, config.kv_heads, "v_proj");
        if (layer.q_norm_E.defined()) {
            q = norm(q, layer.q_norm_E, config.rms_eps);
            k = norm(k, layer.k_norm_E, config.rms_eps);
        }
        const std::int64_t repeat = config.heads / config.kv_heads;
        q = rotate(q, weights.rotary).transpose(1, 2);
        k = rotate(k, weights.rotary).repeat_interleave(repeat, 2).transpose(1, 2);
        v = v.repeat_interleave(repeat, 2).transpose(1, 2);
        at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(config.head_size));
        scores = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
        const at::Tensor attended = at::matmul(at::softmax(scores, -1), v).transpose(1, 2).flatten(2);
        x = x + linear(attended, layer.o_DX, l, "o_proj");
        h = norm(x, layer.mlp_norm_D, config.rms_eps);
        const at::Tensor gate = linear(h, layer.gate_up_ID.narrow(0, 0, I), l, "gate_proj");
        const at::Tensor up = linear(h, layer.gate_up_ID.narrow(0, I, I), l, "up_proj");
        x = x + linear(at::silu(gate) * up, layer.down_DI, l, "down_proj");
    }
    return at::matmul(norm(x, weights.final_norm_D, config.rms_eps), weights.head_VD.t());
}

}  // namespace hetlora
