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

enum Target : int { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, target_count };

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
    std::vector<std::vector<at::Tensor>> z;  ///< [target] -> per run
};

}  // namespace hetlora
