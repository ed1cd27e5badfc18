// Sweep files: what they may hold, and every problem with its line.
#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

using Texts = std::vector<std::string>;

TEST(SplitValues, commas_bars_lists_and_ranges) {
    EXPECT_EQ(split_values("lora.rank_max", "4, 8 ,16"), (Texts{"4", "8", "16"}));
    EXPECT_EQ(split_values("lora.rank_max", "4 | 8"), (Texts{"4", "8"}));
    EXPECT_EQ(split_values("lora.targets", "q_proj,v_proj"), Texts{"q_proj,v_proj"});
    EXPECT_EQ(split_values("lora.targets", "q_proj,v_proj | all-linear"), (Texts{"q_proj,v_proj", "all-linear"}));
    EXPECT_EQ(split_values("experiment.seed", "0..3, 9"), (Texts{"0", "1", "2", "3", "9"}));
    EXPECT_EQ(split_values("experiment.seed", "0..20..10"), (Texts{"0", "10", "20"}));
    EXPECT_EQ(split_values("experiment.seed", "3..1"), Texts{"3..1"}) << "and is refused as no number";
    EXPECT_EQ(split_values("data.path", "../data.h5"), Texts{"../data.h5"});
    EXPECT_EQ(split_values("experiment.seed", ""), Texts{});
}

TEST(SplitValues, ranges_at_the_ends_of_the_integers_end_and_reversed_ones_stay_text) {
    using Values = std::vector<std::string>;
    EXPECT_EQ(split_values("experiment.seed", "9223372036854775806..9223372036854775807"),
              (Values{"9223372036854775806", "9223372036854775807"}));
    EXPECT_EQ(split_values("experiment.seed", "-9223372036854775808..9223372036854775807").size(), 1U);
    EXPECT_EQ(split_values("experiment.seed", "7,4..0,8"), (Values{"7", "4..0", "8"}));
}

TEST(SweepFile, sections_become_axes_groups_settings_and_rules) {
    const World world;
    const auto sweep = world.read(
        "[set]\nexperiment.rounds = 3  # few\n[axes]\nlora.rank_distribution = uniform, powerlaw\n"
        "[zip.low_high]\nlora.rank_min = 2, 4\nlora.rank_max = 8, 32\n[axes]\nexperiment.seed = 0..1\n"
        "[exclude]\nno = lora.rank_distribution = uniform   lora.rank_min=2 , 4\n",
        {}, "name = mine\nmax_runs = 7\n");

    EXPECT_EQ(sweep.name, "mine");
    EXPECT_EQ(sweep.max_runs, 7);
    EXPECT_EQ(sweep.output, world.folder / "out");
    EXPECT_EQ(sweep.set.at("experiment.rounds"), "3");
    ASSERT_EQ(sweep.axes.size(), 3U);
    EXPECT_EQ(sweep.axes[1].keys, (Texts{"lora.rank_min", "lora.rank_max"}));
    EXPECT_EQ(sweep.axes[1].values, (std::vector<Texts>{{"2", "8"}, {"4", "32"}}));
    EXPECT_EQ(sweep.axes[2].size(), 2U);
    ASSERT_EQ(sweep.exclusions.size(), 1U);
    ASSERT_EQ(sweep.exclusions[0].conditions.size(), 2U);
    EXPECT_EQ(sweep.exclusions[0].conditions[1].values, (Texts{"2", "4"}));
}

TEST(SweepFile, the_name_is_the_files_unless_given) {
    const World world;
    const auto sweep = read_sweep_text(
        "[sweep]\nbase = " + (world.folder / "base.ini").string() + "\n[axes]\nexperiment.seed = 0, 1\n",
        "configs/sweeps/tiny.ini", {});
    EXPECT_EQ(sweep.name, "tiny");
    EXPECT_EQ(sweep.output, absolute_path("results/tiny"));
}

