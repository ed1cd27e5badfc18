// States of runs from their folders alone, and what people and scripts are told.
#include "hetlora/sweep/run_state.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/sweep/costs.hpp"
#include "hetlora/sweep/report.hpp"
#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

namespace fs = std::filesystem;
using Program = hetlora::RunState;

void put_status(const fs::path& folder, Program state, std::int64_t round, const std::string& message = "",
                const std::string& host = "") {
    create_folder(folder);
    auto status = status_of_this_process();
    if (!host.empty()) status.host = host;
    status.state = state;
    status.round = round;
    status.rounds = 5;
    status.seconds_left = 30;
    status.message = message;
    write_status(folder / "status.json", status);
}

void make_done(const fs::path& folder, std::int64_t rounds = 5, double seconds_per_round = 2) {
    put_status(folder, Program::done, rounds);
    write_file_atomically(folder / "COMPLETE", "now\n");
    std::string lines;
    for (std::int64_t round = 0; round <= rounds; ++round) {
        lines += fmt::format("{{\"round\":{},\"t_round_s\":{},\"participation\":[]}}\n", round, seconds_per_round);
    }
    write_file_atomically(folder / "progress.jsonl", lines);
}

void age(const fs::path& file) { fs::last_write_time(file, fs::last_write_time(file) - std::chrono::minutes(10)); }

TEST(ScanFolder, tells_all_states_apart) {
    const TemporaryFolder at;
    EXPECT_EQ(scan_folder(at / "none", 5).state, State::waiting);
    create_folder(at / "requested");
    EXPECT_EQ(scan_folder(at / "requested", 5).state, State::waiting);

    make_done(at / "done");
    EXPECT_EQ(scan_folder(at / "done", 5).state, State::done);
    EXPECT_EQ(scan_folder(at / "done", 3).state, State::done) << "more rounds than asked for";
    EXPECT_EQ(scan_folder(at / "done", 9).state, State::stopped) << "goes on to more rounds";

    put_status(at / "stopped", Program::stopped, 2);
    EXPECT_EQ(scan_folder(at / "stopped", 5).state, State::stopped);

    put_status(at / "failed", Program::failed, 2, "loss is nan\nat round 3");
    const auto failed = scan_folder(at / "failed", 5);
    EXPECT_EQ(failed.state, State::failed);
    EXPECT_EQ(failed.reason, "loss is nan at round 3");
    EXPECT_EQ(failed.round, 2);
}

TEST(ScanFolder, running_needs_a_held_lock_or_a_fresh_sign_of_life) {
    const TemporaryFolder at;
    {
        const auto lock = RunFolder::create(at / "held");
        put_status(at / "held", Program::running, 1);
        const auto held = scan_folder(at / "held", 5);
        EXPECT_EQ(held.state, State::running);
        EXPECT_EQ(held.seconds_left, 30);
    }
    EXPECT_EQ(scan_folder(at / "held", 5).state, State::died) << "nobody holds it, and this host would know";

    put_status(at / "far", Program::running, 1, "", "another-host");
    write_file_atomically(at / "far" / ".lock", "");
    EXPECT_EQ(scan_folder(at / "far", 5).state, State::running) << "locks do not cross hosts everywhere";
    age(at / "far" / ".lock");
    age(at / "far" / "status.json");
    EXPECT_EQ(scan_folder(at / "far", 5).state, State::died);
}

TEST(ScanFolder, a_run_that_was_refused_before_its_status_failed_with_the_last_message) {
    const TemporaryFolder at;
    create_folder(at / "a");
    write_file_atomically(at / "a" / "output.log",
                          "--- start\nhetlora: data.h5 is no HDF5 file\n[mpirun] Primary job terminated\n");
    EXPECT_EQ(scan_folder(at / "a", 5).state, State::failed);
    EXPECT_EQ(scan_folder(at / "a", 5).reason, "data.h5 is no HDF5 file");
    write_file_atomically(at / "a" / "output.log", "--- start\nhetlora: no\n--- start\nloading\n");
    EXPECT_EQ(scan_folder(at / "a", 5).state, State::waiting) << "it was started again";
    EXPECT_EQ(last_words(at / "a" / "output.log"), "loading");
    write_file_atomically(at / "a" / "status.json", "{\"state\": ");
    EXPECT_EQ(scan_folder(at / "a", 5).state, State::waiting) << "damaged: as none";
}

