// Which matrices carry a LoRA adapter, and how an adapter of any lora_rank lies in memory.
//
// Canonical ("wire") form at lora_rank r, matrix after matrix in layout order:
//     A  [r, d_in ]  row-major
//     Bt [r, d_out]  row-major  (B transposed)
// so that slot i of a matrix is row i of both, and truncation to r' < r keeps leading rows (HetLoRA, step 1).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace hetlora {

/// One adapted matrix W0 of shape [d_out, d_in]; its adapter adds s * B A.
struct AdaptedMatrix {
    std::string name;    ///< e.g. "model.layers.3.self_attn.q_proj"
    int layer = 0;       ///< transformer layer
    std::string target;  ///< "q_proj", ...
    std::int64_t d_out = 0;
    std::int64_t d_in = 0;
    bool ambiguous = false;  ///< another module's name ends in `target`, too: peft needs the whole name
};

/// All adapted matrices of a model, ordered by layer, then q, k, v, o, gate, up, down.
struct AdapterLayout {
    std::vector<AdaptedMatrix> matrices;

    /// Sum over matrices of d_in + d_out: parameters of one slot.
    [[nodiscard]] std::int64_t parameters_per_slot() const;
    /// P(r): parameters of an adapter of this lora_rank.
    [[nodiscard]] std::int64_t parameters(std::int64_t lora_rank) const;
    /// Offset of A of matrix m in the canonical form at this lora_rank (in elements).
    [[nodiscard]] std::int64_t offset_a(std::size_t matrix, std::int64_t lora_rank) const;
    /// Offset of Bt of matrix m in the canonical form at this lora_rank (in elements).
    [[nodiscard]] std::int64_t offset_b(std::size_t matrix, std::int64_t lora_rank) const;
};

/// Which factors of an adapter local training changes; the other one stays as it was received.
enum class TrainedFactors { both, a_only, b_only };

/// Copies the leading min(from_rank, to_rank) slots of every matrix; slots beyond from_rank become 0.
/// With to_rank < from_rank this is HetLoRA's truncation, with to_rank > from_rank its zero-padding.
/// @pre from.size() == layout.parameters(from_rank), to.size() == layout.parameters(to_rank)
template <typename T>
void resize_adapter(const AdapterLayout& layout, std::span<const T> from, std::int64_t from_rank, std::span<T> to,
                    std::int64_t to_rank);

/// Gathers slots: slot j of every matrix of `to` is slot slots[j] of `from`, in any order. With slots 0 to k - 1 it is
/// resize_adapter's truncation.
/// @pre from.size() == layout.parameters(from_rank), to.size() == layout.parameters(slots.size())
/// @throws Error (bug) for other sizes, or a slot outside [0, from_rank)
template <typename T>
void select_slots(const AdapterLayout& layout, std::span<const T> from, std::int64_t from_rank,
                  std::span<const std::int64_t> slots, std::span<T> to);

/// Scatters slots, the inverse of select_slots: slot slots[j] of every matrix of `to` becomes slot j of `from`, the
/// others stay. Of a slot that is named twice the last one counts.
/// @pre from.size() == layout.parameters(slots.size()), to.size() == layout.parameters(to_rank)
/// @throws Error (bug) for other sizes, or a slot outside [0, to_rank)
template <typename T>
void place_slots(const AdapterLayout& layout, std::span<const T> from, std::span<const std::int64_t> slots,
                 std::span<T> to, std::int64_t to_rank);

}  // namespace hetlora
