// What people and scripts are told of a sweep: the plan, the states, the time left.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "hetlora/sweep/costs.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/run_state.hpp"

namespace hetlora::sweep {

/// How many runs are in each state.
using Counts = std::array<std::int64_t, n_states>;
[[nodiscard]] Counts count(const std::vector<FolderState>& states);

/// "12 done, 2 running, 1 failed, 5 waiting": what is not 0.
[[nodiscard]] std::string counts_text(const Counts& counts);

/// Where and how runs would be done side by side.
struct Machine {
    std::int64_t cores = 1;
    std::int64_t free_memory_bytes = 0;  ///< 0 = unknown
    std::int64_t mpi_ranks = 1;          ///< of each run
    std::int64_t max_parallel = 0;       ///< 0 = as many as fit
};

/// Runs that fit side by side: by cores (mpi_ranks x threads each) and, where it is known, by memory; at least 1.
[[nodiscard]] std::int64_t side_by_side(const Machine& machine, const SweepPlan& plan, const Costs& costs);

/// `sweep plan`: the runs with their folders (some, or all), and time, memory and core-hours.
[[nodiscard]] std::string plan_text(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs,
                                    const Machine& machine, bool all);

/// `sweep status`: one line of counts, the groups, failures with their reasons, the time left.
[[nodiscard]] std::string status_text(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs,
                                      bool all);

/// The same for scripts, as JSON: counts, seconds_left, and every run.
[[nodiscard]] std::string status_json(const SweepPlan& plan, const std::vector<FolderState>& states,
                                      const Costs& costs);

}  // namespace hetlora::sweep
