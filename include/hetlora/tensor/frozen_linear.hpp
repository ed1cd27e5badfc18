// y = x W^T and dx = dy W for a weight that never changes, on the fastest path that this machine has.
//
// LibTorch's default matmul is a third of some processors' speed and all of others', so the path is measured once
// (measure_gemm) and kept. A row's result does not depend on the other rows of the call, nor on how many there are.
// Shape letters: N token rows, I inputs, O outputs.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hetlora/tensor/arena.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// The libraries round the last rows of a call in other ways where their number is not a multiple of this (MKL: one row
/// beyond it): calls to them are padded to it. Passes that already are multiples cost nothing.
inline constexpr std::int64_t gemm_row_block = 16;

enum class GemmPath : int {
    mkl,      ///< at::mm on the weight as it is (MKL on x86; cuBLAS on a GPU)
    onednn,   ///< oneDNN with the weight packed twice, once for each direction; CPU only, float32 and bfloat16
    widened,  ///< bfloat16 on a CPU without bfloat16 instructions: its values, held and multiplied as float32
    tiles,  ///< the program's own kernel on the weight in panels, one copy for each direction; CPU, float32 and float64
};

[[nodiscard]] std::string_view name_of(GemmPath path);

class FrozenLinear {
public:
    FrozenLinear() = default;
    /// @param weight_OI dense; where the path packs, no reference to it is kept: drop yours to have the memory back
    FrozenLinear(const at::Tensor& weight_OI, GemmPath path);

    /// x W^T [N, O], in the weight's dtype.
    [[nodiscard]] at::Tensor forward(const at::Tensor& x_NI, Arena& arena) const;
    /// residual + x W^T, in the residual's dtype. @param residual_NO float32 where the weight is bfloat16
    [[nodiscard]] at::Tensor forward_add(const at::Tensor& x_NI, const at::Tensor& residual_NO, Arena& arena) const;
    /// dy W [N, I], in the weight's dtype.
    [[nodiscard]] at::Tensor backward(const at::Tensor& dy_NO, Arena& arena) const;

    /// FLOPs of one direction for this many rows.
    [[nodiscard]] double flops(std::int64_t rows) const {
        return 2.0 * static_cast<double>(rows) * static_cast<double>(inputs_) * static_cast<double>(outputs_);
    }
    /// Bytes that this weight holds, packed copies included (those of a shared dense weight too).
    [[nodiscard]] std::int64_t bytes() const;

private:
    [[nodiscard]] at::Tensor multiply(const at::Tensor& x, bool transposed, Arena& arena) const;
    [[nodiscard]] at::Tensor multiply_rows(const at::Tensor& x, bool transposed, Arena& arena) const;

    GemmPath path_ = GemmPath::mkl;
    std::int64_t inputs_ = 0;
    std::int64_t outputs_ = 0;
    at::Tensor dense_OI_;         // mkl, widened
    at::Tensor packed_forward_;   // onednn, tiles
    at::Tensor packed_backward_;  // onednn, tiles
};

/// Inputs and outputs of a frozen matrix.
struct GemmShape {
    std::int64_t inputs = 0;
    std::int64_t outputs = 0;
};

struct GemmMeasurement {
    GemmPath path = GemmPath::mkl;
    double seconds = 0.0;  ///< fastest pass, both directions, over all shapes
    double flops_per_s = 0.0;
};

/// Times the paths that can run here on weights of these shapes and dtype: half a second, or five passes of 64 rows.
[[nodiscard]] std::vector<GemmMeasurement> measure_gemm(std::span<const GemmShape> shapes, at::ScalarType dtype,
                                                        at::Device device);

/// The fastest; packed copies cost memory, and a choice that flips between starts changes last bits: they must win by
/// 8 %.
[[nodiscard]] GemmPath fastest_gemm(std::span<const GemmMeasurement> measured);

/// Whether the processor multiplies bfloat16 in hardware.
[[nodiscard]] bool has_bf16_hardware();

}  // namespace hetlora
