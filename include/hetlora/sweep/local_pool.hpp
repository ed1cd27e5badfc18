// `hetlora sweep run`: the runs of a sweep on this machine, several side by side, with one live table.
#pragma once

#include <vector>

#include "hetlora/sweep/costs.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/report.hpp"
#include "hetlora/sweep/run_state.hpp"

namespace hetlora::sweep {

/// Starts what is missing, as `hetlora run --config <folder>/request.ini --output <folder> --resume`, and waits for it.
/// Output of a run goes to <folder>/output.log. A failed run does not stop the others. INT, TERM, HUP and USR2 pass on
/// USR2 to the runs, which write a checkpoint; a second one ends them at once.
/// @param states  of the plan's runs; failed ones are started only where `retry_failed`
/// @return 0: all runs are done; 75: stopped on request; the first failed run's own code; 5: only runs that had failed
///         before are missing
[[nodiscard]] int run_here(const SweepPlan& plan, std::vector<FolderState> states, const Costs& costs,
                           const Machine& machine, bool retry_failed);

}  // namespace hetlora::sweep
