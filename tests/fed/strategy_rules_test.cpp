// Combinations that make no sense: each rule refuses with exit code 2, names the policy to change, and says why.
#include <gtest/gtest.h>

#include <functional>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {
namespace {

struct Refused {
    std::string preset;
    std::function<void(StrategySettings&)> change;
    std::string policy;  ///< named first, as "strategy.<policy>"
    std::string reason;  ///< a part of the message
};

std::string refusal(const std::string& preset, const std::function<void(StrategySettings&)>& change) {
    Settings settings;
    settings.strategy.preset = preset;
    change(settings.strategy);
    try {
        (void)resolve_strategy(settings);
        return "";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        return error.what();
    }
}

using S = StrategySettings;

const std::vector<Refused>& refused() {
    static const std::vector<Refused> rows{
        // Pruning.
        {"fedavg", [](S& s) { s.local_extra = LocalExtra::tail_prune; }, "local_extra", "unequal"},
        {"hetlora", [](S& s) { s.slot_select = SlotSelect::random; }, "local_extra", "slot_select = prefix"},
        {"replicate", [](S& s) { s.local_extra = LocalExtra::tail_prune; }, "local_extra", "leave the rank levels"},
        {"raflora", [](S& s) { s.local_extra = LocalExtra::tail_prune; }, "local_extra", "leave the rank levels"},
        {"hetlora", [](S& s) { s.rank_schedule = RankSchedule::annealing; }, "local_extra", "rank_schedule already"},
        {"hetlora", [](S& s) { s.trainable = Trainable::b; }, "local_extra", "trainable = both"},
        {"flora", [](S& s) { s.local_extra = LocalExtra::tail_prune; }, "local_extra", "nothing would ever be pruned"},
        // Products and stacks.
        {"flexlora", [](S& s) { s.slot_select = SlotSelect::random; }, "merge", "slot_select = prefix"},
        {"flora", [](S& s) { s.receive = Receive::all; }, "merge", "receive = selected"},
        {"flexlora", [](S& s) { s.trainable = Trainable::b; }, "merge", "trainable = both"},
        {"flora", [](S& s) { s.trainable = Trainable::alternate; }, "merge", "trainable = both"},
        {"flexlora", [](S& s) { s.aggregate = Aggregate::deltas; }, "aggregate", "not linear"},
        {"flora", [](S& s) { s.base_update = BaseUpdate::none; }, "merge", "base_update = merge"},
        {"flora", [](S& s) { s.base_update = BaseUpdate::residual; }, "merge", "base_update = merge"},
        {"zeropad", [](S& s) { s.base_update = BaseUpdate::merge; }, "base_update", "merge = stack"},
        {"flexlora", [](S& s) { s.base_update = BaseUpdate::truncated; }, "base_update", "merge = stack"},
        {"flora", [](S& s) { s.slot_norm = SlotNorm::contributors; }, "slot_norm", "nothing to share"},
        // The residual of the plain mean.
        {"fedex", [](S& s) { s.slot_norm = SlotNorm::contributors; }, "base_update", "slot_norm = all"},
        {"fedex", [](S& s) { s.trainable = Trainable::b; }, "base_update", "trainable = both"},
        {"fedex", [](S& s) { s.aggregate = Aggregate::deltas; }, "base_update", "aggregate = parameters"},
        {"fedex", [](S& s) { s.slot_select = SlotSelect::random; }, "base_update", "plain mean"},
        {"fedex", [](S& s) { s.merge = Merge::product; }, "base_update", "merge = factors"},
        {"fedex", [](S& s) { s.shared_factors = SharedFactors::a; }, "base_update", "shared_factors = both"},
        {"fedex", [](S& s) { s.keep_uncovered = KeepUncovered::last; }, "base_update", "keep_uncovered"},
        // Slots.
        {"zeropad", [](S& s) { s.slot_norm = SlotNorm::levels; }, "slot_norm", "merge = product"},
        {"raflora", [](S& s) { s.rank_schedule = RankSchedule::annealing; }, "rank_schedule", "rank levels"},
        {"replicate", [](S& s) { s.merge = Merge::product; }, "slot_norm", "merge = factors"},
        {"replicate", [](S& s) { s.slot_select = SlotSelect::random; }, "slot_norm", "slot_select = prefix"},
        {"replicate", [](S& s) { s.aggregate = Aggregate::deltas; }, "slot_norm", "aggregate = parameters"},
        {"replicate", [](S& s) { s.client_weight = ClientWeight::sparsity; }, "slot_norm", "uniform or samples"},
        {"zeropad", [](S& s) { s.slot_scale = SlotScale::sketch; }, "slot_scale", "slot_select = random"},
        {"fslora", [](S& s) { s.receive = Receive::all; }, "slot_scale", "does not have"},
        {"lora-a2", [](S& s) { s.receive = Receive::selected; }, "slot_select", "receive = all"},
        {"lora-a2", [](S& s) { s.aggregate = Aggregate::parameters; }, "slot_select", "aggregate = deltas"},
        {"lora-a2", [](S& s) { s.slot_norm = SlotNorm::contributors; }, "slot_select", "slot_norm = all"},
        {"lora-a2", [](S& s) { s.trainable = Trainable::both; }, "slot_select", "one factor"},
        {"fed-plora", [](S& s) { s.client_weight = ClientWeight::sparsity; }, "client_weight", "receive = selected"},
        {"zeropad", [](S& s) { s.receive = Receive::all; }, "receive", "slot_select = random"},
        // The server.
        {"zeropad", [](S& s) { s.server_optimizer = ServerOptimizer::adam; }, "server_optimizer", "deltas"},
        {"fslora", [](S& s) { s.keep_uncovered = KeepUncovered::last; }, "keep_uncovered", "never erases"},
        // Factors that clients keep.
        {"fedsa", [](S& s) { s.merge = Merge::product; }, "shared_factors", "merge = factors"},
        {"fedsa", [](S& s) { s.slot_select = SlotSelect::random; }, "shared_factors", "slot_select = prefix"},
        {"fedsa", [](S& s) { s.trainable = Trainable::b; }, "shared_factors", "trainable = both"},
        {"fedsa", [](S& s) { s.local_extra = LocalExtra::tail_prune; }, "shared_factors", "no pruning"},
        {"fedsa", [](S& s) { s.client_weight = ClientWeight::sparsity; }, "shared_factors", "uniform or samples"},
        {"fedsa", [](S& s) { s.rank_schedule = RankSchedule::annealing; }, "shared_factors", "no schedule"},
        // Keys of a policy that the method does not have.
        {"zeropad", [](S& s) { s.factor_split = FactorSplit::sqrt; }, "factor_split", "merge = product"},
        {"flexlora", [](S& s) { s.keep_uncovered = KeepUncovered::last; }, "keep_uncovered", "merge = factors"},
        {"flora", [](S& s) { s.keep_energy = 0.5; }, "keep_energy", "base_update = truncated"},
        {"hetlora", [](S& s) { s.prox_mu = 0.5; }, "prox_mu", "local_extra = proximal"},
        {"rb-lora",
         [](S& s) {
             s.rank_levels = {2, 8};
         },
         "rank_levels", "slot_norm = levels"},
        {"zeropad", [](S& s) { s.anneal_start = 0.5; }, "anneal_start", "rank_schedule = annealing"},
    };
    return rows;
}

TEST(StrategyRules, every_senseless_combination_is_refused_with_its_reason) {
    for (const Refused& row : refused()) {
        EXPECT_EQ(refusal(row.preset, [](S&) {}), "") << row.preset;
        const std::string message = refusal(row.preset, row.change);
        EXPECT_TRUE(message.starts_with("strategy." + row.policy)) << row.preset << ": " << message;
        EXPECT_NE(message.find("preset " + row.preset), std::string::npos) << message;
        EXPECT_NE(message.find(row.reason), std::string::npos) << row.preset << ", " << row.policy << ": " << message;
    }
}

TEST(StrategyRules, policies_that_go_together_are_taken) {
    const std::vector<std::pair<std::string, std::function<void(S&)>>> rows{
        {"fslora", [](S& s) { s.server_optimizer = ServerOptimizer::adam; }},
        {"rolora", [](S& s) { s.aggregate = Aggregate::deltas, s.server_optimizer = ServerOptimizer::momentum; }},
        {"fedsa", [](S& s) { s.aggregate = Aggregate::deltas; }},
        {"rbla", [](S& s) { s.keep_uncovered = KeepUncovered::refill; }},
        {"flexlora", [](S& s) { s.local_extra = LocalExtra::tail_prune; }},
        {"lora-a2", [](S& s) { s.rank_schedule = RankSchedule::annealing; }},
        {"fslora", [](S& s) { s.slot_select = SlotSelect::importance; }},
        {"florist", [](S& s) { s.local_extra = LocalExtra::proximal; }},
        {"zeropad", [](S& s) { s.local_extra = LocalExtra::tail_prune, s.client_weight = ClientWeight::sparsity; }},
    };
    for (const auto& [preset, change] : rows) EXPECT_EQ(refusal(preset, change), "") << preset;
}

TEST(StrategyRules, rank_levels_must_hold_every_lora_rank) {
    Settings settings;
    settings.strategy.preset = "raflora";
    settings.strategy.rank_levels = {8, 2};
    Strategy strategy = resolve_strategy(settings);
    EXPECT_NO_THROW(fit_to_lora_ranks(strategy, std::vector<std::int64_t>{2, 8, 8}));
    EXPECT_EQ(strategy.rank_levels, (std::vector<std::int64_t>{2, 8}));
    try {
        fit_to_lora_ranks(strategy, std::vector<std::int64_t>{2, 4, 8});
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_NE(std::string(error.what()).find("lora_rank 4, which is none of the levels 2,8"), std::string::npos);
    }
    settings.strategy.rank_levels = {};
    strategy = resolve_strategy(settings);
    fit_to_lora_ranks(strategy, std::vector<std::int64_t>{8, 2, 4, 4});
    EXPECT_EQ(strategy.rank_levels, (std::vector<std::int64_t>{2, 4, 8}));
}

TEST(StrategyRules, the_cap_falls_from_rank_max_to_rank_min_and_never_rises) {
    Settings settings;
    settings.strategy.preset = "sa-fedlora";
    settings.lora.rank_min = 2;
    settings.lora.rank_max = 32;
    for (const double start : {0.0, 0.2, 0.5, 1.0}) {
        settings.strategy.anneal_start = start;
        const Strategy strategy = resolve_strategy(settings);
        std::int64_t last = 32;
        for (std::int64_t round = 1; round <= 20; ++round) {
            const std::int64_t cap = lora_rank_cap(strategy, round, 20);
            EXPECT_LE(cap, last);
            if (static_cast<double>(round) <= start * 20.0) {
                EXPECT_EQ(cap, 32);
            }
            last = cap;
        }
        EXPECT_EQ(last, start < 1.0 ? 2 : 32);
    }
}

}  // namespace
}  // namespace hetlora
