// The operations of a transformer step between two GEMMs, on tensors of flat token rows.
//
// On the CPU they run the kernels of tensor/kernels.hpp, spread over rows by at::parallel_for; on any other device
// they run compositions of ATen's own ops (namespace `aten`), which the tests also hold against the kernels.
// Activations are float32, float64 or bfloat16; with bfloat16 the residual stream (x of rms_norm and add), norm
// weights, rotary tables, log-sum-exps and row scales are float32, and all arithmetic is. A row's result never depends
// on other rows, except inside one sequence of attention. Shape letters: N token rows, D width, I feed-forward width, H
// query heads, K key/value heads, E head size, L loss rows, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "hetlora/tensor/kernels.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora::ops {

/// Runs namespace `aten` on the CPU too: what a GPU would run, for tests and for gpu_check.sh on a machine without one.
void force_aten(bool forced);
/// Whether the CPU's own kernels take this tensor (else ATen's ops).
[[nodiscard]] bool has_kernels(const at::Tensor& x);

/// y = x * rstd * w, rstd_N = (mean(x^2) + eps)^(-1/2). @pre x, y [N, D] contiguous, w [D], rstd [N] (or undefined)
void rms_norm(const at::Tensor& x_ND, const at::Tensor& w_D, double eps, at::Tensor y_ND, at::Tensor rstd_N);
/// dx += gradient of rms_norm.
void rms_norm_backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& w_D, const at::Tensor& rstd_N,
                       at::Tensor dx_ND);

/// y = (x - mean) * rstd * w + b, rstd_N = (variance + eps)^(-1/2). @pre as rms_norm, b [D]
void layer_norm(const at::Tensor& x_ND, const at::Tensor& w_D, const at::Tensor& b_D, double eps, at::Tensor y_ND,
                at::Tensor rstd_N);
/// dx += gradient of layer_norm.
void layer_norm_backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& w_D,
                         const at::Tensor& rstd_N, at::Tensor dx_ND);

/// out = x + y: the residual stream x (and out, which may be x) plus a branch's output y. All contiguous.
void add(const at::Tensor& x, const at::Tensor& y, at::Tensor out);

/// A matrix [O, I] in panels for panel_product: [ceil(O / panel_columns), I, panel_columns]. @pre CPU, not bfloat16
[[nodiscard]] at::Tensor pack_panels(const at::Tensor& w_OI);
/// y = x W^T + addend (where it is defined; it may be y). @pre panels of W, rows of x, addend and y contiguous in
/// themselves; an element's bits depend on its own row alone
void panel_product(const at::Tensor& x_NI, const at::Tensor& panels, const at::Tensor& addend_NO, at::Tensor y_NO);

/// Cosines and sines [positions, E/2] of the rotary embedding: angle = position / theta^(2i/E). Angles are formed in
/// float32 for float32 tables (as transformers does) and in float64 for float64 ones.
struct RotaryTable {
    at::Tensor cos;
    at::Tensor sin;
};
[[nodiscard]] RotaryTable make_rotary_table(std::int64_t positions, std::int64_t head_size, double theta,
                                            const at::TensorOptions& options);
/// The same of given inverse frequencies [E/2]. @pre exact in float32 for float32 tables
[[nodiscard]] RotaryTable make_rotary_table(std::int64_t positions, const std::vector<double>& inverse_frequencies,
                                            const at::TensorOptions& options);
/// Rotates `heads` heads that start at column 0 of x (row stride may be larger than heads * E), in place.
/// direction +1 forward, -1 its transpose (backward). @pre position_N int32, on x's device
void rotary(at::Tensor x_NX, std::int64_t heads, std::int64_t head_size, const RotaryTable& table,
            const at::Tensor& position_N, int direction);

/// out = silu(gate) * up for gate_up = [gate | up].
void swiglu(const at::Tensor& gate_up_N2I, at::Tensor out_NI);
void swiglu_backward(const at::Tensor& d_out_NI, const at::Tensor& gate_up_N2I, at::Tensor dgate_up_N2I);

/// out = activation(x), element by element. @pre both contiguous
void activate(const at::Tensor& x_NI, Activation activation, at::Tensor out_NI);
/// dx = d_out * activation'(x); dx may be d_out.
void activate_backward(const at::Tensor& d_out_NI, const at::Tensor& x_NI, Activation activation, at::Tensor dx_NI);

