// The CPU kernels of the training step: everything between two GEMMs, on raw pointers, without LibTorch's
// tensors.
//
// The same source (src/tensor/kernels.inc) is compiled once per vector level; `kernels<T>()` gives the table of the
// level in use. Every kernel works on whole rows and a row's result never depends on its neighbours, so that a
// client's numbers do not depend on who shares its pack. Row-major throughout.
// Shape letters: N rows, D width, H query heads, K key/value heads, E head size, V vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// Vector instruction sets that the kernels are compiled for, lowest first.
enum class VectorLevel : int { baseline = 0, avx2 = 1, avx512 = 2 };

/// One attention problem: a sequence of `length` rows inside the flat buffers, whose first row is `row0`.
struct AttentionSpan {
    std::int64_t row0 = 0;
    std::int64_t length = 0;
};

/// Geometry shared by all sequences of a call. Strides are elements between consecutive rows.
struct AttentionShape {
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_size = 0;
    std::int64_t q_stride = 0;
    std::int64_t kv_stride = 0;
    std::int64_t out_stride = 0;
    double scale = 1.0;
    bool causal = true;  ///< a row sees itself and those before it; else all of its sequence
};

/// Between the two matrices of a feed-forward without a gate.
enum class Activation : int {
    gelu,       ///< x Phi(x)
    gelu_tanh,  ///< its approximation by tanh, "gelu_new"
    relu,
};

/// A bfloat16 as it lies in memory (LibTorch's at::BFloat16, which these files do not know).
struct Bfloat16 {
    std::uint16_t bits;
};

/// What the kernels compute in for values stored as S.
template <typename S>
struct ComputeType {
    using type = S;
};
template <>
struct ComputeType<Bfloat16> {
    using type = float;
};

/// Outputs of a packed frozen matrix that lie together: 128 bytes, whatever the vector level.
template <typename T>
inline constexpr std::int64_t panel_columns = 128 / static_cast<std::int64_t>(sizeof(T));

/// Rows times a packed matrix. Strides are elements between consecutive rows.
struct PanelShape {
    std::int64_t rows = 0;
    std::int64_t inputs = 0;
    std::int64_t outputs = 0;
    std::int64_t x_stride = 0;
    std::int64_t y_stride = 0;
    std::int64_t addend_stride = 0;
};

/// One client's LoRA terms of one matrix. Strides are elements between consecutive rows; the factors are contiguous.
struct LoraShape {
    std::int64_t rows = 0;
    std::int64_t inputs = 0;
    std::int64_t outputs = 0;
    std::int64_t width = 0;  ///< slots W
    std::int64_t x_stride = 0;
    std::int64_t y_stride = 0;   ///< of y and dy
    std::int64_t dx_stride = 0;  ///< backward only
    double scale = 1.0;
};

