// What people see while the program runs: messages and one progress line. Only the root MPI rank writes.
//
// Messages go to the output stream (stdout), warnings and progress to the error stream (stderr). If that is a
// terminal, progress is one line that is redrawn in place; otherwise it is one plain line a round.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <limits>
#include <string>
#include <string_view>

#include "hetlora/base/timer.hpp"

namespace hetlora {

/// One finished round (or training step) for people. NaN = not measured, and left out.
struct Progress {
    std::int64_t done = 0;   ///< rounds finished, counted from the start of the experiment
    std::int64_t total = 0;  ///< rounds wanted
    double train_loss = std::numeric_limits<double>::quiet_NaN();
    double eval_loss = std::numeric_limits<double>::quiet_NaN();
    double tokens_per_s = std::numeric_limits<double>::quiet_NaN();
    std::string_view tokens = "tokens";  ///< what is counted, e.g. "texts"
};

/// Messages and progress for people, silent on all MPI ranks but the root.
class Terminal {
public:
    /// Writes to stdout and stderr if `is_root`, nothing otherwise.
    explicit Terminal(bool is_root);
    /// For tests: explicit streams, and whether progress is redrawn in place.
    Terminal(bool is_root, std::ostream& out, std::ostream& err, bool err_is_terminal);
    /// Ends a progress line that is still open.
    ~Terminal();
    Terminal(const Terminal&) = delete;
    Terminal& operator=(const Terminal&) = delete;

    /// One message (a line break is added).
    void info(std::string_view message);
    /// One warning, marked as such.
    void warn(std::string_view message);

    /// Starts a progress display. `done` rounds are finished already (resume): they do not count for the rate.
    /// @param unit what is counted, singular, e.g. "round"
    void start_progress(std::string_view unit, std::int64_t done = 0);
    /// Shows a finished round with loss, rate and the time left.
    void progress(const Progress& state);
    /// Leaves the last progress line on the screen and goes to the next line.
    void end_progress();

private:
    [[nodiscard]] std::string progress_text(const Progress& state) const;
    void clear_line();

    bool is_root_;
    std::ostream& out_;
    std::ostream& err_;
    bool in_place_;
    bool fit_width_ = false;
    std::string unit_ = "round";
    std::int64_t first_done_ = 0;
    Stopwatch watch_;
    std::string shown_;  // the open progress line; empty: none
};

}  // namespace hetlora
