// Which slots of an adapter a client receives or trains: by chance, by importance, or by what a first epoch changed.
//
// Slot i of matrix m is the rank-1 term B_m[:, i] A_m[i, :]. All functions are pure: the same inputs give the same
// slots on every MPI rank. Equal values go to the lower matrix, then the lower slot; NaN ranks below every number.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

/// A client's adapter before and after some local training of one of its factors, canonical at lora_rank.
struct FactorChange {
    std::span<const double> received;
    std::span<const double> trained;
    std::int64_t lora_rank = 0;
    TrainedFactors factors = TrainedFactors::b_only;  ///< the factor that trained: a_only or b_only
};

/// LoRA-A2's scores [matrix, slot]: how far each slot's term moved,
///     ||dB_m[:, i] A_m[i, :]||_F = ||dB_m[:, i]|| ||A_m[i, :]||   where B trained,   ||B_m[:, i]|| ||dA_m[i, :]||
///     where A did,
/// with the frozen factor as received.
/// @throws Error (bug) for `both`, or adapters that do not fit the layout
[[nodiscard]] std::vector<double> slot_scores(const AdapterLayout& layout, const FactorChange& change);

/// The `budget` (matrix, slot) pairs of the highest scores over the whole model, as a mask [matrix, slot] of 0 and 1:
/// what ClientTask::trained_slots takes. A budget of all pairs or more chooses all.
[[nodiscard]] std::vector<std::uint8_t> choose_slots(std::span<const double> scores, std::int64_t budget);

/// The mask [matrix, slot] of the same slots in every matrix.
/// @throws Error (bug) for a slot outside [0, lora_rank)
[[nodiscard]] std::vector<std::uint8_t> mask_of_slots(const AdapterLayout& layout, std::int64_t lora_rank,
                                                      std::span<const std::int64_t> slots);

/// Whose slots are drawn, and when.
struct SlotDraw {
    std::uint64_t seed = 0;
    std::int64_t round = 0;
    std::int64_t client = 0;
};

/// k distinct slots out of rank_max, every set equally likely; ascending.
/// @throws Error (bug) unless 0 <= k <= rank_max
[[nodiscard]] std::vector<std::int64_t> random_slots(const SlotDraw& draw, std::int64_t rank_max, std::int64_t k);

/// Energy of each slot of an adapter: sum over matrices of ||A_m[i, :]||^2 ||B_m[:, i]||^2, the squared norm of its
/// terms.
[[nodiscard]] std::vector<double> slot_energies(const AdapterLayout& layout, std::span<const double> adapter,
                                                std::int64_t lora_rank);

/// The k slots of largest energy of the global adapter, canonical at rank_max; ascending. While B is 0 everywhere, they
/// are the first k.
/// @throws Error (bug) unless 0 <= k <= rank_max
[[nodiscard]] std::vector<std::int64_t> important_slots(const AdapterLayout& layout, std::span<const double> global,
                                                        std::int64_t rank_max, std::int64_t k);

}  // namespace hetlora
