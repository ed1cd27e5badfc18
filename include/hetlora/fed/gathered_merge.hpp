// Root's merges of methods that need every client's factors: means of products, stacks, and what a mean of factors
// misses. The mathematics is in product_merge.hpp; here a round's reports and uploads are brought into its terms.
#pragma once

#include <span>

#include "hetlora/fed/exchange.hpp"
#include "hetlora/fed/merge.hpp"
#include "hetlora/fed/product_merge.hpp"

namespace hetlora {

/// Everything such a merge needs.
struct GatheredMerge {
    const AdapterLayout& layout;
    const Strategy& strategy;
    std::span<const ClientReport> reports;    ///< in cohort order, dropped ones included
    std::span<const GatheredUpload> uploads;  ///< in cohort order
    std::span<const double> previous;         ///< P(rank_max), the global adapter that was sent out
    AdapterInitLaw init;
    const LoraSettings& lora;
};

/// merge = product: the mean of s_k B_k A_k by slot_norm, cut to rank_max and split by factor_split.
[[nodiscard]] MergeResult merge_products(const GatheredMerge& input);
/// merge = stack: the global adapter stays; only the weights and statistics of the round are filled in.
[[nodiscard]] MergeResult keep_adapter(const GatheredMerge& input);
/// merge = stack: sum_k p_k s_k B_k A_k as stacked factors, cut where base_update = truncated. Empty if all clients
/// were dropped.
[[nodiscard]] LowRankDelta stack_of(const GatheredMerge& input);
/// base_update = residual: sum_k p_k s_k B_k A_k - s B A for the merged adapter B A. Empty if all clients were dropped.
[[nodiscard]] LowRankDelta residual_of(const GatheredMerge& input, std::span<const double> merged);

}  // namespace hetlora
