// The engine's pass through classification heads (see hetlora/model/class_head.hpp for the equations).
#include "engine_saved.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {

Engine::PooledRows Engine::pooled_rows(const TokenBatch& batch, const at::Tensor& x_ND) {
    PooledRows rows{.rows_LD = x_ND.index_select(0, batch.loss_row_L), .rstd_L = {}, .pooled_LD = {}};
    rows.pooled_LD = at::empty_like(rows.rows_LD);
    rows.rstd_L = at::empty({rows.rows_LD.size(0)}, rows.rows_LD.options());
    RowNorm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps}.forward(
        rows.rows_LD, rows.pooled_LD, rows.rstd_L);
    if (!weights_.config.has_pooler()) return rows;
    const std::int64_t mark = scratch_.mark();
    const at::Tensor product_LD = pooler_.forward(as(rows.pooled_LD, activation_dtype_), scratch_);
    rows.pooled_LD.copy_(product_LD).add_(weights_.pooler_bias_D).tanh_();
    scratch_.release(mark);
    return rows;
}

at::Tensor Engine::pooled_rows_backward(const PooledRows& rows, const at::Tensor& d_pooled_LD) {
    at::Tensor d_normed_LD = d_pooled_LD;
    const std::int64_t mark = scratch_.mark();
    if (weights_.config.has_pooler()) {
        const at::Tensor d_product_LD = d_pooled_LD * (1.0 - rows.pooled_LD.square());  // through tanh
        d_normed_LD = as(pooler_.backward(as(d_product_LD, activation_dtype_), scratch_), residual_dtype_);
    }
    at::Tensor d_rows_LD = at::zeros_like(rows.rows_LD);
    RowNorm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps}.backward(
        d_normed_LD, rows.rows_LD, rows.rstd_L, d_rows_LD);
    scratch_.release(mark);
    return d_rows_LD;
}

RowLossTensors Engine::class_head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND) {
    const std::int64_t L = batch.loss_row_L.size(0);
    const bool want_gradient = dx_ND.defined();
    const RowLossTensors losses{.loss_L = arena_.take({L}, at::kDouble), .correct_L = arena_.take({L}, at::kByte)};
    const PartTimer timer(StepPart::cross_entropy);
    const PooledRows rows = pooled_rows(batch, x_ND);
    at::Tensor d_pooled_LD = want_gradient ? at::zeros_like(rows.pooled_LD) : at::Tensor();
    for (const ClassHeadRun& run : batch.class_heads) {
        const auto own = [&](const at::Tensor& x) { return x.narrow(0, run.row0, run.rows); };
        const at::Tensor pooled_RD = own(rows.pooled_LD);
        const at::Tensor target_R = own(batch.target_L);
        const at::Tensor logits_RK = class_head_logits(run, pooled_RD);
        const at::Tensor log_p_RK = at::log_softmax(logits_RK.to(at::kDouble), 1);
        own(losses.loss_L).copy_(log_p_RK.gather(1, target_R.unsqueeze(1)).squeeze(1).neg());
        own(losses.correct_L).copy_(logits_RK.argmax(1).eq(target_R));
        if (!want_gradient) continue;
        at::Tensor d_logits_RK = log_p_RK.exp();  // p - 1 at the class
        d_logits_RK.scatter_add_(1, target_R.unsqueeze(1), at::full({run.rows, 1}, -1.0, d_logits_RK.options()));
        d_logits_RK.mul_(own(batch.row_scale_L).unsqueeze(1));
        own(d_pooled_LD).copy_(class_head_backward(run, pooled_RD, d_logits_RK.to(pooled_RD.scalar_type())));
    }
    if (want_gradient) dx_ND.index_copy_(0, batch.loss_row_L, pooled_rows_backward(rows, d_pooled_LD));
    return losses;
}

at::Tensor Engine::class_logits(const TokenBatch& batch) {
    if (batch.class_heads.empty()) throw bug_error("class_logits: the batch has no classification heads");
    const at::NoGradGuard no_grad;
    reset_arenas();
    const PooledRows rows = pooled_rows(batch, forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr));
    std::vector<at::Tensor> logits;
    for (const ClassHeadRun& run : batch.class_heads)
        logits.push_back(class_head_logits(run, rows.pooled_LD.narrow(0, run.row0, run.rows)));
    return at::cat(logits);
}

}  // namespace hetlora
