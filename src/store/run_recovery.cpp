// See hetlora/store/run_recovery.hpp.
#include "hetlora/store/run_recovery.hpp"

#include <optional>
#include <system_error>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/run_log_reader.hpp"

namespace hetlora {

namespace {

namespace fs = std::filesystem;

/// All rounds of run.h5. @throws Error
std::vector<RoundRecord> rounds_of_log(const fs::path& path) {
    const RunLogReader log = RunLogReader::open(path);
    const auto rows = log.rounds();
    const auto slots = log.slots();
    std::vector<RoundRecord> records;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        records.push_back({.round = rows[i], .participation = {}, .slots = slots.at(i)});
    }
    for (const ParticipationRow& event : log.participation()) {
        records.at(static_cast<std::size_t>(event.round)).participation.push_back(event);
    }
    return records;
}

/// The complete lines of progress.jsonl before the first one that cannot be read.
std::vector<RoundRecord> rounds_of_progress(const fs::path& path, std::span<const ExtraMetric> extra_metrics) {
    const std::string content = read_text_file(path);
    std::vector<RoundRecord> records;
    std::size_t from = 0;
    for (std::size_t end = content.find('\n'); end != std::string::npos; end = content.find('\n', from)) {
        try {
            records.push_back(
                parse_progress_line(std::string_view(content).substr(from, end - from), extra_metrics, path.string()));
        } catch (const Error&) {
            break;
        }
        if (records.back().round.round != std::ssize(records) - 1) {
            records.pop_back();
            break;
        }
        from = end + 1;
    }
    return records;
}

/// Keeps a damaged file for whoever wants to look at it; an older one of that name is replaced.
void set_aside(const fs::path& path) {
    std::error_code error;
    if (!fs::exists(path, error)) return;
    fs::rename(path, path.string() + ".damaged", error);
    if (error) {
        throw environment_error("cannot rename the damaged '{}' - {} - mend the folder's permissions", path.string(),
                                error.message());
    }
}

}  // namespace

CommittedRounds read_committed_rounds(const RunFolder& folder, std::span<const ExtraMetric> extra_metrics) {
    CommittedRounds committed;
    std::vector<RoundRecord> in_log;
    std::vector<RoundRecord> in_progress;
    try {
        in_log = rounds_of_log(folder.run_log());
    } catch (const std::exception& error) {
        committed.log_damage = error.what();
    }
    try {
        in_progress = rounds_of_progress(folder.progress(), extra_metrics);
    } catch (const Error&) {  // a missing file holds no rounds
    }
    committed.rounds_in_progress = std::ssize(in_progress);
    // A round is written to the log first: a log with fewer rows than the second copy has lost some.
    if (committed.log_damage.empty() && in_log.size() < in_progress.size()) {
        committed.log_damage =
            fmt::format("it has {} rounds, progress.jsonl has {}", in_log.size(), in_progress.size());
    }
    committed.records = in_log.size() >= in_progress.size() ? std::move(in_log) : std::move(in_progress);
    return committed;
}

ReopenedLog reopen_log(const RunFolder& folder, const CommittedRounds& committed, std::int64_t keep_rounds,
                       const RunLogHeader& header) {
    std::vector<std::string> notes;
    const auto kept = std::span(committed.records).first(static_cast<std::size_t>(keep_rounds));

    std::optional<RunLog> log;
    std::string damage = committed.log_damage;
    if (damage.empty()) {
        try {
            log.emplace(RunLog::reopen(folder.run_log(), keep_rounds));
        } catch (const Error& error) {
            damage = error.what();
        }
    }
    if (!log) {
        set_aside(folder.run_log());
        log.emplace(RunLog::create(folder.run_log(), header));
        for (const RoundRecord& record : kept) log->append_round(record.round, record.participation, record.slots);
        notes.push_back(fmt::format("run.h5 was damaged ({}); it was made anew from progress.jsonl, with all {} rounds",
                                    damage, keep_rounds));
    }

    if (committed.rounds_in_progress >= keep_rounds) {
        return {.log = std::move(*log),
                .progress = ProgressFile::reopen(folder.progress(), keep_rounds, header.extra_metrics),
                .notes = std::move(notes)};
    }
    set_aside(folder.progress());
    ProgressFile progress = ProgressFile::create(folder.progress(), header.extra_metrics);
    for (const RoundRecord& record : kept) progress.append(record);
    notes.push_back(fmt::format("progress.jsonl had only {} whole lines; it was made anew from run.h5, with all {}",
                                committed.rounds_in_progress, keep_rounds));
    return {.log = std::move(*log), .progress = std::move(progress), .notes = std::move(notes)};
}

}  // namespace hetlora
