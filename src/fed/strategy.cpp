#include "hetlora/fed/strategy.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {

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

/// Keys that describe a policy which this strategy does not have. (A resolved config names every key, so that it is the
/// value that counts, not whether the key was given.)
void check_unused_keys(const Strategy& s, const StrategySettings& chosen) {
    const StrategySettings defaults;
    const auto refuse = [&](std::string_view key, bool is_set, bool used, std::string_view needs) {
        if (used || !is_set) return;
        throw usage_error("strategy.{} has no effect with preset {}: it is used with strategy.{} only - remove it", key,
                          s.preset, needs);
    };
    refuse("factor_split", chosen.factor_split.has_value(), s.merge == Merge::product, "merge = product");
    refuse("keep_uncovered", chosen.keep_uncovered.has_value(), s.merge == Merge::factors, "merge = factors");
    refuse("keep_energy", chosen.keep_energy != defaults.keep_energy, s.base_update == BaseUpdate::truncated,
           "base_update = truncated");
    refuse("prox_mu", chosen.prox_mu != defaults.prox_mu, s.local_extra == LocalExtra::proximal,
           "local_extra = proximal");
    refuse("rank_levels", !chosen.rank_levels.empty(), s.slot_norm == SlotNorm::levels, "slot_norm = levels");
    refuse("anneal_start", chosen.anneal_start != defaults.anneal_start, s.rank_schedule == RankSchedule::annealing,
           "rank_schedule = annealing");
}

