// Where a training step's time goes: seconds and useful FLOPs by part, counted where the work is done.
//
// Off (the default) a timer costs one comparison. Not for several threads: the engine is driven by one.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <string_view>

namespace hetlora {

enum class StepPart : std::size_t {
    frozen_gemm,
    lora,
    attention,
    norm_rotary,
    swiglu,
    head_gemm,
    cross_entropy,
    optimizer,
    batch,  ///< reading windows, building the pack, collecting losses
    count
};

[[nodiscard]] std::string_view name_of(StepPart part);

struct StepProfile {
    std::array<double, static_cast<std::size_t>(StepPart::count)> seconds{};
    std::array<double, static_cast<std::size_t>(StepPart::count)> flops{};
};

/// The profile that timers add to; null: none is taken.
inline StepProfile* active_profile = nullptr;

/// Called before a timer reads the clock: waits for a device that works beside the host; null where none does.
inline void (*profile_wait)() = nullptr;

/// Adds the time of its scope to a part. Scopes must not be nested.
class PartTimer {
public:
    /// @param flops useful floating-point operations of the scope
    explicit PartTimer(StepPart part, double flops = 0.0) : part_(static_cast<std::size_t>(part)) {
        if (active_profile == nullptr) return;
        active_profile->flops[part_] += flops;
        if (profile_wait != nullptr) profile_wait();
        start_ = std::chrono::steady_clock::now();
    }
    ~PartTimer() {
        if (active_profile == nullptr) return;
        if (profile_wait != nullptr) profile_wait();
        active_profile->seconds[part_] +=
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    PartTimer(const PartTimer&) = delete;
    PartTimer& operator=(const PartTimer&) = delete;

private:
    std::size_t part_;
    std::chrono::steady_clock::time_point start_;
};

}  // namespace hetlora
