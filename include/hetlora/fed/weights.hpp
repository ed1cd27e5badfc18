// Norms of adapters without ever forming a d_out x d_in matrix, and the aggregation weights made of them.
//
//     ||B A||_F^2 = sum_ij (B^T B)_ij (A A^T)_ij           two lora_rank x lora_rank Gram matrices, in fp64
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

/// Sum of squares in a fixed order of operations (eight partial sums), independent of the vector width.
[[nodiscard]] double sum_of_squares(std::span<const double> values);

/// x . y in the same order of operations. @pre as many values in both
[[nodiscard]] double dot_product(std::span<const double> x, std::span<const double> y);

/// The Gram matrix rows rows^T, [n_rows, n_rows] row-major.
/// @param rows [n_rows, width] row-major
[[nodiscard]] std::vector<double> gram(std::span<const double> rows, std::int64_t n_rows);

/// ||B_m A_m||_F^2 of every matrix, never negative.
/// @param factors canonical form at lora_rank
[[nodiscard]] std::vector<double> product_norms_squared(const AdapterLayout& layout, std::span<const double> factors,
                                                        std::int64_t lora_rank);

/// Size and spread of a whole adapter.
struct ProductSummary {
    double norm = 0.0;  ///< sqrt(sum_m ||B_m A_m||_F^2), without the LoRA scale
    /// Mean over matrices with B A != 0 of (sum_i sigma_i^2)^2 / sum_i sigma_i^4 (participation ratio of the singular
    /// values of B A: n for n equal singular values); 0 if all are zero.
    double effective_rank = 0.0;
};
[[nodiscard]] ProductSummary summarize_product(const AdapterLayout& layout, std::span<const double> factors,
                                               std::int64_t lora_rank);

/// What the weight of one client is made of.
struct WeightBasis {
    std::span<const double> factors;  ///< uploaded (pruned) factors, canonical at lora_rank
    std::int64_t lora_rank = 0;       ///< after pruning
    double n_samples = 0.0;           ///< training windows of the client
    double lora_scale = 1.0;          ///< s of this client, used if weight_includes_scale
};

/// The client's weight before normalisation, one number per matrix (equal for all matrices unless weight_scope =
/// matrix):
///   uniform 1 | samples n_samples | sparsity sqrt(sum_m ||B A||_F^2), sum_m ||B A||_F, or ||B_m A_m||_F per matrix
[[nodiscard]] std::vector<double> client_weights(const Strategy& strategy, const AdapterLayout& layout,
                                                 const WeightBasis& basis);

}  // namespace hetlora
