#include "hetlora/fed/strategy.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {

const std::vector<StrategyPreset>& strategy_presets() {
    static const std::vector<StrategyPreset> presets{
        {.name = "hetlora",
         .aliases = {},
         .slot_norm = SlotNorm::all,
         .client_weight = ClientWeight::sparsity,
         .local_extra = LocalExtra::tail_prune,
         .aggregate = Aggregate::parameters,
         .requires_equal_lora_ranks = false,
         .paper = "Cho et al., EMNLP 2024, arXiv:2401.06432",
         .description = "mixed ranks: truncation, rank self-pruning, zero-padding, weights ||B A||_F"},
        {.name = "hetlora-agg",
         .aliases = {},
         .slot_norm = SlotNorm::all,
         .client_weight = ClientWeight::sparsity,
         .local_extra = LocalExtra::none,
         .aggregate = Aggregate::parameters,
         .requires_equal_lora_ranks = false,
         .paper = "Cho et al., EMNLP 2024, arXiv:2401.06432 (aggregation only)",
         .description = "HetLoRA's weighted aggregation without regulariser and pruning"},
        {.name = "zeropad",
         .aliases = {},
         .slot_norm = SlotNorm::all,
         .client_weight = ClientWeight::samples,
         .local_extra = LocalExtra::none,
         .aggregate = Aggregate::parameters,
         .requires_equal_lora_ranks = false,
         .paper = "common baseline (\"HeteroLoRA\", \"FedIT (zero-pad)\")",
         .description = "mixed ranks: truncation, zero-padding, sample-weighted mean"},
        {.name = "fedavg",
         .aliases = {"homlora", "fedit"},
         .slot_norm = SlotNorm::all,
         .client_weight = ClientWeight::samples,
         .local_extra = LocalExtra::none,
         .aggregate = Aggregate::parameters,
         .requires_equal_lora_ranks = true,
         .paper = "Zhang et al., 2023, arXiv:2305.05644 (FedIT)",
         .description = "one rank for all: sample-weighted mean of A and of B"},
        {.name = "rbla",
         .aliases = {},
         .slot_norm = SlotNorm::contributors,
         .client_weight = ClientWeight::samples,
         .local_extra = LocalExtra::none,
         .aggregate = Aggregate::parameters,
         .requires_equal_lora_ranks = false,
         .paper = "Chen et al., ICWS 2024, arXiv:2408.08699",
         .description = "mixed ranks: every slot is the sample-weighted mean of the clients that have it"},
    };
    return presets;
}

const StrategyPreset& find_strategy_preset(std::string_view name) {
    std::vector<std::string> known;
    for (const auto& preset : strategy_presets()) {
        if (preset.name == name || std::ranges::find(preset.aliases, name) != preset.aliases.end()) return preset;
        known.emplace_back(preset.name);
        known.insert(known.end(), preset.aliases.begin(), preset.aliases.end());
    }
    throw usage_error("strategy.preset: \"{}\" is not a known method{} - 'hetlora strategies' lists them: {}", name,
                      did_you_mean(name, known), join(known, ", "));
}

namespace {

void check_values(const Strategy& s) {
    if (!(s.prune_gamma > 0.0 && s.prune_gamma <= 1.0)) {
        throw usage_error(
            "strategy.prune_gamma = {} - it is the share of slots kept by a prune, in (0, 1]; 1 = no pruning",
            s.prune_gamma);
    }
    if (!(s.prune_lambda >= 0.0) || !std::isfinite(s.prune_lambda)) {
        throw usage_error("strategy.prune_lambda = {} - it needs a number >= 0 (0 = no regulariser)", s.prune_lambda);
    }
    if (!(s.tail_norm_epsilon >= 0.0) || !std::isfinite(s.tail_norm_epsilon)) {
        throw usage_error("strategy.tail_norm_epsilon = {} - it needs a number >= 0", s.tail_norm_epsilon);
    }
}

void check_combination(const Strategy& s, const Settings& settings) {
    if (s.requires_equal_lora_ranks && s.prunes()) {
        throw usage_error(
            "strategy.local_extra = tail_prune with preset {}: pruning makes lora_ranks unequal, and this method is "
            "defined for equal ones - use preset hetlora",
            s.preset);
    }
    if (s.client_weight != ClientWeight::sparsity) {
        const auto refuse = [&](std::string_view key, std::string_view value) {
            return usage_error(
                "strategy.{} = {} has no effect with client_weight = {} (preset {}): it describes sparsity weights - "
                "remove "
                "it, or set strategy.client_weight = sparsity",
                key, value, name_of(s.client_weight), s.preset);
        };
        if (s.weight_scope != WeightScope::client) throw refuse("weight_scope", name_of(s.weight_scope));
        if (s.weight_norm != WeightNorm::root_sum_squares) throw refuse("weight_norm", name_of(s.weight_norm));
        if (s.weight_includes_scale) throw refuse("weight_includes_scale", "true");
    }
    if (s.weight_scope == WeightScope::matrix && s.weight_norm == WeightNorm::sum) {
        throw usage_error(
            "strategy.weight_norm = sum has no effect with weight_scope = matrix (one norm per matrix, nothing to "
            "combine) - remove one of the two");
    }
    if (s.weight_includes_scale && settings.lora.scale_rule == ScaleRule::constant) {
        throw usage_error(
            "strategy.weight_includes_scale = true has no effect with lora.scale_rule = constant (the same factor for "
            "every "
            "client cancels) - remove it");
    }
    if (s.aggregate == Aggregate::deltas && s.keep_uncovered != KeepUncovered::no) {
        throw usage_error(
            "strategy.keep_uncovered = {} with aggregate = deltas: the delta form never erases a slot, since uncovered "
            "slots "
            "get no change - remove it",
            name_of(s.keep_uncovered));
    }
}

}  // namespace

Strategy resolve_strategy(const Settings& settings) {
    const auto& chosen = settings.strategy;
    const auto& preset = find_strategy_preset(chosen.preset);
    Strategy s;
    s.preset = preset.name;
    s.slot_norm = chosen.slot_norm.value_or(preset.slot_norm);
    s.client_weight = chosen.client_weight.value_or(preset.client_weight);
    s.local_extra = chosen.local_extra.value_or(preset.local_extra);
    s.aggregate = chosen.aggregate.value_or(preset.aggregate);
    s.requires_equal_lora_ranks = preset.requires_equal_lora_ranks;
    s.prune_gamma = chosen.prune_gamma;
    s.prune_lambda = chosen.prune_lambda;
    s.prune_reference = chosen.prune_reference;
    s.prune_rounding = chosen.prune_rounding;
    s.tail_norm_epsilon = chosen.tail_norm_epsilon;
    s.weight_scope = chosen.weight_scope;
    s.weight_norm = chosen.weight_norm;
    s.weight_includes_scale = chosen.weight_includes_scale;
    s.keep_uncovered = chosen.keep_uncovered;
    s.rank_min = settings.lora.rank_min;
    check_values(s);
    check_combination(s, settings);
    return s;
}

void check_lora_ranks(const Strategy& strategy, std::span<const std::int64_t> lora_ranks) {
    if (!strategy.requires_equal_lora_ranks || lora_ranks.empty()) return;
    const auto bounds = std::ranges::minmax(lora_ranks);
    if (bounds.min == bounds.max) return;
    throw usage_error(
        "strategy.preset = {} is defined for equal lora_ranks, but the clients have {} to {} - set "
        "lora.rank_distribution = fixed, or use preset zeropad for mixed ranks",
        strategy.preset, bounds.min, bounds.max);
}

}  // namespace hetlora
