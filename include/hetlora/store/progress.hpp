// The two files of a run folder that people and scripts watch while it runs.
//
// progress.jsonl: one JSON line per committed round, with everything that run.h5 got for it (the second copy, from
// which the log can be made anew). status.json: where the run stands now, replaced as a whole at every change. Numbers
// that are not finite are null.
#pragma once

#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/store/run_log.hpp"

namespace hetlora {

/// One round as a line of JSON without the newline: the columns of /rounds by name, "participation" as a list of
/// objects with the columns of /participation (without `round`), "slots" with energy and n_contributors;
/// where it was measured, "layers" as a list of objects with the columns of /layers.
[[nodiscard]] std::string progress_line(const RoundRecord& record, std::span<const ExtraMetric> extra_metrics);

/// Reads a line back; null becomes NaN. @throws Error (input) naming `where` for a line that is none of ours.
[[nodiscard]] RoundRecord parse_progress_line(std::string_view line, std::span<const ExtraMetric> extra_metrics,
                                              const std::string& where);

/// The further metrics that a line names, without units and long names (which only run.h5 has); none for a bad line.
[[nodiscard]] std::vector<ExtraMetric> progress_extra_metrics(std::string_view line);

/// All complete rounds of a progress.jsonl, in order. A last line without its newline (a crash while writing) is left
/// out. @throws Error (input) naming file and line otherwise.
[[nodiscard]] std::vector<RoundRecord> read_progress(const std::filesystem::path& path,
                                                     std::span<const ExtraMetric> extra_metrics);

/// Appends to progress.jsonl. Move-only.
class ProgressFile {
public:
    /// Creates the file. @throws Error (environment) if it exists or cannot be written.
    [[nodiscard]] static ProgressFile create(const std::filesystem::path& path,
                                             std::vector<ExtraMetric> extra_metrics = {});
    /// Opens a file to go on after its first `keep_rounds` lines; the rest is cut off. A missing file is made.
    [[nodiscard]] static ProgressFile reopen(const std::filesystem::path& path, std::int64_t keep_rounds,
                                             std::vector<ExtraMetric> extra_metrics = {});
    /// Writes one line and hands it to the operating system. Call after RunLog::append_round() returned.
    void append(const RoundRecord& record);

private:
    ProgressFile(std::filesystem::path path, std::ofstream file, std::vector<ExtraMetric> extra_metrics);
    std::filesystem::path path_;
    std::ofstream file_;
    std::vector<ExtraMetric> extra_metrics_{};
};

enum class RunState { running, done, failed, stopped };

/// "running", "done", "failed" or "stopped".
[[nodiscard]] std::string_view run_state_name(RunState state) noexcept;

/// What status.json says.
struct RunStatus {
    RunState state = RunState::running;
    std::string run_id{};
    std::int64_t round = 0;   ///< last committed round
    std::int64_t rounds = 0;  ///< rounds asked for
    double train_loss = not_measured;
    double eval_loss = not_measured;
    double seconds_left = not_measured;  ///< estimate
    std::string host{};
    std::int64_t pid = 0;
    std::string job_id{};  ///< Slurm's, "ARRAY_TASK" for a task of an array; empty outside jobs
    std::string message{};
    std::string updated_utc{};  ///< filled by write_status()
};

/// A status with host, pid and job id of this process.
[[nodiscard]] RunStatus status_of_this_process();
/// Replaces status.json atomically, stamped with the time now. @throws Error (environment)
void write_status(const std::filesystem::path& path, const RunStatus& status);
/// @throws Error (input) if the file is missing or no status.
[[nodiscard]] RunStatus read_status(const std::filesystem::path& path);

}  // namespace hetlora
