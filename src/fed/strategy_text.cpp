// What `hetlora strategies` prints: the table of methods and one method in full.
#include "hetlora/base/error.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

namespace {

std::string aliases_of(const StrategyPreset& preset) {
    std::string text;
    for (const auto alias : preset.aliases) text += fmt::format("{}{}", text.empty() ? "" : ", ", alias);
    return text;
}

std::string local_training(const StrategyPreset& preset) {
    if (preset.local_extra == LocalExtra::none)
        return "  minimise F_k(W0 + s B A), F_k = mean loss of the step's batch\n";
    return "  g = max(rank_min, floor(gamma r + 1e-9))                          [prune_gamma .99, prune_rounding "
           "floor]\n"
           "  minimise F_k(W0 + s B A) + lambda sum_m ||B_m[:, g:r]||_F ||A_m[g:r, :]||_F      [prune_lambda .01]\n"
           "  after training, once:  before = the same sum over the factors as received, after = over the trained "
           "ones\n"
           "  if after < before:  r_k <- g, for good; the slots g..r are not uploaded\n";
}

std::string weights(const StrategyPreset& preset) {
    switch (preset.client_weight) {
        case ClientWeight::uniform:
            return "  s_k = 1\n";
        case ClientWeight::samples:
            return "  s_k = n_k, the training windows of client k\n";
        case ClientWeight::sparsity:
            return "  s_k = sqrt( sum_m ||B_k,m A_k,m||_F^2 ) of the uploaded factors    [weight_scope client, "
                   "weight_norm\n"
                   "        root_sum_squares; no scale inside]; all s_k = 0: uniform weights\n";
    }
    throw bug_error("unknown client weight");
}

std::string merging(const StrategyPreset& preset) {
    if (preset.slot_norm == SlotNorm::contributors) {
        return "  slot i of A and of B:  sum_{k: r_k > i} s_k slot_i(k) / sum_{k: r_k > i} s_k\n"
               "  slots that nobody has: 0                                           [keep_uncovered no | last | "
               "refill]\n";
    }
    return "  A <- sum_k (s_k / Z) pad(A_k, rank_max),  B <- sum_k (s_k / Z) pad(B_k, rank_max),  Z = sum_k s_k\n"
           "  slots that nobody has: 0 (they can never learn again)              [keep_uncovered no | last | refill]\n";
}

std::string notes(const StrategyPreset& preset) {
    std::string text;
    if (preset.client_weight == ClientWeight::sparsity) {
        text +=
            "  weight_scope client: the paper's weight has no layer index; one number per client keeps A and B of all "
            "layers\n"
            "    on one scale. weight_norm root_sum_squares: the norm of all B A as one block-diagonal matrix.\n"
            "  The scale s is left out of the norm, as in the paper's equations (a constant scale cancels).\n";
    }
    if (preset.local_extra == LocalExtra::tail_prune) {
        text +=
            "  prune_reference received: the tail as it came this round, recorded before the first step. In round 1 B "
            "= 0, so\n"
            "    nothing can be pruned before a client receives a non-zero tail.\n"
            "  Strict <; never below rank_min; one rank per client for all matrices; ranks never grow back.\n"
            "  prune_lambda .01 is not the paper's (not published there as far as known): a common choice of "
            "re-implementations.\n"
            "  The regulariser has subgradient 0 at 0, enters before clipping and is not part of train_loss.\n";
    }
    if (preset.slot_norm == SlotNorm::all && !preset.requires_equal_lora_ranks) {
        text +=
            "  Averaging over all clients shrinks slots that few clients have; slots that nobody has become 0 in both "
            "factors\n"
            "    and stay dead. The log counts slots_alive; slot_norm = contributors and keep_uncovered are the "
            "cures.\n";
    }
    if (preset.name == "fedavg") {
        text +=
            "  Equal lora_ranks are required (lora.rank_distribution = fixed); with equal ranks zeropad and rbla are "
            "the same.\n";
    }
    if (preset.name == "rbla") {
        text +=
            "  Deviation: the published code masks missing slots as NaN and leaves uncovered ones undefined; here "
            "keep_uncovered\n"
            "    decides.\n";
    }
    text += "  Slots are positional (leading slots), optimiser state is fresh in every participation, sums are fp64.\n";
    return text;
}

}  // namespace

std::string strategy_table() {
    std::string text = fmt::format("{:<12} {:<14} {:<13} {:<9} {:<11} {}\n", "method", "alias", "slots over", "weight",
                                   "local", "what it is");
    for (const auto& preset : strategy_presets()) {
        text += fmt::format("{:<12} {:<14} {:<13} {:<9} {:<11} {}\n", preset.name, aliases_of(preset),
                            name_of(preset.slot_norm), name_of(preset.client_weight), name_of(preset.local_extra),
                            preset.description);
    }
    text +=
        "\nEvery column is a key of [strategy] (slot_norm, client_weight, local_extra) that overrides the preset.\n"
        "'hetlora strategies NAME' prints one method in full.\n";
    return text;
}

std::string strategy_description(std::string_view name) {
    const auto& preset = find_strategy_preset(name);
    const std::string aliases = aliases_of(preset);
    return fmt::format(
        "{}{} - {}\n{}\n\n"
        "Policies: slot_norm = {}, client_weight = {}, local_extra = {}, aggregate = {}\n\n"
        "1. A client of lora_rank r receives the leading r slots of the global adapter (columns of B, rows of A).\n"
        "2. Local training\n{}"
        "3. Weight of client k\n{}"
        "4. Server, for every adapted matrix\n{}\n"
        "Defaults and notes (docs/methods.md has the reasons in full)\n{}",
        preset.name, aliases.empty() ? "" : fmt::format(" (also: {})", aliases), preset.description, preset.paper,
        name_of(preset.slot_norm), name_of(preset.client_weight), name_of(preset.local_extra),
        name_of(preset.aggregate), local_training(preset), weights(preset), merging(preset), notes(preset));
}

}  // namespace hetlora
