// A run's checkpoints on root: written where they are due, else the last complete round kept in memory for a stop.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "hetlora/app/resume.hpp"

namespace hetlora {

class RunCheckpoints {
public:
    /// @param experiment must outlive this
    RunCheckpoints(const Experiment& experiment, std::filesystem::path folder)
        : experiment_(experiment), folder_(std::move(folder)) {}

    /// After a complete round: writes it where checkpoint.every or `asked` says so, else keeps it in memory.
    void after_round(CarriedState state, bool asked);
    /// A stop: the last complete round, where no checkpoint holds it yet.
    void flush();
    /// A finished run keeps one checkpoint, of its last round.
    void finish(const CarriedState& last);
    /// A resumed run starts with the checkpoint of this round.
    void begin_after(std::int64_t round) { saved_round_ = round; }

    /// Round of the newest checkpoint; -1: none.
    [[nodiscard]] std::int64_t saved_round() const { return saved_round_; }
    [[nodiscard]] double longest_s() const { return longest_s_; }
    /// Seconds spent writing since this was asked for last.
    [[nodiscard]] double take_seconds();

private:
    void write(const CarriedState& state, std::int64_t keep);

    const Experiment& experiment_;
    std::filesystem::path folder_;
    std::optional<CarriedState> unsaved_;  ///< the last complete round, where no checkpoint holds it
    std::int64_t saved_round_ = -1;
    double longest_s_ = 0.0;
    double seconds_ = 0.0;
};

}  // namespace hetlora