void check_sparsity_keys(const Strategy& s, const Settings& settings) {
    if (s.client_weight != ClientWeight::sparsity) {
        const auto refuse = [&](std::string_view key, std::string_view value) {
            return usage_error(
                "strategy.{} = {} has no effect with client_weight = {} (preset {}): it describes sparsity weights - "
                "remove it, or set strategy.client_weight = sparsity",
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
            "every client cancels) - remove it");
    }
}

/// A combination that makes no sense, with the reason. Each rule names the policy to change.
struct PolicyRule {
    bool broken;
    std::string_view what;
    std::string_view why;
};

/// Of a method without adapters only the weights of the clients are a choice.
bool is_full(const Strategy& s) {
    Policies row{.trainable = Trainable::base, .aggregate = Aggregate::deltas};
    row.client_weight = s.client_weight;
    return static_cast<const Policies&>(s) == row && s.client_weight != ClientWeight::sparsity;
}

/// What training the base itself has no answer to.
void check_base_training(const Strategy& s, const Settings& settings) {
    if (!s.trains_base()) return;
    const auto refuse = [&](bool broken, std::string_view what, std::string_view mend) {
        if (!broken) return;
        throw usage_error(
            "{} cannot go with strategy.preset = {}, which trains all weights of the base and no adapter: {}", what,
            s.preset, mend);
    };
    refuse(settings.model.precision == Precision::bf16, "model.precision = bf16",
           "small steps would be lost in 8 bits, take fp32 (or fp64)");
    refuse(settings.model.task == Task::classification, "model.task = classification",
           "it is for next tokens only, take an adapter method");
    refuse(!settings.model.adapter.empty(), "model.adapter",
           "merge that adapter into the base first (peft's merge_and_unload) and name the result as model.path");
    refuse(!settings.strategy.plugin.empty(), "strategy.plugin", "its parts are about adapters, remove it");
    refuse(settings.log.spectra > 0, "log.spectra", "its columns are about adapters, take log.spectra = 0");
    refuse(settings.compute.device == DeviceChoice::cuda, "compute.device = cuda",
           "it is for the CPU only, take compute.device = cpu");
    refuse(settings.compute.gemm != GemmChoice::automatic && settings.compute.gemm != GemmChoice::mkl,
           fmt::format("compute.gemm = {}", name_of(settings.compute.gemm)),
           "packed matrices cannot follow the weights, leave it at auto");
    refuse(settings.compute.recompute == Recompute::layer, "compute.recompute = layer",
           "autograd keeps every layer, lower compute.pack_tokens instead (rows of a pass)");
}

void check_combination(const Strategy& s) {
    const bool factors = s.merge == Merge::factors;
    const bool prefix = s.slot_select == SlotSelect::prefix;
    const bool deltas = s.aggregate == Aggregate::deltas;
    const PolicyRule rules[] = {
        {s.trains_base() && !is_full(s), "trainable = base",
         "all weights are trained and their changes averaged, so that no policy of adapters means anything: use preset "
         "full, with client_weight = uniform or samples at most"},
        {s.requires_equal_lora_ranks && s.prunes(), "local_extra = tail_prune",
         "pruning makes lora_ranks unequal, and this method is defined for equal ones: use preset hetlora"},
        {s.prunes() && !prefix, "local_extra = tail_prune",
         "the tail is the last of the leading slots: it needs slot_select = prefix"},
        {s.prunes() && (s.slot_norm == SlotNorm::levels || s.slot_norm == SlotNorm::replicate),
         "local_extra = tail_prune", "pruned lora_ranks leave the rank levels that this slot_norm is made of"},
        {s.prunes() && s.rank_schedule != RankSchedule::none, "local_extra = tail_prune",
         "rank_schedule already sets every client's lora_rank"},
        {s.prunes() && s.merge == Merge::stack, "local_extra = tail_prune",
         "every round starts from a fresh adapter, whose tail is zero: nothing would ever be pruned"},
        {s.slot_norm == SlotNorm::levels && s.rank_schedule != RankSchedule::none, "rank_schedule",
         "a falling lora_rank leaves the rank levels that slot_norm = levels is made of"},
        {s.prunes() && s.trainable != Trainable::both, "local_extra = tail_prune",
         "its regulariser and its test need both factors to train: set trainable = both"},
        {!factors && !(prefix && s.receive == Receive::selected), "merge",
         "products and stacks are made of the clients' leading slots: use slot_select = prefix, receive = selected"},
        {!factors && s.trainable != Trainable::both, "merge",
         "products and stacks are of factors that both train: use trainable = both"},
        {!factors && deltas, "aggregate = deltas",
         "a product or a stack is not linear in the factors: use merge = factors, or aggregate = parameters"},
        {s.merge == Merge::stack && s.base_update != BaseUpdate::merge && s.base_update != BaseUpdate::truncated,
         "merge = stack", "a stack has more slots than any client: it must go into the base (base_update = merge)"},
        {s.merge != Merge::stack && (s.base_update == BaseUpdate::merge || s.base_update == BaseUpdate::truncated),
         "base_update", "what goes into the base is the stack of all clients: it needs merge = stack"},
        {s.merge == Merge::stack && s.slot_norm != SlotNorm::all, "slot_norm",
         "slots of a stack are nobody else's: there is nothing to share a weight with"},
        {s.base_update == BaseUpdate::residual &&
             !(factors && prefix && s.slot_norm == SlotNorm::all && s.trainable == Trainable::both && !deltas &&
               !s.prunes() && !s.is_personal() && s.keep_uncovered != KeepUncovered::last),
         "base_update = residual",
         "it is what the plain mean of both factors misses: use it with merge = factors, slot_norm = all, trainable = "
         "both, shared_factors = both, aggregate = parameters, no pruning, and without keep_uncovered = last"},
        {s.slot_norm == SlotNorm::levels && s.merge != Merge::product, "slot_norm = levels",
         "rank levels partition the product: it needs merge = product"},
        {s.slot_norm == SlotNorm::replicate &&
             !(factors && prefix && !deltas && s.client_weight != ClientWeight::sparsity),
         "slot_norm = replicate",
         "it fills missing leading slots of parameters: use merge = factors, slot_select = prefix, aggregate = "
         "parameters, client_weight = uniform or samples"},
        {s.server_optimizer != ServerOptimizer::none && !(factors && deltas), "server_optimizer",
         "it steps along the mean change of the factors: use merge = factors and aggregate = deltas"},
        {deltas && s.keep_uncovered != KeepUncovered::no, "keep_uncovered",
         "the delta form (aggregate = deltas) never erases a slot, since uncovered slots get no change: remove it"},
        {s.slot_scale == SlotScale::sketch && !(s.selects() && s.receive == Receive::selected), "slot_scale = sketch",
         "it makes up for slots that a client does not have: use slot_select = random"},
        {s.slot_select == SlotSelect::scored && !(s.receive == Receive::all && deltas && s.slot_norm == SlotNorm::all &&
                                                  s.client_weight != ClientWeight::sparsity),
         "slot_select = scored",
         "the choice differs by matrix: use receive = all, aggregate = deltas, slot_norm = all, client_weight = "
         "uniform or samples"},
        {s.slot_select == SlotSelect::scored && s.trainable == Trainable::both, "slot_select = scored",
         "a slot's score is the change of one factor beside the other one: use trainable = alternate or b"},
        {s.receive == Receive::all && s.client_weight == ClientWeight::sparsity, "client_weight = sparsity",
         "the norm would be of slots that the client did not train: use receive = selected"},
        {s.receive == Receive::all && prefix, "receive = all",
         "with slot_select = prefix only the leading slots would ever be trained by small clients: use receive = "
         "selected, or slot_select = random"},
        {s.is_personal() && !(factors && prefix && s.trainable == Trainable::both && !s.prunes() &&
                              s.client_weight != ClientWeight::sparsity && s.rank_schedule == RankSchedule::none),
         "shared_factors = a",
         "B is a client's own: use merge = factors, slot_select = prefix, trainable = both, no pruning, no schedule, "
         "client_weight = uniform or samples"},
    };
    for (const PolicyRule& rule : rules) {
        if (rule.broken) throw usage_error("strategy.{} with preset {}: {}", rule.what, s.preset, rule.why);
    }
}

}  // namespace

