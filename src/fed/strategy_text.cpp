// What `hetlora strategies` prints: the table of methods and one method in full, both written from its policies.
#include <fmt/ranges.h>

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/strategy.hpp"
#include "hetlora/fed/true_bytes.hpp"

namespace hetlora {

namespace {

std::string aliases_of(const StrategyPreset& preset) {
    std::string text;
    for (const auto alias : preset.aliases) text += fmt::format("{}{}", text.empty() ? "" : ", ", alias);
    return text;
}

/// Only what differs from zero-padding with sample weights.
std::string difference(const Policies& policies) {
    const auto own = policy_values(policies);
    const auto plain = policy_values(Policies{});
    std::string text;
    for (std::size_t i = 0; i < own.size(); ++i) {
        if (own[i].value == plain[i].value) continue;
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", own[i].key, own[i].value);
    }
    return text.empty() ? "-" : text;
}

std::string distribution(const Policies& p) {
    if (p.trainable == Trainable::base) {
        return "all W weights of the base as the round before left them; no adapter. All keys of [lora] have no "
               "effect.\n";
    }
    std::string text;
    switch (p.slot_select) {
        case SlotSelect::prefix:
            text = "I_k = the leading r_k slots (columns of B, rows of A).\n";
            break;
        case SlotSelect::random:
            text = "I_k = r_k of the rank_max slots, drawn by a hash of seed, round and client.\n";
            break;
        case SlotSelect::importance:
            text = "I_k = the r_k slots with the largest sum over matrices of ||A_i||^2 ||B_i||^2.\n";
            break;
        case SlotSelect::scored:
            text =
                "Client k trains one epoch with all slots, then starts again from what it received; I_k = the r_k M\n"
                "  pairs (matrix m of M, slot i) with the largest ||dB[:, i]||.||A[i, :]||, or ||B[:, i]||.||dA[i, "
                ":]||.\n";
            break;
    }
    text += p.receive == Receive::all
                ? "  It receives all slots; those outside of I_k are in its forward pass, frozen.\n"
                : "  It receives these slots and no others.\n";
    if (p.rank_schedule == RankSchedule::annealing) {
        text +=
            "  r_k is capped at rank_max (rank_min / rank_max)^u, u from 0 after anneal_start of the rounds to 1.\n";
    }
    if (p.merge == Merge::stack)
        text = "A fresh adapter of r_k slots: A_k drawn by a hash of seed, round, client; B_k = 0.\n";
    if (p.shared_factors == SharedFactors::a)
        text += "  B_k is the client's own from its last participation (at first 0).\n";
    return text;
}

std::string local_training(const Policies& p) {
    if (p.trainable == Trainable::base) {
        return "  minimise F_k(theta), F_k = mean loss of the step's batch; theta: embedding, norms, biases, all "
               "matrices, "
               "head\n  (a tied one with the embedding). One client after another, by autograd.\n";
    }
    std::string text = "  minimise F_k(W0 + s B A), F_k = mean loss of the step's batch";
    if (p.slot_scale == SlotScale::sketch) text += "; s is multiplied by rank_max / r_k";
    text += "\n";
    if (p.trainable == Trainable::b) text += "  A is frozen (that of the start), B is trained\n";
    if (p.trainable == Trainable::alternate)
        text += "  odd rounds train B with A frozen, even rounds A with B frozen\n";
    if (p.local_extra == LocalExtra::proximal) {
        text += "  + mu/2 (||A - A received||^2 + ||B - B received||^2)                 [prox_mu .01]\n";
        if (p.rank_schedule == RankSchedule::annealing) text += "    in the rounds before the cap falls\n";
    }
    if (p.local_extra == LocalExtra::tail_prune) {
        text +=
            "  + lambda sum_m ||B_m[:, g:r]||_F ||A_m[g:r, :]||_F                        [prune_lambda .01]\n"
            "  g = max(rank_min, floor(gamma r + 1e-9))                  [prune_gamma .99, prune_rounding floor]\n"
            "  after training, once:  before = the same sum over the factors as received, after = over the trained "
            "ones\n"
            "  if after < before:  r_k <- g, for good; the slots g..r are not uploaded\n";
    }
    return text;
}

std::string weights(const Policies& p) {
    switch (p.client_weight) {
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

std::string factor_mean(const Policies& p) {
    const bool deltas = p.aggregate == Aggregate::deltas;
    const std::string_view x = deltas ? "slot_i(k) - slot_i received" : "slot_i(k)";
    const std::string_view target = deltas ? "slot_i + D_i,  D_i" : "slot_i";
    std::string text;
    switch (p.slot_norm) {
        case SlotNorm::contributors:
            text =
                fmt::format("  {} = sum_(k: i in I_k) s_k ({}) / sum_(k: i in I_k) s_k,  for A and for B\n", target, x);
            break;
        case SlotNorm::replicate:
            text =
                "  slot_i = sum_k s_k x_i(k) / sum_k s_k,  x_i(k) = slot_i(k) where client k has slot i, else the\n"
                "           weighted mean of slot_i over the clients of the largest lora_rank;  for A and for B\n";
            break;
        default:
            text = fmt::format("  {} = sum_(k: i in I_k) s_k ({}) / sum_k s_k,  for A and for B\n", target, x);
    }
    if (p.shared_factors == SharedFactors::a) text += "  for A only: B is never sent\n";
    if (p.trainable != Trainable::both) text += "  for the factor that was trained; the other one stays\n";
    if (p.server_optimizer != ServerOptimizer::none) {
        text += fmt::format("  D goes through the server's {} (server_learning_rate, server_beta1, ...)\n",
                            name_of(p.server_optimizer));
    }
    if (!deltas) {
        text += fmt::format("  slots that nobody has: {}                [keep_uncovered no = 0 | last | refill]\n",
                            p.keep_uncovered == KeepUncovered::no ? "0 (with A = B = 0 they can never learn again)"
                                                                  : "keep their value");
    }
    if (p.base_update == BaseUpdate::residual) {
        text += "  W0 <- W0 + s (sum_k p_k B_k A_k - B A),  p_k = s_k / sum_j s_j, on every MPI rank\n";
    }
    return text;
}

std::string merging(const Policies& p) {
    if (p.trainable == Trainable::base) {
        return "  theta <- theta + sum_k s_k (theta_k - theta) / sum_k s_k,  for every weight, on every MPI rank\n";
    }
    if (p.merge == Merge::factors) return factor_mean(p);
    if (p.merge == Merge::stack) {
        std::string text =
            "  W0 <- W0 + s [B_1 ... B_K] [p_1 A_1; ...; p_K A_K] = W0 + s sum_k p_k B_k A_k,  p_k = s_k / sum_j s_j,\n"
            "  on every MPI rank; the global adapter itself stays at B = 0\n";
        if (p.base_update == BaseUpdate::truncated) {
            text += "  cut to the smallest number of singular directions with keep_energy of the squared values\n";
        }
        return text;
    }
    std::string text;
    switch (p.slot_norm) {
        case SlotNorm::contributors:
            text = "  P = sum_j sum_(k: r_k > j) s_k/S_j b_kj a_kj^T,  S_j = sum_(k: r_k > j) s_k\n";
            break;
        case SlotNorm::levels:
            text =
                "  P = sum over levels (l, h] of sum_(k: r_k >= h) s_k/S_h B_k[:, l:h] A_k[l:h, :],  S_h = sum_(k: r_k "
                ">= "
                "h) s_k\n";
            break;
        default:
            text = "  P = sum_k s_k B_k A_k / sum_k s_k\n";
    }
    text += "  P = U S V^T (QR of the stacked factors, SVD of the small core);  ";
    switch (p.factor_split) {
        case FactorSplit::left:
            return text + "B = U S, A = V^T, cut to rank_max\n";
        case FactorSplit::sqrt:
            return text + "B = U sqrt(S), A = sqrt(S) V^T, cut to rank_max\n";
        case FactorSplit::right:
            return text + "B = U, A = S V^T, cut to rank_max\n";
    }
    throw bug_error("unknown factor split");
}

std::string notes(const StrategyPreset& preset) {
    const Policies& p = preset.policies;
    std::string text;
    for (const auto note : preset.notes) text += fmt::format("  {}\n", note);
    if (p.client_weight == ClientWeight::sparsity) {
        text +=
            "  weight_scope client: the paper's weight has no layer index; one number per client keeps A and B of all "
            "layers\n"
            "    on one scale. weight_norm root_sum_squares: the norm of all B A as one block-diagonal matrix.\n"
            "  The scale s is left out of the norm, as in the paper's equations (a constant scale cancels).\n";
    }
    if (p.local_extra == LocalExtra::tail_prune) {
        text +=
            "  prune_reference received: the tail as it came this round, recorded before the first step. In round 1 B "
            "= 0, so\n"
            "    nothing can be pruned before a client receives a non-zero tail.\n"
            "  Strict <; never below rank_min; one rank per client for all matrices; ranks never grow back.\n"
            "  The regulariser has subgradient 0 at 0, enters before clipping and is not part of train_loss.\n";
    }
    if (p.merge == Merge::factors && p.slot_norm == SlotNorm::all && p.aggregate == Aggregate::parameters &&
        !preset.requires_equal_lora_ranks && p.trainable == Trainable::both) {
        text +=
            "  Averaging over all clients shrinks slots that few clients have; slots that nobody has become 0 in both "
            "factors\n"
            "    and stay dead. The log counts slots_alive; slot_norm = contributors and keep_uncovered are the "
            "cures.\n";
    }
    text += "  Optimiser state is fresh in every participation; sums over clients are exact, whatever their order.\n";
    return text;
}

std::string_view lora_ranks_of(const StrategyPreset& preset) {
    if (preset.policies.trainable == Trainable::base) return "have no effect";
    return preset.requires_equal_lora_ranks ? "equal ones only" : "may differ";
}

}  // namespace

std::vector<PolicyValue> policy_values(const Policies& p) {
    return {{"slot_select", name_of(p.slot_select)},
            {"receive", name_of(p.receive)},
            {"slot_scale", name_of(p.slot_scale)},
            {"trainable", name_of(p.trainable)},
            {"local_extra", name_of(p.local_extra)},
            {"shared_factors", name_of(p.shared_factors)},
            {"client_weight", name_of(p.client_weight)},
            {"merge", name_of(p.merge)},
            {"slot_norm", name_of(p.slot_norm)},
            {"aggregate", name_of(p.aggregate)},
            {"factor_split", name_of(p.factor_split)},
            {"base_update", name_of(p.base_update)},
            {"server_optimizer", name_of(p.server_optimizer)},
            {"rank_schedule", name_of(p.rank_schedule)},
            {"keep_uncovered", name_of(p.keep_uncovered)}};
}

std::string policies_text(const Policies& policies) {
    std::string text;
    for (const auto& policy : policy_values(policies)) {
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", policy.key, policy.value);
    }
    return text;
}

std::map<std::string, std::string> logged_strategy(const Strategy& strategy) {
    std::map<std::string, std::string> named{{"preset", strategy.preset},
                                             {"rank_levels", fmt::format("{}", fmt::join(strategy.rank_levels, ","))}};
    for (const auto& policy : policy_values(strategy)) named.emplace(policy.key, policy.value);
    // adopt_own_parts() puts the nearest policy in a part's place: what ran is the plugin's.
    if (strategy.own.select) named["slot_select"] = "plugin";
    if (strategy.own.weight) named["client_weight"] = "plugin";
    if (strategy.own.merge) named["merge"] = named["slot_norm"] = named["keep_uncovered"] = "plugin";
    return named;
}

std::string strategy_table() {
    std::size_t width = 0;
    for (const auto& preset : strategy_presets()) width = std::max(width, difference(preset.policies).size());
    std::string text = fmt::format("{:<12} {:<15} {:<6} {:<20} {:<24} {:<{}}  {}\n", "method", "alias", "ranks",
                                   "up per client", "down per client", "differs from zeropad in", width, "paper");
    for (const auto& preset : strategy_presets()) {
        text += fmt::format("{:<12} {:<15} {:<6} {:<20} {:<24} {:<{}}  {}\n", preset.name, aliases_of(preset),
                            preset.policies.trainable == Trainable::base ? "none"
                            : preset.requires_equal_lora_ranks           ? "equal"
                                                                         : "mixed",
                            symbols_up(preset.policies), symbols_down(preset.policies), difference(preset.policies),
                            width, preset.paper);
    }
    text +=
        "\nP(r) = r (d_in + d_out) summed over the adapted matrices; r_k the client's lora_rank, R = rank_max, K the "
        "cohort;\nW all weights of the base.\n"
        "Every policy is a key of [strategy] that overrides the preset's row; 'hetlora strategies NAME' prints one "
        "method in full.\n";
    return text;
}

std::string strategy_description(std::string_view name) {
    const auto& preset = find_strategy_preset(name);
    const Policies& p = preset.policies;
    const std::string aliases = aliases_of(preset);
    const bool full = p.trainable == Trainable::base;
    return fmt::format(
        "{}{} - {}\n{}\n\n"
        "Policies: {}\n"
        "Lora_ranks: {}. Up per client: {}; down: {} values.\n\n"
        "1. What a client{} gets: {}"
        "2. Local training\n{}"
        "3. Weight of client k\n{}"
        "4. Server{}\n{}\n"
        "Defaults and notes (docs/methods.md has the reasons in full)\n{}",
        preset.name, aliases.empty() ? "" : fmt::format(" (also: {})", aliases), preset.description, preset.paper,
        policies_text(p), lora_ranks_of(preset), symbols_up(p), symbols_down(p), full ? "" : " of lora_rank r_k",
        distribution(p), local_training(p), weights(p), full ? "" : ", for every adapted matrix", merging(p),
        notes(preset));
}

}  // namespace hetlora
