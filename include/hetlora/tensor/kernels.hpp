// The CPU kernels of the training step: everything between two GEMMs, on raw pointers, without LibTorch.
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
};

template <typename T>
struct Kernels {
    /// y = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + eps), row by row; rstd_N is written if not null.
    void (*rms_norm)(const T* x_ND, const T* w_D, T* y_ND, T* rstd_N, std::int64_t rows, std::int64_t width,
                     double eps);
    /// dx += d/dx of rms_norm given dy. @pre rstd_N from the forward.
    void (*rms_norm_backward)(const T* dy_ND, const T* x_ND, const T* w_D, const T* rstd_N, T* dx_ND, std::int64_t rows,
                              std::int64_t width);
    /// Rotary positions in place, half-split convention (element i with i + E/2); direction -1 is the transpose.
    /// cos and sin are [positions, E/2]; position_N picks the row; x has `heads` heads of E elements at each row.
    void (*rotary)(T* x, std::int64_t row_stride, const T* cos, const T* sin, const std::int32_t* position_N,
                   std::int64_t rows, std::int64_t heads, std::int64_t head_size, int direction);
    /// out = silu(gate) * up; gate_up rows are [gate | up] of 2 * width, out rows of width.
    void (*swiglu)(const T* gate_up, T* out, std::int64_t rows, std::int64_t width);
    /// Gradient of swiglu: writes [d_gate | d_up] over dgate_up from d_out (may not alias gate_up).
    void (*swiglu_backward)(const T* d_out, const T* gate_up, T* dgate_up, std::int64_t rows, std::int64_t width);
    /// Causal attention of one (sequence, query head); also the row-wise log-sum-exp, lse[row * heads + head].
    void (*attention)(const T* q, const T* k, const T* v, T* out, T* lse, const AttentionShape& shape,
                      AttentionSpan span, std::int64_t head, T* scratch);
    /// Gradients for one (sequence, key/value head), all its query heads; dq, dk, dv have the strides of q, k, v.
    void (*attention_backward)(const T* q, const T* k, const T* v, const T* out, const T* lse, const T* d_out, T* dq,
                               T* dk, T* dv, const AttentionShape& shape, AttentionSpan span, std::int64_t kv_head,
                               T* scratch);
    /// Softmax cross-entropy of each row: loss_N = lse - logit[target]; with want_gradient the logits become
    /// row_scale_N * (softmax - onehot) in place. correct_N (may be null) = 1 where the target has the largest logit.
    void (*cross_entropy)(T* logits_NV, const std::int64_t* target_N, const T* row_scale_N, double* loss_N,
                          std::uint8_t* correct_N, std::int64_t rows, std::int64_t vocabulary, bool want_gradient);
    /// Sum of squares in float64, in a fixed order.
    double (*sum_of_squares)(const T* x, std::int64_t count);
    /// One AdamW step (Loshchilov and Hutter; PyTorch's order of operations) on `count` parameters.
    void (*adamw)(T* theta, const T* gradient, T* moment1, T* moment2, std::int64_t count, double learning_rate,
                  double weight_decay, double beta1, double beta2, double epsilon, std::int64_t step);
};

/// Elements of scratch that one call of attention (or attention_backward) needs for a sequence of this length.
[[nodiscard]] std::int64_t attention_scratch_size(std::int64_t length, std::int64_t head_size);

/// Highest level that this build has and this processor can run.
[[nodiscard]] VectorLevel best_vector_level();
/// Chooses the level for the whole process (default: the best one). Throws usage_error for one that cannot run here.
void set_vector_level(VectorLevel level);
[[nodiscard]] VectorLevel vector_level();
[[nodiscard]] std::string_view to_string(VectorLevel level);

/// The table of the level in use. T is float or double.
template <typename T>
[[nodiscard]] const Kernels<T>& kernels();

}  // namespace hetlora
