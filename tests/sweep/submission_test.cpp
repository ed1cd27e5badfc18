// Slurm submissions: packing of runs into tasks, the script, site profiles.
#include "hetlora/sweep/submission.hpp"

#include <numeric>

#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

SweepPlan plan_of(const World& world, std::size_t runs, double seconds_total) {
    auto plan = world.plan(fmt::format("[axes]\nexperiment.seed = 0..{}\n", runs - 1));
    if (seconds_total > 0) {
        write_file_atomically(world.folder / "out" / ".calibration.json",
                              fmt::format("{{\"{}x1\": {{\"seconds_start\": 1, \"seconds_total\": {}}}}}",
                                          plan.runs[0].cost_key, seconds_total));
    }
    return plan;
}

std::vector<Task> packed(const SweepPlan& plan, double seconds) {
    const auto states = scan(plan);
    std::vector<std::size_t> all(plan.runs.size());
    std::iota(all.begin(), all.end(), 0);
    return pack_tasks(plan, states, all, Costs(plan, states, 1), seconds);
}

TEST(PackTasks, small_runs_share_a_task) {
    const World world;
    const auto plan = plan_of(world, 1000, 5);
    const auto tasks = packed(plan, 30 * 60);

    ASSERT_EQ(tasks.size(), 3U) << "360 runs of 5 s are half an hour";
    EXPECT_EQ(tasks[0].runs.size(), 360U);
    EXPECT_EQ(tasks[2].runs.size(), 280U);
    EXPECT_EQ(tasks[1].runs.front(), 360U) << "in order, none twice";
    EXPECT_EQ(tasks[0].seconds, 1800);
}

TEST(PackTasks, long_and_unknown_runs_have_a_task_of_their_own) {
    const World world;
    EXPECT_EQ(packed(plan_of(world, 4, 0), 1800).size(), 4U) << "nothing is known";
    EXPECT_EQ(packed(plan_of(world, 4, 4000), 1800).size(), 4U);
}

TEST(SbatchScript, has_the_profile_the_settings_and_the_body) {
    SubmitOptions options;
    options.mpi_ranks = 4;
    options.throttle = 7;
    options.profile = read_site_profile_text(
        "[site]\nname = big\npartition = batch\naccount = x1\ntime = 02:00:00\ncpus_per_task = 3\nsetup = module load "
        "gcc; "
        "module load openmpi\nsetup = conda activate a\nextra = --exclusive\nsignal_lead_s = 60\nmax_requeues = 5\n",
        "p.ini");
    const auto text = sbatch_script({.sweep_name = "s",
                                     .folder = "/r/s/slurm/1",
                                     .program = "/bin/it's",
                                     .n_runs = 9,
                                     .n_tasks = 3,
                                     .longest_task_s = 100,
                                     .peak_memory_bytes = 0},
                                    options);
    expect_words(text, {"#!/bin/bash\n", "#SBATCH --array=0-2%7\n", "#SBATCH --partition=batch\n",
                        "#SBATCH --account=x1\n", "#SBATCH --ntasks=4\n", "#SBATCH --cpus-per-task=3\n",
                        "#SBATCH --time=02:00:00\n", "#SBATCH --signal=USR2@60\n", "#SBATCH --requeue\n",
                        "#SBATCH --exclusive\n", "TASKS_FILE='/r/s/slurm/1/tasks.tsv'\n", "HETLORA='/bin/it'\\''s'\n",
                        "LAUNCHER=srun-pmix\n", "MPI_RANKS=4\n", "MAX_REQUEUES=5\n",
                        "\nmodule load gcc\nmodule load openmpi\nconda activate a\n", "# --- body ---\n"});
    EXPECT_LT(text.find("conda activate"), text.find("# --- body ---"));
    EXPECT_EQ(text.find("--mem"), std::string::npos);
}

TEST(SbatchScript, predicts_time_and_memory_where_the_profile_says_nothing) {
    SubmitOptions options;
    ScriptFacts facts{.sweep_name = "s",
                      .folder = "/r",
                      .program = "p",
                      .n_runs = 1,
                      .n_tasks = 1,
                      .longest_task_s = 3600,
                      .peak_memory_bytes = std::int64_t{1} << 30};
    expect_words(sbatch_script(facts, options), {"--time=01:35:00", "--mem=1792M", "--array=0-0\n"});
    facts.longest_task_s = not_measured;
    options.profile.launcher = "mpirun";
    expect_words(sbatch_script(facts, options), {"--time=01:00:00", "--signal=B:USR2@120"});
}

TEST(SbatchScript, blanks_are_quoted_and_per_cent_signs_doubled) {
    ScriptFacts facts;
    facts.sweep_name = "my sweep";
    facts.n_tasks = 1;
    facts.folder = "/o sp/50%";
    const auto text = sbatch_script(facts, {});
    expect_words(text, {"#SBATCH --job-name=\"hetlora-my sweep\"\n", "#SBATCH --output=\"/o sp/50%%/task_%a.out\"\n",
                        "TASKS_FILE='/o sp/50%/tasks.tsv'\n"});
}

TEST(SiteProfile, problems_come_at_once_with_their_lines) {
    const auto text = problem([] {
        (void)read_site_profile_text(
            "[site]\npartitoin = a\nlauncher = srun\ncpus_per_task = many\nqos = a\nqos = b\n"
            "[sit]\nx = 1\n",
            "p.ini");
    });
    expect_words(text, {"5 problems", "p.ini:2: partitoin = a: there is no such key; did you mean partition?",
                        "p.ini:3: launcher = srun", "srun-pmix | mpirun", "p.ini:4: cpus_per_task = many",
                        "p.ini:6: qos", "twice", "p.ini:7: there is no section [sit]; did you mean site?"});
    EXPECT_EQ(read_site_profile_text("[site]\n", "p.ini").launcher, "srun-pmix");
}

}  // namespace
}  // namespace hetlora::sweep::test
