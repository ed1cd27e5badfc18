// Where a run stands, read from its folder alone: no scheduler and no accounting is asked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/store/run_log_rows.hpp"
#include "hetlora/sweep/planned_run.hpp"

namespace hetlora::sweep {

enum class State {
    done,     ///< COMPLETE, with all rounds that the sweep asks for
    running,  ///< status.json says so, and a process holds the folder (is_run_folder_in_use)
    waiting,  ///< never started
    stopped,  ///< stopped on request, or complete with fewer rounds than asked for now: goes on
    died,     ///< status.json says running, but nobody holds the folder: goes on from its last checkpoint
    failed,   ///< ended with an error; goes again on request only
};
inline constexpr int n_states = 6;

/// "done", "running", "waiting", "stopped", "died" or "failed".
[[nodiscard]] std::string_view state_name(State state) noexcept;

/// What a run's folder says.
struct FolderState {
    State state = State::waiting;
    std::int64_t round = 0;   ///< last committed round
    std::int64_t rounds = 0;  ///< rounds wanted
    double train_loss = not_measured;
    double eval_loss = not_measured;
    double seconds_left = not_measured;  ///< the run's own estimate
    std::string host{};
    std::string job_id{};
    std::string reason{};  ///< of a failure, one line
};

/// Reads one folder; one that does not exist is a run that waits. A damaged status.json counts as none.
[[nodiscard]] FolderState scan_folder(const std::filesystem::path& folder, std::int64_t rounds_wanted);

/// The states of all runs of a plan, in its order.
[[nodiscard]] std::vector<FolderState> scan(const SweepPlan& plan);

/// How the line begins that opens every start of a run in its output.log.
inline constexpr std::string_view start_mark = "--- ";

/// The last line of a run's output that tells of an error ("hetlora: ..."), else its last line; "" if there is none.
[[nodiscard]] std::string last_words(const std::filesystem::path& output_log);

/// Seconds of a run's round by its progress.jsonl (median of its last rounds); NaN if there are none.
[[nodiscard]] double seconds_per_round(const std::filesystem::path& folder);

/// True for a state in which a run is (re)started; failed ones only if asked for.
[[nodiscard]] bool is_to_start(State state, bool retry_failed) noexcept;

}  // namespace hetlora::sweep
