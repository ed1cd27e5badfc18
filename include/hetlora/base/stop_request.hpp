// A request from outside to stop a run in order: a signal (Slurm sends one before it ends a job), or a file that a user
// puts into the run's folder.
//
// The signal's handler only sets a flag. Code that works for long looks at it often (before every local step and every
// batch of an evaluation) by throw_if_stop_requested(), whose error carries ExitCode::stopped; agree() then brings it
// to all MPI ranks. The longest time between two looks is measured: that is how long a request may wait to be seen.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// Names that StopSignals knows: "USR1", "USR2", "TERM", "HUP", "INT", "XCPU".
[[nodiscard]] const std::vector<std::string>& stop_signal_names();

/// While it lives, these signals set the request instead of ending the process. One at a time in a process.
class StopSignals {
public:
    /// Starts without a request. @throws Error (bug) for an unknown name
    explicit StopSignals(std::span<const std::string> names);
    /// Puts the former handlers back; after a request it ignores the signals instead, until the process ends.
    ~StopSignals();
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;
};

/// The same request from within, e.g. for a file in the run's folder. The first request counts.
void request_stop() noexcept;
[[nodiscard]] bool stop_requested() noexcept;
/// "SIGUSR2", or "a request in the run's folder"; "" without a request.
[[nodiscard]] std::string stop_reason();
/// Seconds since the request came; 0 without one.
[[nodiscard]] double seconds_since_stop_request() noexcept;

/// Looks at the request and notes the time since the last look. @throws Error (stopped) if there is one
void throw_if_stop_requested();
/// The time from the last look until now does not count: it went into waiting for other MPI ranks, who look themselves.
void skip_wait_for_look() noexcept;
/// The longest time between two looks so far, in seconds.
[[nodiscard]] double longest_wait_for_look_s() noexcept;

}  // namespace hetlora
