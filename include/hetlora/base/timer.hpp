// A monotonic stopwatch; the wall clock may jump, this one cannot.
#pragma once

#include <chrono>

namespace hetlora {

/// Measures seconds since its construction or its last restart.
class Stopwatch {
public:
    Stopwatch() : start_(Clock::now()) {}

    /// Seconds since the start.
    [[nodiscard]] double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

    /// Seconds since the start, and starts again: consecutive laps add up without gaps.
    double lap() {
        const auto now = Clock::now();
        const double elapsed_s = std::chrono::duration<double>(now - start_).count();
        start_ = now;
        return elapsed_s;
    }

private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point start_;
};

/// Adds the time of a scope to a counter in seconds.
class ScopedTimer {
public:
    explicit ScopedTimer(double& total_s) : total_s_(total_s) {}
    ~ScopedTimer() { total_s_ += watch_.seconds(); }
    ScopedTimer(const ScopedTimer&) = delete;
    ScopedTimer& operator=(const ScopedTimer&) = delete;

private:
    double& total_s_;
    Stopwatch watch_;
};

}  // namespace hetlora
