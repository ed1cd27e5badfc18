// Runs of a sweep: identities, folders, requests, and wrong settings.
#include "hetlora/sweep/planned_run.hpp"

#include <algorithm>
#include <chrono>

#include "hetlora/base/sha256.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/sweep/content_hashes.hpp"
#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* two_axes = "[axes]\nlora.rank_distribution = uniform, powerlaw\nexperiment.seed = 0..1\n";

TEST(Plan, folders_end_in_the_identity_that_the_request_gives_again) {
    const World world;
    const auto plan = world.plan(two_axes);

    ASSERT_EQ(plan.runs.size(), 4U);
    for (const auto& run : plan.runs) {
        EXPECT_EQ(run.folder.filename(), run.label + "_" + run.identity.substr(0, 8));
        EXPECT_FALSE(run.folder_exists);
        write_request(run, plan.sweep);
        const auto settings = load_settings(run.request());
        EXPECT_EQ(identity_hash(settings, base_identity_sha256(world.folder / "model"),
                                CorpusFile(world.folder / "data.h5").sha256()),
                  run.identity);
        EXPECT_EQ(settings.output.dir, run.folder);
        EXPECT_EQ(settings.compute.threads, 1) << "runs side by side: one thread each where nothing is said";
    }
}

TEST(Plan, a_run_keeps_its_folder_when_another_axis_changes_its_label) {
    const World world;
    const auto before = world.plan(two_axes);
    for (const auto& run : before.runs) write_request(run, before.sweep);
    const auto after = world.plan(std::string(two_axes) + "lora.rank_max = 8, 16\n");

    ASSERT_EQ(after.runs.size(), 8U);
    EXPECT_EQ(std::ranges::count(after.runs, true, &PlannedRun::folder_exists), 4);
    EXPECT_EQ(after.runs[0].label, "uniform_s0_8");
    EXPECT_EQ(after.runs[0].folder, before.runs[0].folder);
    EXPECT_TRUE(after.foreign.empty());
    EXPECT_EQ(world.plan("[axes]\nexperiment.seed = 7, 8\n").foreign.size(), 4U);
}

TEST(Plan, two_runs_of_one_identity_are_an_error_that_names_both) {
    const World world;
    expect_words(problem([&] { (void)world.plan("[axes]\nexperiment.tags = a, b\n"); }),
                 {"two runs are the same run", "experiment.tags = a", "experiment.tags = b", "[exclude]"});
    expect_words(problem([&] { (void)world.plan("[axes]\nlora.rank_power = 0.1, -\n"); }), {"are the same run"});
}

TEST(Plan, a_folder_of_another_run_is_refused) {
    const World world;
    const auto plan = world.plan(two_axes);
    create_folder(plan.runs[0].folder);
    write_file_atomically(plan.runs[0].request(), "# identity 0123456789abcdef\n");
    expect_words(problem([&] { (void)world.plan(two_axes); }), {"holds another run", "0123456789abcdef", "--output"});
    create_folder(world.folder / "out2");
    write_file_atomically(world.folder / "out2" / "COMPLETE", "x");
    expect_words(
        problem([&] { (void)make_plan(read_sweep_text(world.text(two_axes), "s.ini", {}, world.folder / "out2")); }),
        {"holds a run"});
}

TEST(Plan, wrong_settings_are_told_once_with_the_first_combination) {
    const World world;
    const auto text = problem([&] { (void)world.plan("[axes]\nlora.rank_min = 2, 9\nexperiment.seed = 0..2\n"); });
    expect_words(text, {"1 problem in the 6 runs", "s.ini: lora.rank_min = 9 is above lora.rank_max = 8", "base.ini:9",
                        "in 3 of the runs, first with lora.rank_min = 9, experiment.seed = 0"});
    const auto many = problem([&] { (void)world.plan("[axes]\nlora.rank_min = 11..17\n"); });
    expect_words(many, {"7 problems", "and 2 more"});
    expect_words(problem([&] { (void)world.plan("[axes]\nlocal.optimizer = sgd, adam\n"); }), {"adamw"});
}

TEST(Plan, a_missing_model_or_data_is_an_input_error) {
    const World world;
    fs::remove(world.folder / "data.h5");
    expect_words(problem([&] { (void)world.plan(two_axes); }, ExitCode::input), {"data.h5"});
}

TEST(Request, other_rounds_replace_it_but_never_fewer_than_the_run_has) {
    const World world;
    const auto rounds = [&](const char* n) {
        const auto plan = world.plan(two_axes, {std::string("experiment.rounds=") + n});
        write_request(plan.runs[0], plan.sweep);
        return load_settings(plan.runs[0].request()).experiment.rounds;
    };
    EXPECT_EQ(rounds("3"), 3);
    EXPECT_EQ(rounds("6"), 6);
    EXPECT_EQ(rounds("4"), 4);
    RunStatus status;
    status.round = 5;
    write_status(world.plan(two_axes).runs[0].folder / "status.json", status);
    EXPECT_EQ(rounds("4"), 5);
}

TEST(Request, a_run_that_has_begun_keeps_its_threads) {
    const World world;
    const auto threads = [&](std::int64_t automatic) {
        const auto plan = make_plan(world.read(two_axes), automatic);
        write_request(plan.runs[0], plan.sweep);
        return load_settings(plan.runs[0].request()).compute.threads;
    };
    EXPECT_EQ(threads(3), 3);
    EXPECT_EQ(threads(1), 1) << "it has not begun";
    const auto plan = make_plan(world.read(two_axes), 3);
    write_request(plan.runs[0], plan.sweep);
    write_file_atomically(plan.runs[0].folder / "progress.jsonl", "");
    EXPECT_EQ(threads(1), 3);
}

TEST(Request, an_equal_one_is_not_touched) {
    const World world;
    const auto plan = world.plan(two_axes);
    write_request(plan.runs[0], plan.sweep);
    const auto past = fs::last_write_time(plan.runs[0].request()) - std::chrono::hours(1);
    fs::last_write_time(plan.runs[0].request(), past);
    write_request(plan.runs[0], plan.sweep);
    EXPECT_EQ(fs::last_write_time(plan.runs[0].request()), past);
}

TEST(ContentHashes, come_from_the_cache_until_the_file_changes) {
    const World world;
    const auto cache = world.folder / "out" / ".hashes.json";
    const auto data = world.folder / "data.h5";
    const auto ask = [&] {
        ContentHashes hashes(cache);
        const auto hash = hashes.of_data(data);
        hashes.save();
        return hash;
    };
    const auto first = ask();
    EXPECT_EQ(first, sha256_file(data));
    auto text = read_text_file(cache);
    text.replace(text.find(first), 4, "ffff");
    write_file_atomically(cache, text);
    EXPECT_EQ(ask().substr(0, 4), "ffff") << "not read again";
    fs::last_write_time(data, fs::last_write_time(data) + std::chrono::nanoseconds(1000));
    EXPECT_EQ(ask(), first) << "another time of change";
    write_file_atomically(cache, "no JSON");
    EXPECT_EQ(ask(), first);
}

}  // namespace
}  // namespace hetlora::sweep::test
