// The committed rounds of a run that was cut short, from whichever of its two copies (run.h5, progress.jsonl) is whole,
// and both files opened again to go on after a round.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log.hpp"

namespace hetlora {

/// What is left of a run's two copies.
struct CommittedRounds {
    std::vector<RoundRecord> records{};   ///< rounds 0, 1, ... of the copy that has more of them
    std::string log_damage{};             ///< why run.h5 cannot be gone on with; empty: it can
    std::int64_t rounds_in_progress = 0;  ///< whole lines of progress.jsonl
};

/// Reads both copies; a torn end is cut off, a copy that cannot be read counts as empty. Changes nothing.
[[nodiscard]] CommittedRounds read_committed_rounds(const RunFolder& folder,
                                                    std::span<const ExtraMetric> extra_metrics = {});

/// Both files, open for the next round.
struct ReopenedLog {
    RunLog log;
    ProgressFile progress;
    std::vector<std::string> notes{};  ///< for people: what was damaged and made anew
};

/// Opens run.h5 and progress.jsonl to go on after the first `keep_rounds` rows (row 0 included); the rest is cut off.
/// A damaged run.h5 is renamed to run.h5.damaged and made anew from progress.jsonl, and the other way round.
/// @param header what a new run.h5 starts with
/// @pre committed.records.size() >= keep_rounds
/// @throws Error (environment) if the disk refuses
[[nodiscard]] ReopenedLog reopen_log(const RunFolder& folder, const CommittedRounds& committed,
                                     std::int64_t keep_rounds, const RunLogHeader& header);

}  // namespace hetlora
