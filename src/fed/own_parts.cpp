// Which parts of a method a plugin may take over from which policies.
#include "hetlora/base/error.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {
namespace {

/// A key of [strategy] that says what a part of the plugin says, too.
void check_keys(const OwnParts& own, const StrategySettings& chosen) {
    const StrategySettings defaults;
    const auto refuse = [&](bool both, std::string_view key, std::string_view part) {
        if (!both) return;
        throw usage_error("strategy.plugin {}: its {} takes the place of strategy.{} - remove one of the two",
                          chosen.plugin.string(), part, key);
    };
    refuse(own.select && chosen.slot_select, "slot_select", "select");
    refuse(own.weight && chosen.client_weight, "client_weight", "weight");
    refuse(own.weight && chosen.weight_scope != defaults.weight_scope, "weight_scope", "weight");
    refuse(own.weight && chosen.weight_norm != defaults.weight_norm, "weight_norm", "weight");
    refuse(own.weight && chosen.weight_includes_scale, "weight_includes_scale", "weight");
    refuse(own.merge && chosen.merge, "merge", "merge");
    refuse(own.merge && chosen.slot_norm, "slot_norm", "merge");
    refuse(own.merge && chosen.factor_split, "factor_split", "merge");
    refuse(own.merge && chosen.keep_uncovered, "keep_uncovered", "merge");
}

struct PartRule {
    bool broken;
    std::string_view part;
    std::string_view why;
};

void check_rest(const std::filesystem::path& plugin, const OwnParts& own, const Strategy& s) {
    const bool product = s.merge != Merge::factors && !own.merge;
    const bool scored = s.slot_select == SlotSelect::scored;
    const bool replicate = s.slot_norm == SlotNorm::replicate && !own.merge;
    const PartRule rules[] = {
        {own.select && s.prunes(), "select",
         "pruning cuts the last of the leading slots: use another preset, or local_extra = none"},
        {own.select && product, "select", "products and stacks are made of the clients' leading slots"},
        {own.select && replicate, "select", "slot_norm = replicate fills missing leading slots"},
        {own.select && scored, "select",
         "slots are scored for each matrix by the clients themselves: use another preset"},
        {own.select && s.base_update != BaseUpdate::none, "select", "what goes into the base is made of leading slots"},
        {own.select && s.is_personal(), "select", "a client's own B belongs to its leading slots"},
        {own.weight && replicate, "weight", "slot_norm = replicate needs client_weight = uniform or samples"},
        {own.weight && scored, "weight", "slot_select = scored needs client_weight = uniform or samples"},
        {own.merge && s.base_update != BaseUpdate::none, "merge",
         "the preset changes the frozen base by its own merge: use another preset"},
        {own.merge && s.aggregate == Aggregate::deltas, "merge",
         "it gives new factors, not changes: use aggregate = parameters"},
        {own.merge && s.is_personal(), "merge", "the clients keep their B: there is nothing of it to merge"},
        {own.merge && scored, "merge", "slot_select = scored needs aggregate = deltas"},
        {own.merge && s.weight_scope == WeightScope::matrix, "merge",
         "it gets one weight per client: use weight_scope = client"},
    };
    for (const PartRule& rule : rules) {
        if (rule.broken) {
            throw usage_error("strategy.plugin {}: its {} cannot go with preset {}: {}", plugin.string(), rule.part,
                              s.preset, rule.why);
        }
    }
}

}  // namespace

void adopt_own_parts(Strategy& strategy, const OwnParts& own, const Settings& settings) {
    check_keys(own, settings.strategy);
    check_rest(settings.strategy.plugin, own, strategy);
    strategy.own = own;
    // For everything else (true bytes, which slots are places of their own) the nearest policy stands in.
    if (own.select) strategy.slot_select = SlotSelect::importance;
    if (own.weight) strategy.client_weight = ClientWeight::sparsity;
    if (own.merge) {
        strategy.merge = Merge::factors;
        strategy.slot_norm = SlotNorm::all;
    }
}

}  // namespace hetlora
