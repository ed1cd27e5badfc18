// Which parts a plugin may take over, and what is refused.
#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {
namespace {

Settings with_plugin(const std::string& preset) {
    Settings settings;
    settings.strategy.preset = preset;
    settings.strategy.plugin = "my.py";
    return settings;
}

std::string refusal(const Settings& settings, const OwnParts& own) {
    Strategy strategy = resolve_strategy(settings);
    try {
        adopt_own_parts(strategy, own, settings);
        return "";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        return error.what();
    }
}

TEST(OwnParts, what_is_not_taken_over_stays_the_presets) {
    const Settings settings = with_plugin("rbla");
    const Strategy before = resolve_strategy(settings);
    Strategy after = before;
    adopt_own_parts(after, {.penalty = true}, settings);
    EXPECT_EQ(static_cast<const Policies&>(after), static_cast<const Policies&>(before));
    adopt_own_parts(after, {.weight = true}, settings);
    EXPECT_EQ(after.slot_norm, before.slot_norm);
    EXPECT_TRUE(after.sums_uploads());
    EXPECT_FALSE(after.gathers_uploads());
}

TEST(OwnParts, the_log_says_which_policies_are_the_plugins) {
    const Settings settings = with_plugin("zeropad");
    Strategy s = resolve_strategy(settings);
    EXPECT_EQ(logged_strategy(s).at("slot_select"), "prefix");
    adopt_own_parts(s, {.select = true, .merge = true}, settings);
    const auto logged = logged_strategy(s);
    EXPECT_EQ(logged.at("slot_select"), "plugin");
    EXPECT_EQ(logged.at("merge"), "plugin");
    EXPECT_EQ(logged.at("slot_norm"), "plugin");
    EXPECT_EQ(logged.at("client_weight"), "samples");
}

TEST(OwnParts, a_merge_gathers_the_factors) {
    const Settings settings = with_plugin("flexlora");
    Strategy s = resolve_strategy(settings);
    adopt_own_parts(s, {.merge = true}, settings);
    EXPECT_TRUE(s.gathers_uploads());
    EXPECT_FALSE(s.sums_uploads());
}

TEST(OwnParts, a_key_that_says_the_same_is_refused) {
    Settings settings = with_plugin("zeropad");
    settings.strategy.client_weight = ClientWeight::uniform;
    EXPECT_NE(refusal(settings, {.weight = true}).find("my.py: its weight takes the place of strategy.client_weight"),
              std::string::npos);
    EXPECT_EQ(refusal(settings, {.merge = true}), "");
    settings.strategy.slot_norm = SlotNorm::contributors;
    EXPECT_NE(refusal(settings, {.merge = true}).find("its merge takes the place of strategy.slot_norm"),
              std::string::npos);
}

TEST(OwnParts, combinations_that_make_no_sense_are_refused_with_the_reason) {
    EXPECT_NE(refusal(with_plugin("hetlora"), {.select = true}).find("pruning"), std::string::npos);
    EXPECT_NE(refusal(with_plugin("flexlora"), {.select = true}).find("leading slots"), std::string::npos);
    EXPECT_EQ(refusal(with_plugin("flexlora"), {.select = true, .merge = true}), "");
    EXPECT_NE(refusal(with_plugin("flora"), {.merge = true}).find("frozen base"), std::string::npos);
    EXPECT_NE(refusal(with_plugin("fedsa"), {.merge = true}).find("keep their B"), std::string::npos);
    EXPECT_NE(refusal(with_plugin("replicate"), {.weight = true}).find("replicate"), std::string::npos);
    EXPECT_NE(refusal(with_plugin("lora-a2"), {.select = true}).find("lora-a2"), std::string::npos);
}

}  // namespace
}  // namespace hetlora
