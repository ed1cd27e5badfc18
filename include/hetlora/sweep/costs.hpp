// What a run costs: seconds and memory, from finished runs of the sweep where there are some, else from a short
// measurement (`hetlora plan --json`) of one run of each kind, which is kept in <sweep>/.calibration.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "hetlora/store/run_log_rows.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/run_state.hpp"

namespace hetlora::sweep {

/// One kind of run: those with the same PlannedRun::cost_key.
struct Cost {
    double seconds_start = not_measured;   ///< until the first round
    double seconds_rounds = not_measured;  ///< of all rounds
    std::int64_t peak_memory_bytes = 0;    ///< of one MPI rank; 0 = unknown
    bool on_gpu = false;
    bool finished_runs = false;  ///< the seconds come from finished runs
    [[nodiscard]] double seconds() const noexcept { return seconds_start + seconds_rounds; }
    [[nodiscard]] bool known() const noexcept { return seconds() >= 0; }
};

class Costs {
public:
    /// Reads what is known: the kept calibrations, then the finished runs (a few of each kind).
    Costs(const SweepPlan& plan, const std::vector<FolderState>& states, std::int64_t mpi_ranks);

    /// Measures kinds that are not known, most frequent first, at most `most`, and keeps the results.
    /// @param announce  called before each measurement, which takes seconds
    /// @throws Error with the program's own message if it fails; Error (environment) if it cannot be started
    void calibrate(const SweepPlan& plan, const std::vector<FolderState>& states, std::int64_t most,
                   const std::function<void(const PlannedRun&)>& announce);

    /// Of this run; for a kind that is not known the mean of the others; unknown (NaN) if there is none.
    [[nodiscard]] Cost of(const PlannedRun& run) const;

    /// Seconds until a run is done, given where it stands: 0 for done and failed ones, NaN if nothing is known.
    [[nodiscard]] double seconds_left(const PlannedRun& run, const FolderState& state) const;

    /// Of the most demanding run that is known; 0 = unknown.
    [[nodiscard]] std::int64_t largest_memory_bytes(const SweepPlan& plan) const;

    /// Kinds of runs in the plan, and how many of them are known.
    [[nodiscard]] std::int64_t kinds() const noexcept { return kinds_; }
    [[nodiscard]] std::int64_t known_kinds() const noexcept;

private:
    void read_cache();
    void save() const noexcept;
    [[nodiscard]] std::string cache_key(const std::string& cost_key) const;

    std::filesystem::path cache_;
    std::int64_t mpi_ranks_;
    std::int64_t kinds_ = 0;
    std::map<std::string, Cost> calibrated_;  ///< by cache_key
    std::map<std::string, Cost> cost_of_;     ///< by cost_key
};

}  // namespace hetlora::sweep
