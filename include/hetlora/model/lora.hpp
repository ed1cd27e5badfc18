// LoRA adapters of many clients over flat token rows: y += s * (x A^T) B^T, and its gradients.
//
// Clients whose lora_rank rounds up to the same width form a group; a group's adapters, gradients and optimiser state
// are arenas [C, P], so that optimiser, clipping and norms are loops over contiguous rows. Slots beyond a client's own
// lora_rank are zero and stay zero: their gradients are exactly zero because A and B are zero together.
// Shape letters: C clients, P parameters of one padded adapter, W width (slots), N token rows, D inputs, O outputs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/tensor/arena.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

/// Slots that an adapter of this lora_rank takes in a group: the next multiple of 8.
[[nodiscard]] constexpr std::int64_t lora_width(std::int64_t lora_rank) { return (lora_rank + 7) / 8 * 8; }

/// Views of one adapted matrix into a group's arenas.
struct LoraMatrix {
    at::Tensor a_CWD;
    at::Tensor bt_CWO;
    at::Tensor grad_a_CWD;  ///< undefined in groups without gradients
    at::Tensor grad_bt_CWO;
};

/// A client's adapter in canonical form.
struct ClientFactors {
    std::span<const double> canonical;
    std::int64_t lora_rank = 0;
};

/// Adapters of clients of one width.
class AdapterGroup {
public:
    AdapterGroup(const AdapterLayout& layout, std::int64_t clients, std::int64_t width, bool with_gradient,
                 const at::TensorOptions& options);

    /// Sets a client's adapter from its canonical form; slots from lora_rank to width become 0.
    void set(std::int64_t client, std::span<const double> canonical, std::int64_t lora_rank);
    /// Sets the first clients' adapters: one copy to the device for all of them, through pinned memory on a GPU.
    void set_all(std::span<const ClientFactors> clients);
    /// The client's adapter in canonical form at this lora_rank.
    [[nodiscard]] std::vector<double> get(std::int64_t client, std::int64_t lora_rank) const;
    /// The first clients' adapters: one copy from the device for all of them.
    [[nodiscard]] std::vector<std::vector<double>> get_all(std::span<const std::int64_t> lora_ranks) const;
    /// The client's gradient in canonical form (for tests and the tail regulariser's checks).
    [[nodiscard]] std::vector<double> get_gradient(std::int64_t client, std::int64_t lora_rank) const;

    [[nodiscard]] std::int64_t clients() const { return theta_CP.size(0); }
    [[nodiscard]] std::int64_t width() const { return width_; }
    /// Elements of one client's row, padding included.
    [[nodiscard]] std::int64_t row_size() const { return theta_CP.size(1); }
    /// First element of A (of Bt) of a matrix inside a client's row.
    [[nodiscard]] std::int64_t offset_a(std::size_t matrix) const { return offset_a_[matrix]; }
    [[nodiscard]] std::int64_t offset_b(std::size_t matrix) const { return offset_b_[matrix]; }

    at::Tensor theta_CP;
    at::Tensor gradient_CP;  ///< undefined without gradients
    std::vector<LoraMatrix> matrices;

private:
    /// Writes a client's row of staged_CP (on the host, zeros so far) from its canonical form.
    void write_row(at::Tensor staged_CP, std::int64_t client, const ClientFactors& factors) const;
    [[nodiscard]] std::vector<double> read_row(const at::Tensor& staged_CP, std::int64_t client,
                                               std::int64_t lora_rank) const;

    AdapterLayout layout_;
    std::int64_t width_;
    std::vector<std::int64_t> offset_a_;
    std::vector<std::int64_t> offset_b_;
};

/// Consecutive clients of a group with equally many rows each: one batched GEMM.
struct RowRun {
    AdapterGroup* group = nullptr;
    std::int64_t first_client = 0;
    std::int64_t clients = 0;
    std::int64_t row0 = 0;
    std::int64_t rows_per_client = 0;
    double scale = 1.0;  ///< s in W0 + s B A, of these clients
    /// Seeds of the dropout masks, one per client of the run; unused without dropout.
    std::vector<std::uint64_t> dropout_seed;
};

/// What the LoRA terms of a pass share.
struct LoraPass {
    std::span<const RowRun> runs;
    double dropout = 0.0;  ///< probability; 0 in evaluation
};

/// y[:, :] += s * (dropout(x) A^T) Bt for every run.
/// @param x_ND an activation: in the adapters' dtype, or narrower
/// @param y_NO column slice of the matrix's output, contiguous columns; may be narrower than the adapters' dtype
/// @return the products x A^T of each run, which the backward needs (they live in `arena`)
[[nodiscard]] std::vector<at::Tensor> lora_forward(const LoraPass& pass, std::size_t matrix, const at::Tensor& x_ND,
                                                   at::Tensor y_NO, Arena& arena, Arena& scratch);

/// Writes the gradients of A and Bt, and adds the input's gradient to dx (if defined).
/// dB^T = s z^T dy,  dz = s dy B,  dA = dz^T x,  dx += dz A   with z = x A^T.
/// @param dy_NO of the output or, for what is added to it, of the residual stream; x_ND, dx_ND as in lora_forward
void lora_backward(const LoraPass& pass, std::size_t matrix, const at::Tensor& dy_NO, const at::Tensor& x_ND,
                   const std::vector<at::Tensor>& z_of_run, at::Tensor dx_ND, Arena& scratch);

}  // namespace hetlora