TEST(SecondsPerRound, is_the_median_of_the_last_lines) {
    const TemporaryFolder at;
    make_done(at / "a", 5, 2.5);
    EXPECT_EQ(seconds_per_round(at / "a"), 2.5);
    EXPECT_TRUE(std::isnan(seconds_per_round(at / "none")));
}

TEST(Status, of_two_thousand_folders_counts_and_estimates) {
    const World world;
    const std::string rest = "[axes]\nexperiment.seed = 0..1999\n";
    const auto before = world.plan(rest);
    for (std::size_t i = 0; i < before.runs.size(); ++i) {
        const auto& folder = before.runs[i].folder;
        if (i < 1500) make_done(folder);
        if (i >= 1500 && i < 1600) put_status(folder, Program::failed, 1, "loss is nan");
        if (i >= 1600 && i < 1700) put_status(folder, Program::stopped, 1);
    }
    const auto plan = world.plan(rest);
    const auto states = scan(plan);
    const Costs costs(plan, states, 1);
    const auto counts = count(states);

    EXPECT_EQ(counts_text(counts), "1500 done, 300 waiting, 100 stopped, 100 failed");
    const auto text = status_text(plan, states, costs, false);
    expect_words(text, {"1500 of 2000 runs done", "of work left", "loss is nan", "and 88 more"});
    const auto json = nlohmann::json::parse(status_json(plan, states, costs));
    EXPECT_EQ(json["counts"]["done"], 1500);
    EXPECT_EQ(json["runs"].size(), 2000U);
    // 2 s to start and 5 rounds of 2 s; the stopped ones have done one of five
    EXPECT_NEAR(json["work_left_s"].get<double>(), 300 * 12.0 + 100 * (2 + 8.0), 1e-6);
}

TEST(Costs, unknown_runs_take_the_mean_and_nothing_known_is_nothing) {
    const World world;
    const std::string rest = "[axes]\nlora.rank_max = 8, 16\n";
    const auto plan = world.plan(rest);
    EXPECT_NE(plan.runs[0].cost_key, plan.runs[1].cost_key);
    EXPECT_FALSE(Costs(plan, scan(plan), 1).of(plan.runs[0]).known());
    make_done(plan.runs[0].folder);
    const auto again = world.plan(rest);
    const Costs costs(again, scan(again), 1);
    EXPECT_EQ(costs.of(again.runs[0]).seconds(), 12);
    EXPECT_EQ(costs.of(again.runs[1]).seconds(), 12);
    EXPECT_EQ(costs.kinds(), 2);
    EXPECT_EQ(costs.known_kinds(), 1);
}

TEST(Costs, side_by_side_is_bounded_by_cores_memory_and_wish) {
    const World world;
    const auto plan = world.plan("[axes]\nexperiment.seed = 0, 1\n");
    write_file_atomically(world.folder / "out" / ".calibration.json",
                          "{\"" + plan.runs[0].cost_key +
                              "x1\": {\"seconds_start\": 1, \"seconds_total\": 4, \"peak_memory_bytes\": 1000}}");
    const Costs costs(plan, scan(plan), 1);
    EXPECT_EQ(costs.of(plan.runs[0]).seconds(), 4);
    EXPECT_EQ(side_by_side({.cores = 16}, plan, costs), 16);
    EXPECT_EQ(side_by_side({.cores = 16, .free_memory_bytes = 5500}, plan, costs), 5);
    EXPECT_EQ(side_by_side({.cores = 16, .mpi_ranks = 4}, plan, costs), 4);
    EXPECT_EQ(side_by_side({.cores = 16, .max_parallel = 3}, plan, costs), 3);
    EXPECT_EQ(side_by_side({.cores = 1, .free_memory_bytes = 10, .mpi_ranks = 4}, plan, costs), 1);
}

}  // namespace
}  // namespace hetlora::sweep::test
