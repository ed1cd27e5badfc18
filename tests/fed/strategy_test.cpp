// Presets, overrides and refusals.
#include "hetlora/fed/strategy.hpp"

#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "hetlora/config/strategy_names.hpp"

namespace hetlora {
namespace {

Settings with_preset(const std::string& preset) {
    Settings settings;
    settings.strategy.preset = preset;
    return settings;
}

std::string refusal(const Settings& settings) {
    try {
        (void)resolve_strategy(settings);
        return "";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        return error.what();
    }
}

TEST(Strategy, the_default_is_hetlora_to_the_letter) {
    const auto s = resolve_strategy(Settings{});
    EXPECT_EQ(s.preset, "hetlora");
    EXPECT_EQ(s.slot_norm, SlotNorm::all);
    EXPECT_EQ(s.client_weight, ClientWeight::sparsity);
    EXPECT_EQ(s.local_extra, LocalExtra::tail_prune);
    EXPECT_EQ(s.aggregate, Aggregate::parameters);
    EXPECT_EQ(s.keep_uncovered, KeepUncovered::no);
    EXPECT_EQ(s.prune_gamma, 0.99);
    EXPECT_EQ(s.rank_min, 2);
}

TEST(Strategy, aliases_are_the_same_method) {
    for (const std::string name : {"homlora", "fedit", "fedavg"}) {
        EXPECT_EQ(resolve_strategy(with_preset(name)).preset, "fedavg");
    }
}

TEST(Strategy, the_config_knows_the_names_of_all_presets_and_no_others) {
    std::vector<std::string> names;
    for (const auto& preset : strategy_presets()) {
        names.emplace_back(preset.name);
        names.insert(names.end(), preset.aliases.begin(), preset.aliases.end());
        const auto policies = resolve_strategy(with_preset(std::string(preset.name)));
        EXPECT_EQ(has_rank_schedule(std::string(preset.name)), policies.rank_schedule != RankSchedule::none);
    }
    EXPECT_EQ(names, strategy_names());
}

TEST(Strategy, no_preset_is_a_renamed_other_row) {
    for (const auto& a : strategy_presets()) {
        for (const auto& b : strategy_presets()) {
            const bool same_row =
                a.policies == b.policies && a.requires_equal_lora_ranks == b.requires_equal_lora_ranks;
            EXPECT_EQ(same_row, a.name == b.name) << a.name << ", " << b.name;
        }
    }
}

TEST(Strategy, overrides_win) {
    auto settings = with_preset("zeropad");
    settings.strategy.slot_norm = SlotNorm::contributors;
    settings.strategy.client_weight = ClientWeight::uniform;
    const auto s = resolve_strategy(settings);
    EXPECT_EQ(s.slot_norm, SlotNorm::contributors);
    EXPECT_EQ(s.client_weight, ClientWeight::uniform);
    EXPECT_EQ(s.local_extra, LocalExtra::none);
}

TEST(Strategy, an_unknown_name_gets_the_nearest_one) {
    EXPECT_NE(refusal(with_preset("hetlra")).find("hetlora"), std::string::npos);
    EXPECT_NE(refusal(with_preset("zero-pad")).find("did you mean zeropad"), std::string::npos);
}

TEST(Strategy, senseless_combinations_are_refused_with_the_reason) {
    auto settings = with_preset("zeropad");
    settings.strategy.weight_scope = WeightScope::matrix;
    EXPECT_NE(refusal(settings).find("client_weight"), std::string::npos);

    settings = with_preset("fedavg");
    settings.strategy.local_extra = LocalExtra::tail_prune;
    EXPECT_NE(refusal(settings).find("unequal"), std::string::npos);

    settings = with_preset("hetlora");
    settings.strategy.aggregate = Aggregate::deltas;
    EXPECT_EQ(refusal(settings), "");
    settings.strategy.keep_uncovered = KeepUncovered::refill;
    EXPECT_NE(refusal(settings).find("deltas"), std::string::npos);

    settings = with_preset("hetlora");
    settings.strategy.weight_scope = WeightScope::matrix;
    settings.strategy.weight_norm = WeightNorm::sum;
    EXPECT_NE(refusal(settings).find("weight_norm"), std::string::npos);

    settings = with_preset("hetlora");
    settings.strategy.weight_includes_scale = true;
    EXPECT_NE(refusal(settings).find("scale_rule"), std::string::npos);

    for (const double gamma : {0.0, 1.5, -1.0}) {
        settings = with_preset("hetlora");
        settings.strategy.prune_gamma = gamma;
        EXPECT_NE(refusal(settings).find("prune_gamma"), std::string::npos);
    }
}

TEST(Strategy, fedavg_asks_for_equal_ranks) {
    auto s = resolve_strategy(with_preset("fedavg"));
    EXPECT_NO_THROW(fit_to_lora_ranks(s, std::vector<std::int64_t>{8, 8, 8}));
    EXPECT_THROW(fit_to_lora_ranks(s, std::vector<std::int64_t>{8, 4, 8}), Error);
    s = resolve_strategy(Settings{});
    EXPECT_NO_THROW(fit_to_lora_ranks(s, std::vector<std::int64_t>{8, 4, 8}));
}

TEST(Strategy, scores_need_one_factor_that_trains) {
    Settings settings = with_preset("lora-a2");
    settings.strategy.trainable = Trainable::both;
    EXPECT_NE(refusal(settings).find("use trainable = alternate or b"), std::string::npos);
    settings.strategy.trainable = Trainable::b;
    EXPECT_EQ(refusal(settings), "");
}

TEST(Strategy, the_log_names_what_is_used) {
    Settings settings = with_preset("recon-svd");
    settings.strategy.slot_norm = SlotNorm::levels;
    Strategy strategy = resolve_strategy(settings);
    fit_to_lora_ranks(strategy, std::vector<std::int64_t>{8, 2, 8, 4});

    const auto logged = logged_strategy(strategy);

    EXPECT_EQ(logged.at("preset"), "flexlora");
    EXPECT_EQ(logged.at("merge"), "product");
    EXPECT_EQ(logged.at("slot_norm"), "levels") << "an override, not the row";
    EXPECT_EQ(logged.at("client_weight"), "samples");
    EXPECT_EQ(logged.at("rank_levels"), "2,4,8");
    for (const auto& [name, value] : logged) {
        if (name == "preset" || name == "rank_levels") continue;
        EXPECT_NE(policies_text(strategy).find(name + "=" + value), std::string::npos);
    }
}

TEST(Strategy, every_method_is_described) {
    const auto table = strategy_table();
    for (const auto& preset : strategy_presets()) {
        EXPECT_NE(table.find(preset.name), std::string::npos);
        const auto text = strategy_description(preset.name);
        EXPECT_NE(text.find(preset.paper), std::string::npos);
        EXPECT_NE(text.find("keep_uncovered"), std::string::npos);
        EXPECT_EQ(refusal(with_preset(std::string(preset.name))), "");
    }
    EXPECT_NE(strategy_description("fedit").find("fedavg (also: homlora, fedit)"), std::string::npos);
    EXPECT_THROW((void)strategy_description("x"), Error);
}

}  // namespace
}  // namespace hetlora