/// The kernels for activations stored as S; the residual stream, norm weights, rotary tables, log-sum-exps, row scales
/// and everything of the optimiser are T: S itself for float and double, float for bfloat16.
template <typename S>
struct Kernels {
    using T = typename ComputeType<S>::type;
    /// y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps), row by row; rstd_N is written if not null.
    void (*rms_norm)(const T* x_ND, const T* w_D, S* y_ND, T* rstd_N, std::int64_t rows, std::int64_t width,
                     double eps);
    /// dx += d/dx of rms_norm given dy. @pre rstd_N from the forward.
    void (*rms_norm_backward)(const S* dy_ND, const T* x_ND, const T* w_D, const T* rstd_N, T* dx_ND, std::int64_t rows,
                              std::int64_t width);
    /// Rotary positions in place, half-split convention (element i with i + E/2); direction -1 is the transpose.
    /// cos and sin are [positions, E/2]; position_N picks the row; x has `heads` heads of E elements at each row.
    void (*rotary)(S* x, std::int64_t row_stride, const T* cos, const T* sin, const std::int32_t* position_N,
                   std::int64_t rows, std::int64_t heads, std::int64_t head_size, int direction);
    /// out = silu(gate) * up; gate_up rows are [gate | up] of 2 * width, out rows of width.
    void (*swiglu)(const S* gate_up, S* out, std::int64_t rows, std::int64_t width);
    /// Gradient of swiglu: writes [d_gate | d_up] over dgate_up from d_out (may not alias gate_up).
    void (*swiglu_backward)(const S* d_out, const S* gate_up, S* dgate_up, std::int64_t rows, std::int64_t width);
    /// Attention of one (sequence, key/value head), all its query heads; also the row-wise log-sum-exp,
    /// lse[row * heads + head], where lse is not null.
    void (*attention)(const S* q, const S* k, const S* v, S* out, T* lse, const AttentionShape& shape,
                      AttentionSpan span, std::int64_t kv_head, T* scratch);
    /// Gradients for one (sequence, key/value head), all its query heads; dq, dk, dv have the strides of q, k, v.
    void (*attention_backward)(const S* q, const S* k, const S* v, const T* lse, const S* d_out, S* dq, S* dk, S* dv,
                               const AttentionShape& shape, AttentionSpan span, std::int64_t kv_head, T* scratch);
    /// Softmax cross-entropy of each row: loss_N = lse - logit[target]; with want_gradient the logits become
    /// row_scale_N * (softmax - onehot) in place. correct_N (may be null) = 1 where the target has the largest logit.
    void (*cross_entropy)(S* logits_NV, const std::int64_t* target_N, const T* row_scale_N, double* loss_N,
                          std::uint8_t* correct_N, std::int64_t rows, std::int64_t vocabulary, bool want_gradient);
    /// z = x A^T [rows, W] and y += scale z Bt, for A [W, inputs] and Bt [W, outputs].
    void (*lora_forward)(const S* x, const T* a_WI, const T* bt_WO, T* z_RW, S* y, const LoraShape& shape, T* scratch);
    /// dBt = scale z^T dy,  dA = dz^T x,  dx += dz A (where dx is not null), with dz = scale dy B.
    void (*lora_backward)(const S* x, const S* dy, const T* z_RW, const T* a_WI, const T* bt_WO, T* da_WI, T* dbt_WO,
                          S* dx, const LoraShape& shape, T* scratch);
    /// The same where y and dy are of the residual stream.
    void (*lora_forward_residual)(const S* x, const T* a_WI, const T* bt_WO, T* z_RW, T* y, const LoraShape& shape,
                                  T* scratch);
    void (*lora_backward_residual)(const S* x, const T* dy, const T* z_RW, const T* a_WI, const T* bt_WO, T* da_WI,
                                   T* dbt_WO, S* dx, const LoraShape& shape, T* scratch);
    /// out = x + y, element by element (the residual stream plus a branch's output); out may be x.
    void (*add)(const T* x, const S* y, T* out, std::int64_t count);
    /// Sum of squares in float64, in a fixed order.
    double (*sum_of_squares)(const T* x, std::int64_t count);
    /// One AdamW step (Loshchilov and Hutter; PyTorch's order of operations) on `count` parameters.
    void (*adamw)(T* theta, const T* gradient, T* moment1, T* moment2, std::int64_t count, double learning_rate,
                  double weight_decay, double beta1, double beta2, double epsilon, std::int64_t step);
    /// y = (x - mean) * rstd * w + b with rstd = 1 / sqrt(variance + eps), row by row; rstd_N is written if not null.
    void (*layer_norm)(const T* x_ND, const T* w_D, const T* b_D, S* y_ND, T* rstd_N, std::int64_t rows,
                       std::int64_t width, double eps);
    /// dx += d/dx of layer_norm given dy. @pre rstd_N from the forward.
    void (*layer_norm_backward)(const S* dy_ND, const T* x_ND, const T* w_D, const T* rstd_N, T* dx_ND,
                                std::int64_t rows, std::int64_t width);
    /// out = activation(x), element by element; rows are contiguous.
    void (*activate)(const S* x, S* out, std::int64_t rows, std::int64_t width, Activation activation);
    /// dx = d_out * activation'(x); dx may be d_out.
    void (*activate_backward)(const S* d_out, const S* x, S* dx, std::int64_t rows, std::int64_t width,
                              Activation activation);
    /// y = x W^T + addend (which may be null) for W [outputs, inputs] packed as panels
    /// [ceil(outputs / panel_columns), inputs, panel_columns], zeros beyond the last output.
    void (*panel_product)(const T* x, const T* panels, const T* addend, T* y, const PanelShape& shape);
};

/// Elements (of T) of scratch that one call of attention or attention_backward needs for a sequence of this length.
[[nodiscard]] std::int64_t attention_scratch_size(std::int64_t length, std::int64_t head_size);

/// Elements of scratch that lora_forward and lora_backward need.
[[nodiscard]] std::int64_t lora_scratch_size(const LoraShape& shape);

/// Highest level that this build has and this processor can run.
[[nodiscard]] VectorLevel best_vector_level();
/// Chooses the level for the whole process (default: the best one). Throws usage_error for one that cannot run here.
void set_vector_level(VectorLevel level);
[[nodiscard]] VectorLevel vector_level();
[[nodiscard]] std::string_view to_string(VectorLevel level);

/// The table of the level in use. S is float, double or Bfloat16.
template <typename S>
[[nodiscard]] const Kernels<S>& kernels();

}  // namespace hetlora
