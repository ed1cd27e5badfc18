// Products, groups, exclusions, caps and labels.
#include "hetlora/sweep/expansion.hpp"

#include <algorithm>

#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

using Texts = std::vector<std::string>;

Texts labels(const SweepFile& sweep) {
    Texts all;
    for (const auto& combination : expand(sweep).combinations) all.push_back(combination.label);
    return all;
}

TEST(Expansion, is_the_product_of_axes_and_groups_with_the_first_slowest) {
    const World world;
    const auto sweep = world.read(
        "[set]\nexperiment.rounds = 3\n[axes]\nlora.rank_distribution = uniform, powerlaw\n"
        "[zip.low_high]\nlora.rank_min = 2, 4\nlora.rank_max = 8, 32\n[axes]\nexperiment.seed = 0..1\n");
    const auto expansion = expand(sweep);

    EXPECT_EQ(labels(sweep), (Texts{"uniform_2-8_s0", "uniform_2-8_s1", "uniform_4-32_s0", "uniform_4-32_s1",
                                    "powerlaw_2-8_s0", "powerlaw_2-8_s1", "powerlaw_4-32_s0", "powerlaw_4-32_s1"}));
    EXPECT_EQ(expansion.combinations[2].overrides,
              (Texts{"experiment.rounds=3", "experiment.seed=0", "lora.rank_distribution=uniform", "lora.rank_max=32",
                     "lora.rank_min=4"}));
    EXPECT_EQ(expansion.combinations[2].text,
              "lora.rank_distribution = uniform, lora.rank_min = 4, lora.rank_max = 32, experiment.seed = 0");
}

TEST(Expansion, a_rule_leaves_out_where_all_its_conditions_hold) {
    const World world;
    const auto sweep = world.read(
        "[axes]\nstrategy.preset = hetlora, fedavg\nlora.rank_distribution = uniform, powerlaw, fixed\n"
        "lora.rank_power = 0.1, -\n[exclude]\na = strategy.preset=fedavg lora.rank_distribution=uniform,powerlaw\n"
        "b = lora.rank_distribution=fixed lora.rank_power=0.10\n"
        "c = lora.rank_distribution=uniform,powerlaw lora.rank_power=-\n");
    EXPECT_EQ(labels(sweep),
              (Texts{"hetlora_uniform_0.1", "hetlora_powerlaw_0.1", "hetlora_fixed_default", "fedavg_fixed_default"}));
    EXPECT_EQ(expand(sweep).excluded, 8);
}

TEST(Expansion, a_value_left_out_removes_the_key_for_that_run) {
    const World world;
    const auto combinations =
        expand(world.read("[set]\nlora.rank_min = -\n[axes]\nlora.rank_power = 0.1, -\n")).combinations;

    EXPECT_EQ(combinations[0].left_out, (std::set<std::string>{"lora.rank_min"}));
    EXPECT_EQ(combinations[1].left_out, (std::set<std::string>{"lora.rank_min", "lora.rank_power"}));
    EXPECT_TRUE(combinations[1].overrides.empty());
}

TEST(Expansion, an_axis_of_one_value_is_not_in_the_label) {
    const World world;
    EXPECT_EQ(labels(world.read("[axes]\nlora.rank_max = 8\nexperiment.seed = 3, 4\n")), (Texts{"s3", "s4"}));
    EXPECT_EQ(labels(world.read("[axes]\nlora.rank_max = 8\n")), Texts{"run"});
}

TEST(Expansion, the_cap_says_how_many_there_would_be) {
    const World world;
    const auto said = [&](const std::string& rest) {
        return problem([&] { (void)expand(world.read(rest, {}, "max_runs = 10\n")); });
    };
    EXPECT_EQ(said("[axes]\nexperiment.seed = 0..9\n"), "");
    expect_words(said("[axes]\nexperiment.seed = 0..10\n"), {"11 runs", "max_runs = 10", "11 experiment.seed"});
    expect_words(said("[axes]\nexperiment.seed = 0..9999\nexperiment.seed_data = 0..9999\n"),
                 {"100000000 combinations"});
    expect_words(said("[axes]\nexperiment.seed = 0..1\n[exclude]\nall = experiment.seed=0..1\n"),
                 {"all 2 combinations", "nothing to run"});
}

TEST(Label, is_short_and_safe_in_a_file_name) {
    EXPECT_EQ(label_of("lora.targets", "q_proj, v_proj"), "q_proj+v_proj");
    EXPECT_EQ(label_of("data.path", "/a/b/chat tiny.h5"), "chattiny");
    EXPECT_EQ(label_of("experiment.seed", "3"), "s3");
    EXPECT_EQ(label_of("experiment.seed_data", "3"), "data3");
    EXPECT_EQ(label_of("local.learning_rate", "1e-3"), "1e-3");
    EXPECT_EQ(label_of("experiment.tags", "a/b*c"), "a-b-c");
    const World world;
    const auto long_ones = labels(world.read("[axes]\nexperiment.tags = " + std::string(200, 'a') + " , b\n"));
    EXPECT_EQ(long_ones[0].size(), longest_label);
}

}  // namespace
}  // namespace hetlora::sweep::test