Strategy resolve_strategy(const Settings& settings) {
    const StrategySettings& chosen = settings.strategy;
    const StrategyPreset& preset = find_strategy_preset(chosen.preset);
    Strategy s;
    static_cast<Policies&>(s) = preset.policies;
    const auto take = [](auto& policy, const auto& value) { policy = value.value_or(policy); };
    take(s.slot_select, chosen.slot_select);
    take(s.receive, chosen.receive);
    take(s.slot_scale, chosen.slot_scale);
    take(s.trainable, chosen.trainable);
    take(s.local_extra, chosen.local_extra);
    take(s.shared_factors, chosen.shared_factors);
    take(s.client_weight, chosen.client_weight);
    take(s.merge, chosen.merge);
    take(s.slot_norm, chosen.slot_norm);
    take(s.aggregate, chosen.aggregate);
    take(s.factor_split, chosen.factor_split);
    take(s.base_update, chosen.base_update);
    take(s.server_optimizer, chosen.server_optimizer);
    take(s.rank_schedule, chosen.rank_schedule);
    take(s.keep_uncovered, chosen.keep_uncovered);
    s.preset = preset.name;
    s.requires_equal_lora_ranks = preset.requires_equal_lora_ranks;
    s.prune_gamma = chosen.prune_gamma;
    s.prune_lambda = chosen.prune_lambda;
    s.prune_reference = chosen.prune_reference;
    s.prune_rounding = chosen.prune_rounding;
    s.tail_norm_epsilon = chosen.tail_norm_epsilon;
    s.weight_scope = chosen.weight_scope;
    s.weight_norm = chosen.weight_norm;
    s.weight_includes_scale = chosen.weight_includes_scale;
    s.rank_min = settings.lora.rank_min;
    s.rank_max = settings.lora.rank_max;
    s.keep_energy = chosen.keep_energy;
    s.prox_mu = chosen.prox_mu;
    s.server_learning_rate = chosen.server_learning_rate;
    s.server_beta1 = chosen.server_beta1;
    s.server_beta2 = chosen.server_beta2;
    s.server_epsilon = chosen.server_epsilon;
    s.rank_levels = chosen.rank_levels;
    s.anneal_start = chosen.anneal_start;
    check_values(s);
    check_unused_keys(s, chosen);
    check_sparsity_keys(s, settings);
    check_combination(s);
    check_base_training(s, settings);
    return s;
}

Factors trained_factors(const Strategy& strategy, std::int64_t round) {
    switch (strategy.trainable) {
        case Trainable::b:
            return {.a = false, .b = true};
        case Trainable::alternate:
            return {.a = round % 2 == 0, .b = round % 2 != 0};
        case Trainable::base:
            return {.a = false, .b = false};
        case Trainable::both:
            break;
    }
    return {};
}

Factors sent_factors(const Strategy& strategy, std::int64_t round) {
    if (strategy.shared_factors == SharedFactors::a) return {.a = true, .b = false};
    return trained_factors(strategy, round);
}

std::int64_t lora_rank_cap(const Strategy& strategy, std::int64_t round, std::int64_t rounds) {
    if (strategy.rank_schedule == RankSchedule::none) return strategy.rank_max;
    const double first = std::floor(strategy.anneal_start * static_cast<double>(rounds) + 1e-9);
    const double span = static_cast<double>(rounds) - first;
    const double at = static_cast<double>(round) - first;
    if (at <= 0.0 || span <= 0.0) return strategy.rank_max;
    const double low = static_cast<double>(strategy.rank_min);
    const double high = static_cast<double>(strategy.rank_max);
    const double cap = high * std::pow(low / high, at / span);
    return std::max(strategy.rank_min, static_cast<std::int64_t>(std::llround(cap)));
}

void fit_to_lora_ranks(Strategy& strategy, std::span<const std::int64_t> lora_ranks) {
    if (lora_ranks.empty()) return;
    const auto bounds = std::ranges::minmax(lora_ranks);
    if (strategy.requires_equal_lora_ranks && bounds.min != bounds.max) {
        throw usage_error(
            "strategy.preset = {} is defined for equal lora_ranks, but the clients have {} to {} - set "
            "lora.rank_distribution = fixed, or use preset zeropad for mixed ranks",
            strategy.preset, bounds.min, bounds.max);
    }
    if (strategy.slot_norm != SlotNorm::levels) return;
    std::vector<std::int64_t>& levels = strategy.rank_levels;
    if (levels.empty()) levels.assign(lora_ranks.begin(), lora_ranks.end());
    std::ranges::sort(levels);
    levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
    for (const std::int64_t lora_rank : lora_ranks) {
        if (std::ranges::binary_search(levels, lora_rank)) continue;
        throw usage_error(
            "strategy.rank_levels: a client has lora_rank {}, which is none of the levels {} - add it, or leave "
            "rank_levels empty so that they are the clients' lora_ranks",
            lora_rank, fmt::join(levels, ","));
    }
}

}  // namespace hetlora
