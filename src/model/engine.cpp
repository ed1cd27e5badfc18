#include "hetlora/model/engine.hpp"

#include <algorithm>
#include <cmath>

#include "engine_saved.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {

KeyValueCache::KeyValueCache(const LlamaWeights& weights, std::int64_t sequences, std::int64_t max_length)
    : length(static_cast<std::size_t>(sequences), 0) {
    for (std::size_t l = 0; l < weights.layer.size(); ++l) {
        k_SMK.push_back(at::empty({sequences, max_length, weights.config.kv_width()}, weights.embedding_VD.options()));
        v_SMK.push_back(at::empty_like(k_SMK.back()));
    }
}

Engine::Engine(LlamaWeights weights, const AdapterLayout& layout, const EngineOptions& options)
    : weights_(std::move(weights)),
      layout_(layout),
      options_(options),
      placement_(weights_.layer.size(), std::vector<int>(layer_matrix_count, -1)),
      first_adapted_(weights_.layer.size()),
      residual_dtype_(weights_.final_norm_D.scalar_type()),
      activation_dtype_(weights_.embedding_VD.scalar_type()),
      arena_(activation_dtype_, weights_.embedding_VD.device()),
      scratch_(activation_dtype_, weights_.embedding_VD.device()) {
    const std::vector<LoraTarget> targets = lora_targets(*weights_.config.family);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto& matrix = layout.matrices[m];
        const auto target = std::ranges::find(targets, matrix.target, &LoraTarget::name)->matrix;
        placement_.at(static_cast<std::size_t>(matrix.layer)).at(static_cast<std::size_t>(target)) =
            static_cast<int>(m);
        first_adapted_ = std::min(first_adapted_, static_cast<std::size_t>(matrix.layer));
    }
    if (options.base_changes) keep_changeable();
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
    for (std::size_t l = 0, next = 0; l < frozen_.size() && options.base_changes; ++l) {
        for (FrozenLinear* linear : {&frozen_[l].qkv, &frozen_[l].o, &frozen_[l].gate_up, &frozen_[l].down}) {
            changeable_[next++].frozen = linear;
        }
    }
    if (weights_.pooler_DD.defined()) pooler_ = freeze(weights_.pooler_DD);
    if (weights_.config.family->encoder) return;
    head_ = FrozenLinear(weights_.head_VD, options.gemm);
    if (options.gemm != GemmPath::mkl && !weights_.config.tied_head) weights_.head_VD = at::Tensor();
}

std::int64_t Engine::frozen_bytes() const {
    std::int64_t bytes = weights_.config.family->encoder ? 0 : head_.bytes();
    if (weights_.config.has_pooler()) bytes += pooler_.bytes();
    for (const at::Tensor& table : {weights_.rotary.cos, weights_.rotary.sin, weights_.position_PD}) {
        if (table.defined()) bytes += static_cast<std::int64_t>(table.nbytes());
    }
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
    const RowLossTensors losses = runner_ != nullptr && batch.class_heads.empty()
                                      ? runner_->train(*this, batch, dropout)
                                      : train_on_device(batch, dropout);
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
    check_task(weights_.config, /*classification=*/false);
    const at::NoGradGuard no_grad;
    reset_arenas();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    if (batch.cache != nullptr) {
        for (std::size_t s = 0; s < batch.spans.size(); ++s) batch.cache->length[s] += batch.spans[s].length;
    }
    const at::Tensor rows_LD = x_ND.index_select(0, batch.loss_row_L);
    at::Tensor normed_LD = scratch_.take(rows_LD.sizes());
    RowNorm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps}.forward(rows_LD, normed_LD, {});
    return head_.forward(normed_LD, scratch_).to(residual_dtype_, /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor Engine::forward(const TokenBatch& batch, const LoraPass& pass, std::vector<Saved>* saved) {
    at::Tensor x_ND = arena_.take({batch.token_N.size(0), weights_.config.hidden_size}, residual_dtype_);
    if (activation_dtype_ == residual_dtype_) {
        at::index_select_out(x_ND, weights_.embedding_VD, 0, batch.token_N);
    } else {
        x_ND.copy_(weights_.embedding_VD.index_select(0, batch.token_N));
    }
    if (weights_.position_PD.defined()) x_ND.add_(weights_.position_PD.index_select(0, batch.position_N));
    if (weights_.token_type_YD.defined()) x_ND.add_(weights_.token_type_YD.select(0, 0));
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

RowLossTensors Engine::head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND) {
    if (!batch.class_heads.empty()) return class_head(batch, x_ND, dx_ND);
    const std::int64_t L = batch.loss_row_L.size(0);
    const std::int64_t D = weights_.config.hidden_size;
    const bool want_gradient = dx_ND.defined();
    const RowNorm norm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps};
    const RowLossTensors losses{.loss_L = arena_.take({L}, at::kDouble), .correct_L = arena_.take({L}, at::kByte)};
    if (L == 0) return losses;
    check_task(weights_.config, /*classification=*/false);
    const std::int64_t scratch_mark = scratch_.mark();
    at::Tensor rows_LD = scratch_.take({L, D}, residual_dtype_);
    at::Tensor rstd_L = scratch_.take({L}, residual_dtype_);
    at::Tensor normed_LD = scratch_.take({L, D});
    {
        const PartTimer timer(StepPart::norm_rotary);
        at::index_select_out(rows_LD, x_ND, 0, batch.loss_row_L);
        norm.forward(rows_LD, normed_LD, rstd_L);
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
        norm.backward(d_normed_LD, rows_LD, rstd_L, d_rows_LD);
        dx_ND.index_copy_(0, batch.loss_row_L, d_rows_LD);
    }
    scratch_.release(scratch_mark);
    return losses;
}

}  // namespace hetlora
