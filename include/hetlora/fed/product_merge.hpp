// The server's step for methods that need every client's factors: merges of the products B_k A_k, not of the factors.
//
//     P_m = sum_k sum_j w[k][m][j] s_k b_kj a_kj^T       target of matrix m; k over clients in cohort order, j over
//     slots
//
//   product merge  (FlexLoRA, HLoRA, RB-LoRA, raFLoRA)   s B A = the best approximation of P of rank rank_max
//   stack          (FLoRA)                               (B_cat, A_cat) with B_cat A_cat = P
//   residual       (FedEx-LoRA)                          P - s B_bar A_bar as factors
//
// Weights w, from the clients' weights s_k,m (client_weights()):
//   all           s_k,m / sum over all clients
//   contributors  s_k,m / sum over the clients with lora_rank > j                                (RB-LoRA)
//   levels        as contributors, and every lora_rank must be one of the configured levels:     (raFLoRA)
//                 slot j lies in the partition (l, h] with l <= j < h, and only clients with lora_rank >= h count
//   a sum that is 0: uniform over the clients that would count
//
// Slots without content. Where P has fewer than rank_max directions (null directions, see low_rank.hpp), both factors 0
// would be dead for ever: neither gets a gradient. An SVD leaves these vectors open, so they are drawn: hashed from
// (seed, matrix, slot), orthogonal to the rows before them, norm 1, the same for any cohort.
//   left   B = 0, A = such a row         (what U S and V^T of a full SVD give, without its rounding noise)
//   right  A = 0, B = such a column
//   sqrt   B = 0, A = 0: the slot is dead, which is what the method says; null_slots = learnable: as `left`
// Slots beyond the matrix' own size have no orthogonal row left and are 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/low_rank.hpp"

namespace hetlora {

/// What one client of the cohort sent; dropped clients are left out by the caller.
struct UploadedFactors {
    std::int64_t client = 0;            ///< for messages
    std::span<const double> factors{};  ///< canonical form at lora_rank
    std::int64_t lora_rank = 0;         ///< after pruning
    double scale = 1.0;                 ///< LoRA scale s_k that the client trained with
    std::span<const double> weights{};  ///< one per matrix, >= 0, not normalised
};

/// Over which clients the weights of a slot are normalised.
enum class SlotWeighting { all, contributors, levels };

/// Normalised weights: of_client[k][m * lora_rank_k + j] for client k, matrix m, slot j.
struct SlotWeights {
    std::vector<std::vector<double>> of_client;
};

/// @param levels the configured lora_ranks, ascending; used by `levels` only
/// @throws Error (usage) naming a client whose lora_rank is not a level, (bug) if a weight is negative or not finite
[[nodiscard]] SlotWeights slot_weights(const AdapterLayout& layout, std::span<const UploadedFactors> uploads,
                                       SlotWeighting weighting, std::span<const std::int64_t> levels = {});

/// The clients of one round in cohort order, at least one.
struct ProductMergeInput {
    const AdapterLayout& layout;
    std::span<const UploadedFactors> uploads;
    const SlotWeights& weights;
};

/// What `sqrt` makes of slots without content.
enum class NullSlots { literal, learnable };

struct ProductMergeOptions {
    std::int64_t rank_max = 0;
    double scale = 1.0;  ///< s of the receiving side: s B A is the target
    FactorSplit split = FactorSplit::left;
    NullSlots null_slots = NullSlots::literal;
    std::uint64_t seed = 0;      ///< of the rows drawn for slots without content
    bool round_to_fp32 = false;  ///< a run in fp32 rounds the result once
    SvdDriver driver = SvdDriver::automatic;
};

/// The new factors of one matrix.
struct MergedMatrix {
    std::vector<double> a;                ///< [rank_max, d_in]
    std::vector<double> bt;               ///< [rank_max, d_out]
    std::vector<double> singular_values;  ///< of P, all of them, descending
    double energy_kept = 1.0;             ///< share of ||P||_F^2 in the leading rank_max
    std::int64_t n_filled = 0;            ///< slots with content: min(rank_max, number of non-zero singular values)
};

struct ProductMergeResult {
    std::vector<double> global;          ///< canonical form at rank_max
    std::vector<MergedMatrix> matrices;  ///< what was measured; `a` and `bt` are empty (they are in `global`)
};

/// Matrix m of the layout alone, so that MPI ranks can share the matrices. The bits do not depend on the others.
/// @throws Error (training) naming matrix and client if a value is not finite, (bug) if sizes do not fit
[[nodiscard]] MergedMatrix merge_matrix_by_product(const ProductMergeInput& input, const ProductMergeOptions& options,
                                                   std::size_t matrix);

/// All matrices, spread over LibTorch's threads.
[[nodiscard]] ProductMergeResult merge_by_product(const ProductMergeInput& input, const ProductMergeOptions& options);

/// (B_cat, A_cat) of every matrix: all clients' slots one after another, w and s_k multiplied into A only. Exact.
[[nodiscard]] LowRankDelta stack_updates(const ProductMergeInput& input);

/// P - s B_bar A_bar, with B_bar_j = sum_k w[k][m][j] b_kj. No difference of large products is taken:
///     sum_kj w s_k b_kj a_kj^T - s sum_j B_bar_j A_bar_j^T = sum_kj w b_kj (s_k a_kj - s A_bar_j)^T
/// and the rank is at most sum_k lora_rank_k.
/// @param global (A_bar, B_bar) at rank_max, as the clients receive it
/// @param scale s of the receiving side
/// @throws Error (bug) if B_bar in `global` is not the mean of the uploads (to 1e-5: it may be rounded to fp32)
[[nodiscard]] LowRankDelta residual_delta(const ProductMergeInput& input, std::span<const double> global,
                                          std::int64_t rank_max, double scale);

}  // namespace hetlora
