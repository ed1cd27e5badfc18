// `hetlora sweep submit`: one Slurm job array for a whole sweep. Small runs share a task.
//
// A submission is a folder <sweep>/slurm/<UTC time>/ with tasks.tsv ("array index<TAB>run folder", one line a run),
// sweep.sbatch (the complete script; it may be edited and submitted by hand) and job_ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "hetlora/sweep/costs.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/run_state.hpp"
#include "hetlora/sweep/site_profile.hpp"

namespace hetlora::sweep {

struct SubmitOptions {
    SiteProfile profile;
    std::int64_t mpi_ranks = 1;      ///< of each run
    std::int64_t throttle = 0;       ///< array tasks at a time; 0 = as many as the cluster gives
    std::int64_t task_minutes = 30;  ///< aim for a task that holds several runs
    bool dry_run = false;
    bool retry_failed = false;
};

/// One array task: runs (positions in the plan), one after another.
struct Task {
    std::vector<std::size_t> runs;
    double seconds = 0;  ///< predicted; NaN = unknown
};

/// Packs runs, in their order, into tasks of up to `seconds` (but one run at least); runs of unknown length get a task
/// of their own.
[[nodiscard]] std::vector<Task> pack_tasks(const SweepPlan& plan, const std::vector<FolderState>& states,
                                           const std::vector<std::size_t>& runs, const Costs& costs, double seconds);

/// What a script is made of.
struct ScriptFacts {
    std::string sweep_name;
    std::filesystem::path folder;  ///< of the submission
    std::string program;
    std::size_t n_runs = 0;
    std::size_t n_tasks = 0;
    double longest_task_s = 0;           ///< NaN = unknown
    std::int64_t peak_memory_bytes = 0;  ///< of a run with all its MPI ranks; 0 = unknown
    std::int64_t threads = 1;            ///< most of an MPI rank, where configs say
};

/// The whole sbatch script: header, settings, and the body of jobs/sweep.sbatch.
[[nodiscard]] std::string sbatch_script(const ScriptFacts& facts, const SubmitOptions& options);

/// Run folders that a submission of this sweep still holds in the queue, as far as `squeue` tells.
/// @param note  why that could not be found out, for people; empty if it could
[[nodiscard]] std::set<std::string> queued_folders(const std::filesystem::path& output, std::string& note);

/// Writes and submits what is missing, and tells the user. @return the exit code
/// @throws Error (environment) without sbatch, or with sbatch's own words (then nothing of the submission remains)
int submit(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs,
           const SubmitOptions& options);

}  // namespace hetlora::sweep
