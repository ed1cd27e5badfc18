#include "hetlora/fed/gathered_merge.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/round.hpp"

namespace hetlora {
namespace {

/// The clients that were not dropped, in cohort order.
std::vector<UploadedFactors> uploads_of(const GatheredMerge& input) {
    if (input.uploads.size() != input.reports.size()) {
        throw bug_error("{} uploads for {} reports", input.uploads.size(), input.reports.size());
    }
    std::vector<UploadedFactors> uploads;
    for (std::size_t i = 0; i < input.reports.size(); ++i) {
        const ClientReport& report = input.reports[i];
        if (report.dropped) continue;
        uploads.push_back({.client = report.client,
                           .factors = input.uploads[i].factors,
                           .lora_rank = report.lora_rank_after,
                           .scale = lora_scale(input.lora, report.lora_rank_after),
                           .weights = report.weights});
    }
    return uploads;
}

SlotWeighting weighting_of(SlotNorm norm) {
    switch (norm) {
        case SlotNorm::contributors:
            return SlotWeighting::contributors;
        case SlotNorm::levels:
            return SlotWeighting::levels;
        default:
            return SlotWeighting::all;
    }
}

double global_scale(const GatheredMerge& input) { return lora_scale(input.lora, input.init.rank_max); }

}  // namespace

MergeResult keep_adapter(const GatheredMerge& input) {
    MergeResult result;
    result.client_weight = normalised_weights(input.reports, input.layout.matrices.size());
    result.changed = std::ranges::any_of(input.reports, [](const auto& report) { return !report.dropped; });
    result.global.assign(input.previous.begin(), input.previous.end());
    return result;
}

MergeResult merge_products(const GatheredMerge& input) {
    MergeResult result = keep_adapter(input);
    if (!result.changed) return result;
    const auto uploads = uploads_of(input);
    const SlotWeights weights =
        slot_weights(input.layout, uploads, weighting_of(input.strategy.slot_norm), input.strategy.rank_levels);
    result.global = merge_by_product({.layout = input.layout, .uploads = uploads, .weights = weights},
                                     {.rank_max = input.init.rank_max,
                                      .scale = global_scale(input),
                                      .split = input.strategy.factor_split,
                                      .seed = input.init.seed_init,
                                      .round_to_fp32 = input.init.round_to_fp32})
                        .global;
    return result;
}

LowRankDelta stack_of(const GatheredMerge& input) {
    const auto uploads = uploads_of(input);
    if (uploads.empty()) return {};
    const SlotWeights weights = slot_weights(input.layout, uploads, SlotWeighting::all);
    LowRankDelta stack = stack_updates({.layout = input.layout, .uploads = uploads, .weights = weights});
    if (input.strategy.base_update == BaseUpdate::truncated) {
        return truncate_by_energy(stack, input.strategy.keep_energy).delta;
    }
    return stack;
}

LowRankDelta residual_of(const GatheredMerge& input, std::span<const double> merged) {
    const auto uploads = uploads_of(input);
    if (uploads.empty()) return {};
    const SlotWeights weights = slot_weights(input.layout, uploads, SlotWeighting::all);
    return residual_delta({.layout = input.layout, .uploads = uploads, .weights = weights}, merged, input.init.rank_max,
                          global_scale(input));
}

}  // namespace hetlora
