// What the engine's files share: the adapted matrices' order and what a layer keeps for its backward (private to
// model).
#pragma once

#include <vector>

#include "hetlora/model/engine.hpp"

namespace hetlora {

/// The heads of q and k before their norms, for the norms' backward: M = N * H or N * K rows of one head each.
struct HeadNorms {
    at::Tensor q_ME, q_rstd_M;
    at::Tensor k_ME, k_rstd_M;
};

/// A norm of the residual stream: RMSNorm, or LayerNorm where it has a bias.
struct RowNorm {
    const at::Tensor& weight_D;
    const at::Tensor& bias_D;
    double eps = 0.0;

    /// y = norm(x); rstd_N (may be undefined) is kept for the backward.
    void forward(const at::Tensor& x_ND, at::Tensor y_ND, at::Tensor rstd_N) const;
    /// dx += gradient with respect to x.
    void backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& rstd_N, at::Tensor dx_ND) const;
};

/// A heads' norm and its weight; x is a column slice that holds `heads` heads in every row.
struct HeadNorm {
    const at::Tensor& weight_E;
    double eps = 0.0;

    /// x <- norm(x), head by head; x as it was and the norms' factors go where the backward finds them.
    void forward(at::Tensor x, at::Tensor& raw_ME, at::Tensor& rstd_M, Arena& arena, Arena& scratch) const;
    /// dx <- gradient with respect to the norm's input, from that with respect to its output.
    void backward(at::Tensor dx, const at::Tensor& raw_ME, const at::Tensor& rstd_M, Arena& scratch) const;
};

/// What a layer's backward needs; norms and SwiGLU outputs are cheap and are computed again.
struct Engine::Saved {
    at::Tensor x_ND;  ///< input of the layer
    at::Tensor rstd_N;
    at::Tensor qkv_NX;       ///< after rotary
    HeadNorms head_norms;    ///< of families with norms on q and k
    at::Tensor attended_NQ;  ///< attention's output, before o
    at::Tensor lse_NH;
    at::Tensor middle_ND;  ///< after attention's residual
    at::Tensor middle_rstd_N;
    at::Tensor gate_up_N2I;
    std::vector<std::vector<at::Tensor>> z;  ///< [LayerMatrix] -> per run
};

}  // namespace hetlora
