// See hetlora/store/run_recovery.hpp.
#include "hetlora/store/run_recovery.hpp"

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/run_log_reader.hpp"

namespace hetlora {

namespace {

namespace fs = std::filesystem;

/// All rounds of run.h5, after everything else in it was read, too. @throws Error
std::vector<RoundRecord> rounds_of_log(const RunLogReader& log) {
    (void)log.clients();
    (void)log.provenance();
    const auto rows = log.rounds();
    const auto slots = log.slots();
    std::vector<RoundRecord> records;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].round != static_cast<std::int64_t>(i)) {
            throw input_error("row {} of /rounds says round {} - {} - the rows are torn", i, rows[i].round,
                              log.path().string());
        }
        records.push_back({.round = rows[i], .participation = {}, .slots = slots.at(i), .layers = {}});
    }
    for (const ParticipationRow& event : log.participation()) {
        records.at(static_cast<std::size_t>(event.round)).participation.push_back(event);
    }
    for (LayerRound& one : log.layers()) {
        records.at(static_cast<std::size_t>(one.round)).layers = std::move(one.layers);
    }
    return records;
}

/// The complete lines of progress.jsonl before the first one that cannot be read; `damage` says what follows them.
std::vector<RoundRecord> rounds_of_progress(const std::string& content, std::span<const ExtraMetric> extra_metrics,
                                            std::string& damage) {
    std::vector<RoundRecord> records;
    std::size_t from = 0;
    for (std::size_t end = content.find('\n'); end != std::string::npos; end = content.find('\n', from)) {
        try {
            records.push_back(parse_progress_line(std::string_view(content).substr(from, end - from), extra_metrics,
                                                  "progress.jsonl"));
        } catch (const Error&) {
            break;
        }
        if (records.back().round.round != std::ssize(records) - 1) {
            records.pop_back();
            break;
        }
        from = end + 1;
    }
    if (from < content.size()) damage = fmt::format("line {} is torn or no line of ours", records.size() + 1);
    return records;
}

/// The first of the rounds that both have with different values; -1 if there is none. The text of progress.jsonl
/// decides: it has one form for all values that are not finite.
std::int64_t first_different_round(const CommittedRounds& committed, std::span<const RoundRecord> in_log,
                                   std::span<const RoundRecord> in_progress) {
    for (std::size_t i = 0; i < std::min(in_log.size(), in_progress.size()); ++i) {
        if (progress_line(in_log[i], committed.extra_metrics) != progress_line(in_progress[i], committed.extra_metrics))
            return static_cast<std::int64_t>(i);
    }
    return -1;
}

}  // namespace

void set_aside(const fs::path& path) {
    std::error_code error;
    if (!fs::exists(path, error)) return;
    fs::rename(path, path.string() + ".damaged", error);
    if (error) {
        throw environment_error("cannot rename the damaged '{}' - {} - mend the folder's permissions", path.string(),
                                error.message());
    }
}

CommittedRounds read_committed_rounds(const RunFolder& folder, std::span<const ExtraMetric> extra_metrics,
                                      bool log_is_safe) {
    CommittedRounds committed;
    committed.extra_metrics.assign(extra_metrics.begin(), extra_metrics.end());
    std::vector<RoundRecord> in_log;
    std::string content;
    try {
        if (!log_is_safe) throw input_error("HDF5 crashes over its metadata");
        const RunLogReader log = RunLogReader::open(folder.run_log());
        in_log = rounds_of_log(log);
        committed.extra_metrics = log.extra_metrics();
    } catch (const std::exception& error) {
        in_log.clear();
        committed.log_damage = error.what();
    }
    try {
        content = read_text_file(folder.progress());
    } catch (const Error& error) {  // a missing file holds no rounds
        committed.progress_damage = error.what();
    }
    if (!committed.log_damage.empty() && committed.extra_metrics.empty()) {
        committed.extra_metrics = progress_extra_metrics(std::string_view(content).substr(0, content.find('\n')));
    }
    committed.records = rounds_of_progress(content, committed.extra_metrics, committed.progress_damage);
    committed.rounds_in_log = std::ssize(in_log);
    committed.rounds_in_progress = std::ssize(committed.records);
    // A round is written to the log first: a log with fewer rows than the second copy has lost some.
    if (committed.log_damage.empty() && committed.rounds_in_log < committed.rounds_in_progress) {
        committed.log_damage =
            fmt::format("it has {} rounds, progress.jsonl has {}", in_log.size(), committed.records.size());
    } else if (committed.log_damage.empty()) {
        const std::int64_t round = first_different_round(committed, in_log, committed.records);
        if (round >= 0) committed.log_damage = fmt::format("its round {} is not that of progress.jsonl", round);
    }
    for (std::size_t i = committed.records.size(); i < in_log.size(); ++i) {
        committed.records.push_back(std::move(in_log[i]));
    }
    return committed;
}

ProgressFile make_progress(const fs::path& path, std::vector<ExtraMetric> extra_metrics,
                           std::span<const RoundRecord> records) {
    ProgressFile progress = ProgressFile::create(path, std::move(extra_metrics));
    for (const RoundRecord& record : records) progress.append(record);
    return progress;
}

RunLog make_run_log(const fs::path& path, RunLogHeader header, std::span<const RoundRecord> records) {
    for (const RoundRecord& record : records) {
        if (!header.layers.empty()) break;
        for (const LayerRow& row : record.layers) header.layers.push_back(row.name);
    }
    RunLog log = RunLog::create(path, header);
    for (const RoundRecord& record : records) {
        log.append_round(record.round, record.participation, record.slots, record.layers);
    }
    return log;
}

ReopenedLog reopen_log(const RunFolder& folder, const CommittedRounds& committed, std::int64_t keep_rounds,
                       const RunLogHeader& header) {
    std::vector<std::string> notes;
    const auto kept = std::span(committed.records).first(static_cast<std::size_t>(keep_rounds));

    std::optional<RunLog> log;
    std::string damage = committed.log_damage;
    if (damage.empty()) {
        try {
            log.emplace(RunLog::reopen(folder.run_log(), keep_rounds, header.layers, header.labels));
        } catch (const Error& error) {
            damage = error.what();
        }
    }
    if (!log) {
        set_aside(folder.run_log());
        log.emplace(make_run_log(folder.run_log(), header, kept));
        notes.push_back(fmt::format("run.h5 was damaged ({}); it was made anew from progress.jsonl, with all {} rounds",
                                    damage, keep_rounds));
    }

    if (committed.rounds_in_progress >= keep_rounds) {
        return {.log = std::move(*log),
                .progress = ProgressFile::reopen(folder.progress(), keep_rounds, header.extra_metrics),
                .notes = std::move(notes)};
    }
    set_aside(folder.progress());
    ProgressFile progress = make_progress(folder.progress(), header.extra_metrics, kept);
    notes.push_back(fmt::format("progress.jsonl had only {} whole lines; it was made anew from run.h5, with all {}",
                                committed.rounds_in_progress, keep_rounds));
    return {.log = std::move(*log), .progress = std::move(progress), .notes = std::move(notes)};
}

}  // namespace hetlora
