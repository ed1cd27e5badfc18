#include "hetlora/config/schema.hpp"

#include <gtest/gtest.h>

#include <set>

namespace hetlora {
namespace {

TEST(Schema, names_are_unique_and_every_row_has_a_help_of_one_line) {
    std::set<std::string> names;
    for (const auto& key : config_schema()) {
        EXPECT_TRUE(names.insert(key.full_name()).second) << key.full_name();
        EXPECT_FALSE(key.help.empty()) << key.full_name();
        EXPECT_EQ(key.help.find('\n'), std::string::npos) << key.full_name();
        EXPECT_FALSE(key.type.empty()) << key.full_name();
        EXPECT_EQ(find_config_key(key.full_name()), &key);
    }
    EXPECT_EQ(find_config_key("local.momentum"), nullptr);
}

TEST(Schema, the_keys_of_a_section_stand_together) {
    std::set<std::string> left;
    std::string section;
    for (const auto& key : config_schema()) {
        if (key.section == section) continue;
        EXPECT_FALSE(left.contains(key.section)) << key.full_name();
        left.insert(section);
        section = key.section;
    }
}

// Setting a key to a value that is not its default must change that key and no other, and read back as written.
TEST(Schema, every_key_is_bound_to_a_member_of_its_own) {
    const Settings defaults;
    for (const auto& key : config_schema()) {
        std::string value;
        if (key.type == "text") value = "other";
        if (key.type == "path") value = "/other";
        if (key.type == "list") value = key.choices.empty() ? "3,5" : key.choices.front();
        if (key.type == "integer") value = "17";
        if (key.type == "number") value = "0.25";
        for (const auto& choice : key.choices) {
            if (key.type != "list" && choice != key.default_text) value = choice;
        }
        if (key.full_name() == "model.precision") value = "fp64";
        Settings settings;

        EXPECT_EQ(key.set(settings, value), std::nullopt) << key.full_name();

        EXPECT_EQ(config_text(key.get(settings)), value) << key.full_name();
        for (const auto& other : config_schema()) {
            const bool is_same = &other == &key;
            EXPECT_EQ(other.get(settings) == other.get(defaults), !is_same)
                << key.full_name() << ", " << other.full_name();
        }
    }
}

TEST(Schema, every_default_is_accepted_by_its_own_key) {
    for (const auto& key : config_schema()) {
        if (key.full_name() == "experiment.seed") continue;
        Settings settings;
        EXPECT_EQ(key.set(settings, key.default_text), std::nullopt) << key.full_name();
        EXPECT_EQ(settings, Settings{}) << key.full_name();
    }
}

TEST(Schema, every_choice_that_is_shown_is_accepted) {
    for (const auto& key : config_schema()) {
        for (const auto& choice : key.choices) {
            Settings settings;
            EXPECT_EQ(key.set(settings, choice), std::nullopt) << key.full_name() << " = " << choice;
        }
    }
}

TEST(Schema, a_refused_value_changes_nothing) {
    for (const auto& key : config_schema()) {
        Settings settings;
        EXPECT_NE(key.set(settings, "a#b/c\n"), std::nullopt) << key.full_name();
        EXPECT_EQ(settings, Settings{}) << key.full_name();
    }
}

TEST(Schema, paths_devices_and_names_are_never_part_of_an_identity) {
    for (const auto& key : config_schema()) {
        const bool is_never = key.type == "path" || key.section == "compute" || key.section == "output" ||
                              key.full_name() == "experiment.name" || key.full_name() == "experiment.tags";
        EXPECT_TRUE(!is_never || key.identity == Identity::none) << key.full_name();
    }
    EXPECT_EQ(find_config_key("experiment.rounds")->identity, Identity::rounds);
    EXPECT_EQ(find_config_key("comm.reduction")->identity, Identity::run);
}

}  // namespace
}  // namespace hetlora
