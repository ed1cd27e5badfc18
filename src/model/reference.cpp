#include "hetlora/model/reference.hpp"

#include <algorithm>
#include <cmath>

namespace hetlora {
namespace {

at::Tensor norm(const at::Tensor& x, const at::Tensor& w, double eps, const at::Tensor& bias = {}) {
    if (bias.defined()) return at::layer_norm(x, w.sizes(), w, bias, eps);
    return x * x.square().mean(-1, /*keepdim=*/true).add(eps).rsqrt() * w;
}

/// y + bias, where there is one.
at::Tensor plus(const at::Tensor& y, const at::Tensor& bias) { return bias.defined() ? y + bias : y; }

at::Tensor activated(const at::Tensor& x, Activation activation) {
    if (activation == Activation::relu) return at::relu(x);
    return at::gelu(x, activation == Activation::gelu ? "none" : "tanh");
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

at::Tensor reference_hidden(const LlamaWeights& weights, const at::Tensor& token_ST, const AdapterLayout& layout,
                            const ReferenceAdapter* adapter, double scale) {
    const ModelConfig& config = weights.config;
    const ModelFamily& family = *config.family;
    const std::vector<LoraTarget> targets = lora_targets(family);
    const std::int64_t T = token_ST.size(1);
    const at::Tensor future = at::ones({T, T}, weights.options().dtype(at::kBool)).triu(1);
    const auto linear = [&](const at::Tensor& x, const at::Tensor& weight, std::size_t layer, LayerMatrix place) {
        at::Tensor y = at::matmul(x, weight.t());
        const auto known = std::ranges::find(targets, place, &LoraTarget::matrix);
        if (adapter == nullptr || known == targets.end()) return y;
        const std::string& target = known->name;
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
    if (family.learned_positions) x = x + weights.position_PD.narrow(0, config.first_position(), T);
    if (weights.token_type_YD.defined()) x = x + weights.token_type_YD[0];
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        const LayerWeights& layer = weights.layer[l];
        at::Tensor h = norm(x, layer.input_norm_D, config.rms_eps, layer.input_norm_bias_D);
        if (family.encoder) x = h;  // the residual is the normed stream
        // One matrix with one adapter, or the three parts of the stack with one each.
        const at::Tensor fused =
            family.fused_qkv() ? linear(h, layer.qkv_XD, l, qkv_proj) + layer.qkv_bias_X : at::Tensor();
        const auto heads_of = [&](std::int64_t first, std::int64_t heads, LayerMatrix place) {
            const std::int64_t width = heads * config.head_size;
            if (fused.defined()) return fused.narrow(2, first, width).unflatten(2, {heads, config.head_size});
            at::Tensor y = linear(h, layer.qkv_XD.narrow(0, first, width), l, place);
            if (layer.qkv_bias_X.defined()) y = y + layer.qkv_bias_X.narrow(0, first, width);
            return y.unflatten(2, {heads, config.head_size});
        };
        at::Tensor q = heads_of(0, config.heads, q_proj);
        at::Tensor k = heads_of(Q, config.kv_heads, k_proj);
        at::Tensor v = heads_of(Q + KV, config.kv_heads, v_proj);
        if (layer.q_norm_E.defined()) {
            q = norm(q, layer.q_norm_E, config.rms_eps);
            k = norm(k, layer.k_norm_E, config.rms_eps);
        }
        const std::int64_t repeat = config.heads / config.kv_heads;
        if (!family.learned_positions) {
            q = rotate(q, weights.rotary);
            k = rotate(k, weights.rotary);
        }
        q = q.transpose(1, 2);
        k = k.repeat_interleave(repeat, 2).transpose(1, 2);
        v = v.repeat_interleave(repeat, 2).transpose(1, 2);
        at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(config.head_size));
        if (!family.encoder) scores = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
        const at::Tensor attended = at::matmul(at::softmax(scores, -1), v).transpose(1, 2).flatten(2);
        x = plus(x + linear(attended, layer.o_DX, l, o_proj), layer.o_bias_D);
        h = norm(x, layer.mlp_norm_D, config.rms_eps, layer.mlp_norm_bias_D);
        if (family.encoder) x = h;
        at::Tensor inner;
        if (family.gated) {
            const at::Tensor gate = linear(h, layer.gate_up_ID.narrow(0, 0, I), l, gate_proj);
            inner = at::silu(gate) * linear(h, layer.gate_up_ID.narrow(0, I, I), l, up_proj);
        } else {
            inner = activated(plus(linear(h, layer.gate_up_ID, l, up_proj), layer.up_bias_I), config.activation);
        }
        x = plus(x + linear(inner, layer.down_DI, l, down_proj), layer.down_bias_D);
    }
    return norm(x, weights.final_norm_D, config.rms_eps, weights.final_norm_bias_D);
}

at::Tensor reference_class_logits(const LlamaWeights& weights, const at::Tensor& hidden_STD,
                                  const ClassHeadShape& shape, const at::Tensor& head_P) {
    std::vector<at::Tensor> parts;
    for (const ClassHeadPart& part : shape.parts()) {
        const at::Tensor values = head_P.narrow(0, part.first, part.values());
        parts.push_back(part.columns == 0 ? values : values.view({part.rows, part.columns}));
    }
    at::Tensor x = hidden_STD.select(1, weights.config.family->encoder ? 0 : hidden_STD.size(1) - 1);
    if (weights.pooler_DD.defined()) x = at::tanh(at::linear(x, weights.pooler_DD, weights.pooler_bias_D));
    if (shape.dense) x = at::linear(x, parts[0], parts[1]);
    if (shape.activation == HeadActivation::tanh) x = at::tanh(x);
    if (shape.activation == HeadActivation::relu) x = at::relu(x);
    const std::size_t output = shape.dense ? 2 : 0;
    return at::linear(x, parts[output], shape.bias ? std::optional<at::Tensor>(parts[output + 1]) : std::nullopt);
}

at::Tensor reference_logits(const LlamaWeights& weights, const at::Tensor& token_ST, const AdapterLayout& layout,
                            const ReferenceAdapter* adapter, double scale) {
    check_task(weights.config, /*classification=*/false);
    return at::matmul(reference_hidden(weights, token_ST, layout, adapter, scale), weights.head_VD.t());
}

}  // namespace hetlora