TEST(SweepFile, words_replace_axes_and_settings) {
    const World world;
    const std::string rest = "[set]\nexperiment.rounds = 3\n[axes]\nexperiment.seed = 0..4\n";
    const auto sweep = world.read(rest, {"experiment.seed=7,8", "experiment.rounds=9", "lora.rank_max=8,16"});

    EXPECT_EQ(sweep.set.at("experiment.rounds"), "9");
    ASSERT_EQ(sweep.axes.size(), 2U);
    EXPECT_EQ(sweep.axes[0].values, (std::vector<Texts>{{"7"}, {"8"}}));
    EXPECT_EQ(sweep.axes[1].keys, Texts{"lora.rank_max"});
    EXPECT_EQ(world.read(rest, {"experiment.rounds=1,2"}).axes.size(), 2U) << "a setting becomes an axis";
}

TEST(SweepFile, a_plain_config_is_the_base_and_words_are_the_axes) {
    const World world;
    const auto sweep = read_sweep(world.folder / "base.ini", {"lora.rank_max=8,16", "experiment.rounds=2"});

    EXPECT_EQ(sweep.base, sweep.file);
    EXPECT_EQ(sweep.name, "base-sweep");
    EXPECT_EQ(sweep.axes.size(), 1U);
    EXPECT_EQ(sweep.set.at("experiment.rounds"), "2");
    expect_words(problem([&] { (void)read_sweep(world.folder / "base.ini", {}); }), {"no axis", "section.key=value"});
}

TEST(SweepFileProblem, all_are_told_at_once_with_their_lines) {
    const World world;
    const auto text = problem([&] {
        (void)world.read(
            "[axes]\nlora.rank_maxx = 1, 2\nexperiment.seed =\nlora.rank_min = 2,,4\n[set]\noutput.dir = x\n"
            "[zip.a]\nlocal.steps = 1, 2\nlocal.batch_size = 1, 2, 3\n[axess]\nx = 1\n",
            {"oops"}, "max_run = 3\n");
    });
    expect_words(
        text, {"8 problems", "s.ini:4: max_run = 3", "did you mean max_runs",
               "s.ini:6: there is no key lora.rank_maxx; did you mean lora.rank_max?",
               "s.ini:7: experiment.seed has no values", "s.ini:8: lora.rank_min = 2,,4: a value is empty",
               "s.ini:10: output.dir", "s.ini:13: local.batch_size has 3 values", "local.steps", "has 2",
               "s.ini:14: there is no section [axess]; did you mean axes?", "command line: 'oops' is not understood"});
}

TEST(SweepFileProblem, keys_twice_rules_that_never_hold_and_missing_parts) {
    const World world;
    const auto said = [&](const std::string& rest, const Texts& words = {}) {
        return problem([&] { (void)world.read(rest, words); });
    };
    expect_words(said("[set]\nlora.rank_max = 8\n[axes]\nlora.rank_max = 8, 16\n"), {"an axis and in [set]"});
    expect_words(said("[axes]\nlora.rank_max = 8, 16\n[zip.a]\nlora.rank_max = 8, 16\nlora.rank_min = 1, 2\n"),
                 {"is an axis already (s.ini:5)"});
    expect_words(
        said("[axes]\nlora.rank_max = 8, 16\n[exclude]\na = lora.rank_max=18\nb = lora.rank_min=2\nc =\nd = x\n"),
        {"s.ini:7: a: lora.rank_max never is 18", "values: 8, 16", "b: lora.rank_min is no axis", "c: the rule",
         "d: 'x' is not understood"});
    expect_words(said("[zip.a]\nlora.rank_max = 8, 16\nlora.rank_min = 1, 2\n", {"lora.rank_min=3"}),
                 {"steps together", "[zip.a]"});
    expect_words(said("[set]\nlora.rank_max = 8\n"), {"there is no axis"});
    expect_words(problem([] { (void)read_sweep_text("[axes]\nexperiment.seed=1,2\n", "s.ini", {}); }),
                 {"sweep.base", "is missing"});
    expect_words(problem([] {
                     (void)read_sweep_text("[sweep]\nbase=/no/such.ini\n[axes]\nexperiment.seed=1,2\n", "s.ini", {});
                 }),
                 {"/no/such.ini"});
    expect_words(problem([] { (void)read_sweep("/no/such/sweep.ini", {}); }), {"/no/such/sweep.ini"});
}

}  // namespace
}  // namespace hetlora::sweep::test
