// The engine's pass through classification heads (see hetlora/model/class_head.hpp for the equations).
#include "engine_saved.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {

RowLossTensors Engine::class_head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND) {
    const std::int64_t L = batch.loss_row_L.size(0);
    const bool want_gradient = dx_ND.defined();
    const RowNorm norm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps};
    const RowLossTensors losses{.loss_L = arena_.take({L}, at::kDouble), .correct_L = arena_.take({L}, at::kByte)};
    const PartTimer timer(StepPart::cross_entropy);
    const at::Tensor rows_LD = x_ND.index_select(0, batch.loss_row_L);
    at::Tensor normed_LD = at::empty_like(rows_LD);
    at::Tensor rstd_L = at::empty({L}, rows_LD.options());
    norm.forward(rows_LD, normed_LD, rstd_L);
    at::Tensor d_normed_LD = want_gradient ? at::zeros_like(normed_LD) : at::Tensor();
    for (const ClassHeadRun& run : batch.class_heads) {
        const auto own = [&](const at::Tensor& x) { return x.narrow(0, run.row0, run.rows); };
        const at::Tensor pooled_RD = own(normed_LD);
        const at::Tensor target_R = own(batch.target_L);
        const at::Tensor logits_RK = class_head_logits(run, pooled_RD);
        const at::Tensor log_p_RK = at::log_softmax(logits_RK.to(at::kDouble), 1);
        own(losses.loss_L).copy_(log_p_RK.gather(1, target_R.unsqueeze(1)).squeeze(1).neg());
        own(losses.correct_L).copy_(logits_RK.argmax(1).eq(target_R));
        if (!want_gradient) continue;
        at::Tensor d_logits_RK = log_p_RK.exp();  // p - 1 at the class
        d_logits_RK.scatter_add_(1, target_R.unsqueeze(1), at::full({run.rows, 1}, -1.0, d_logits_RK.options()));
        d_logits_RK.mul_(own(batch.row_scale_L).unsqueeze(1));
        own(d_normed_LD).copy_(class_head_backward(run, pooled_RD, d_logits_RK.to(pooled_RD.scalar_type())));
    }
    if (want_gradient) {
        at::Tensor d_rows_LD = at::zeros_like(rows_LD);
        norm.backward(d_normed_LD, rows_LD, rstd_L, d_rows_LD);
        dx_ND.index_copy_(0, batch.loss_row_L, d_rows_LD);
    }
    return losses;
}

at::Tensor Engine::class_logits(const TokenBatch& batch) {
    if (batch.class_heads.empty()) throw bug_error("class_logits: the batch has no classification heads");
    const at::NoGradGuard no_grad;
    reset_arenas();
    const at::Tensor x_ND = forward(batch, {.runs = batch.runs, .dropout = 0.0}, nullptr);
    const at::Tensor rows_LD = x_ND.index_select(0, batch.loss_row_L);
    at::Tensor normed_LD = at::empty_like(rows_LD);
    RowNorm{weights_.final_norm_D, weights_.final_norm_bias_D, weights_.config.rms_eps}.forward(rows_LD, normed_LD, {});
    std::vector<at::Tensor> logits;
    for (const ClassHeadRun& run : batch.class_heads)
        logits.push_back(class_head_logits(run, normed_LD.narrow(0, run.row0, run.rows)));
    return at::cat(logits);
}

}  // namespace hetlora