/// Attention with grouped queries inside each span; lse [N, H] is kept for the backward (may be undefined).
/// q is [N, H*E], k and v [N, K*E], each possibly a column slice of one wider tensor.
/// @param place_N see span_places; the CPU kernels do not read it
/// @param causal a row sees itself and those before it; else its whole span
void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse_NH,
               const at::Tensor& place_N = {}, bool causal = true);
struct AttentionGradient {
    at::Tensor q, k, v;
};
/// Writes dq, dk, dv (same strides as q, k, v).
void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse_NH, const at::Tensor& d_out, AttentionGradient gradient,
                        const at::Tensor& place_N = {}, bool causal = true);

/// The LoRA terms of some clients with equally many consecutive rows each: z = x A^T, y += scale z Bt.
/// x [C*R, I] and y [C*R, O] may be column slices; a [C, W, I], bt [C, W, O] and z [C, R, W] (written) have contiguous
/// clients. On the CPU. x is an activation; y one too, or of the residual stream; a, bt and z are what x is computed in
/// (float for bfloat16).
void lora_forward(const at::Tensor& x, const at::Tensor& a_CWI, const at::Tensor& bt_CWO, double scale, at::Tensor y,
                  at::Tensor z_CRW);
/// Writes da and dbt, and adds to dx (of x's dtype) where that is defined. dy as y above.
void lora_backward(const at::Tensor& x, const at::Tensor& dy, const at::Tensor& z_CRW, const at::Tensor& a_CWI,
                   const at::Tensor& bt_CWO, double scale, at::Tensor da_CWI, at::Tensor dbt_CWO, at::Tensor dx);

/// Loss of each row (loss_L, float64) and, where correct_L (uint8) is defined, whether the target had the largest
/// logit: both on the logits' device. With want_gradient the logits become row_scale_L * (softmax - onehot).
void cross_entropy(at::Tensor logits_LV, const at::Tensor& target_L, const at::Tensor& row_scale_L, at::Tensor loss_L,
                   at::Tensor correct_L, bool want_gradient);

}  // namespace hetlora::ops

namespace hetlora::aten {

// The same operations from ATen's ops alone: for devices without kernels of ours, and as oracle in tests. None waits
// for the device; with bfloat16 activations they compute in float32 and round once, like the kernels.
void rms_norm(const at::Tensor& x_ND, const at::Tensor& w_D, double eps, at::Tensor y_ND, at::Tensor rstd_N);
void rms_norm_backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& w_D, const at::Tensor& rstd_N,
                       at::Tensor dx_ND);
void layer_norm(const at::Tensor& x_ND, const at::Tensor& w_D, const at::Tensor& b_D, double eps, at::Tensor y_ND,
                at::Tensor rstd_N);
void layer_norm_backward(const at::Tensor& dy_ND, const at::Tensor& x_ND, const at::Tensor& w_D,
                         const at::Tensor& rstd_N, at::Tensor dx_ND);
void activate(const at::Tensor& x_NI, Activation activation, at::Tensor out_NI);
void activate_backward(const at::Tensor& d_out_NI, const at::Tensor& x_NI, Activation activation, at::Tensor dx_NI);
void rotary(at::Tensor x_NX, std::int64_t heads, std::int64_t head_size, const ops::RotaryTable& table,
            const at::Tensor& position_N, int direction);
void swiglu(const at::Tensor& gate_up_N2I, at::Tensor out_NI);
void swiglu_backward(const at::Tensor& d_out_NI, const at::Tensor& gate_up_N2I, at::Tensor dgate_up_N2I);

/// Where each row of the spans stands in the grid [sequences, longest] that aten::attention works on, all sequences at
/// once: sequence * longest + position (int64, on the device). Undefined where the spans are equally long: their rows
/// are the grid. Made once per batch, because it is copied from the host. @pre each span starts where the last one
/// ended
[[nodiscard]] at::Tensor span_places(const std::vector<AttentionSpan>& spans, at::Device device);
void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads, std::int64_t kv_heads,
               const std::vector<AttentionSpan>& spans, at::Tensor out, at::Tensor lse_NH,
               const at::Tensor& place_N = {}, bool causal = true);
void attention_backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t heads,
                        std::int64_t kv_heads, const std::vector<AttentionSpan>& spans, const at::Tensor& out,
                        const at::Tensor& lse_NH, const at::Tensor& d_out, ops::AttentionGradient gradient,
                        const at::Tensor& place_N = {}, bool causal = true);
void cross_entropy(at::Tensor logits_LV, const at::Tensor& target_L, const at::Tensor& row_scale_L, at::Tensor loss_L,
                   at::Tensor correct_L, bool want_gradient);

}  // namespace hetlora::aten
