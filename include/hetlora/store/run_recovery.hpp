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
    std::vector<RoundRecord> records{};        ///< rounds 0, 1, ... of both copies together
    std::string log_damage{};                  ///< why run.h5 cannot be gone on with; empty: it can
    std::int64_t rounds_in_log = 0;            ///< committed rounds that run.h5 gives back
    std::int64_t rounds_in_progress = 0;       ///< whole lines of progress.jsonl
    std::string progress_damage{};             ///< what is behind them, or why there are none; empty: nothing wrong
    std::vector<ExtraMetric> extra_metrics{};  ///< of the log, else as given, else as progress.jsonl names them
};

/// Reads both copies; a torn end is cut off, a copy that cannot be read counts as empty. Where both have a round and
/// differ, progress.jsonl is believed: its lines are never written twice. Changes nothing.
/// @param log_is_safe false: run.h5 is not opened (can_be_read_safely())
[[nodiscard]] CommittedRounds read_committed_rounds(const RunFolder& folder,
                                                    std::span<const ExtraMetric> extra_metrics = {},
                                                    bool log_is_safe = true);

/// Makes a run.h5 with these rounds (row 0 first) and leaves it open for the next. /layers is made where `header` or a
/// round has any. @throws Error (environment) if the file exists or the disk refuses
[[nodiscard]] RunLog make_run_log(const std::filesystem::path& path, RunLogHeader header,
                                  std::span<const RoundRecord> records);
/// The same for progress.jsonl.
[[nodiscard]] ProgressFile make_progress(const std::filesystem::path& path, std::vector<ExtraMetric> extra_metrics,
                                         std::span<const RoundRecord> records);
/// Renames FILE to FILE.damaged, for whoever wants to look at it; an older one of that name is replaced.
/// @throws Error (environment) if the folder refuses
void set_aside(const std::filesystem::path& path);

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
