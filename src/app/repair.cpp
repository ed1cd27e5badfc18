// See hetlora/app/repair.hpp.
#include "hetlora/app/repair.hpp"

#include <algorithm>
#include <array>
#include <system_error>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/progress_clock.hpp"
#include "hetlora/store/run_log_reader.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

/// What `hetlora repair` has to say.
struct Findings {
    std::vector<std::string> done;
    std::vector<std::string> lost;
};

[[nodiscard]] Error disk_refused(const fs::path& path, const std::error_code& error) {
    return environment_error("cannot write '{}' - {} - check free space, quota and permissions there", path.string(),
                             error.message());
}

fs::path with(const fs::path& path, const char* ending) { return path.string() + ending; }

/// Puts `made` in the place of `path`, whose old content stays as FILE.damaged.
void replace(const fs::path& path, const fs::path& made) {
    set_aside(path);
    std::error_code error;
    fs::rename(made, path, error);
    if (error) throw disk_refused(path, error);
}

/// Makes a copy of a file that does not open, without the stale mark of a killed writer.
/// @return true if `is_whole` finds the copy to be what it should be; else there is no copy
template <typename IsWhole>
bool clear_mark(const fs::path& path, const fs::path& copy, IsWhole is_whole) {
    std::error_code error;
    if (!fs::exists(path, error)) return false;
    fs::copy_file(path, copy, fs::copy_options::overwrite_existing, error);
    if (error) throw disk_refused(copy, error);
    if (clear_stale_writer_mark(copy) && can_be_read_safely(copy) && is_whole()) return true;
    fs::remove(copy, error);
    return false;
}

bool opens(const fs::path& path) {
    try {
        (void)RunLogReader::open_damaged(path);
        return true;
    } catch (const Error&) {
        return false;
    }
}

/// The highest number of committed rows that any file tells of.
std::int64_t rows_told_of(const RunFolder& folder, const SalvagedLog& salvaged) {
    std::int64_t rows = std::clamp<std::int64_t>(salvaged.committed_rounds.value_or(0), 0, 1'000'000'000);
    try {
        const RunStatus status = read_status(folder.status());
        if (status.round > 0) rows = std::max(rows, status.round + 1);
    } catch (const Error&) {  // missing
    }
    const auto checkpoints = checkpoint_rounds(folder.checkpoints());
    return checkpoints.empty() ? rows : std::max(rows, checkpoints.back() + 1);
}

void mend_log(const RunFolder& folder, const SalvagedLog& salvaged, CommittedRounds& committed, Findings& findings) {
    const std::int64_t from_progress = committed.rounds_in_progress;
    const std::int64_t from_log = std::ssize(committed.records) - from_progress;
    RebuiltHeader rebuilt = rebuild_header(folder, salvaged, committed);
    for (auto& sentence : rebuilt.lost) findings.lost.push_back(std::move(sentence));
    std::string sources = from_progress > 0 ? fmt::format("{} rounds of progress.jsonl", from_progress) : "";
    if (from_log > 0) sources += fmt::format("{}{} of its own", sources.empty() ? "" : " and ", from_log);
    std::string& repairs = rebuilt.header.provenance.texts["repairs"];
    repairs += fmt::format("{}{}: made anew with {}; lost: {}", repairs.empty() ? "" : "\n", utc_now(), sources,
                           findings.lost.empty() ? "nothing" : join(findings.lost, "; "));
    const fs::path made = with(folder.run_log(), ".repairing");
    std::error_code error;
    fs::remove(made, error);
    RunLog log = make_run_log(made, rebuilt.header, committed.records);
    if (!rebuilt.eval_loss_base.empty()) log.set_client_final(rebuilt.eval_loss_base, rebuilt.eval_loss_final);
    (void)log.close();
    replace(folder.run_log(), made);
    findings.done.push_back(
        fmt::format("run.h5 was damaged ({}): made anew with {}{}", committed.log_damage, sources,
                    fs::exists(with(folder.run_log(), ".damaged")) ? "; the old file is run.h5.damaged" : ""));
}

void mend_progress(const RunFolder& folder, const CommittedRounds& committed, Findings& findings) {
    const std::int64_t missing = std::ssize(committed.records) - committed.rounds_in_progress;
    if (missing == 0 && committed.progress_damage.empty()) return;
    const fs::path made = with(folder.progress(), ".repairing");
    std::error_code error;
    fs::remove(made, error);
    (void)make_progress(made, committed.extra_metrics, committed.records);
    replace(folder.progress(), made);
    std::string what = committed.progress_damage;
    if (missing > 0) {
        what += fmt::format("{}it lacked {} round{} that run.h5 has", what.empty() ? "" : "; ", missing,
                            missing == 1 ? "" : "s");
    }
    findings.done.push_back(
        fmt::format("progress.jsonl was damaged ({}): written anew with {} lines{}", what, committed.records.size(),
                    fs::exists(with(folder.progress(), ".damaged")) ? "; the old file is progress.jsonl.damaged" : ""));
}

/// A trace cannot be made anew; a stale mark can be cleared.
void look_at_trace(const RunFolder& folder, Findings& findings) {
    if (!fs::exists(folder.trace())) return;
    const std::string damage = trace_damage(folder.trace());
    if (damage.empty()) return;
    const fs::path copy = with(folder.trace(), ".repairing");
    if (clear_mark(folder.trace(), copy, [&] { return trace_damage(copy).empty(); })) {
        replace(folder.trace(), copy);
        findings.done.emplace_back(
            "trace.h5 was marked as open for writing by a process that is gone: mark cleared; the old file is "
            "trace.h5.damaged");
        return;
    }
    findings.lost.push_back(fmt::format(
        "trace: trace.h5 cannot be made anew ({}); `hetlora audit` cannot replay the run, and to go on, resume it with "
        "output.trace=false",
        damage));
}

void check_is_run(const fs::path& folder) {
    std::error_code error;
    const bool is_run = fs::is_directory(folder, error) &&
                        std::ranges::any_of(std::array{"status.json", "run.h5", "progress.jsonl", "config.ini"},
                                            [&](const char* name) { return fs::exists(folder / name, error); });
    if (!is_run) {
        throw input_error(
            "'{}' is no folder of a run (it has no run.h5, progress.jsonl, config.ini or status.json) - name the "
            "folder "
            "that `hetlora run` wrote",
            folder.string());
    }
}

}  // namespace

std::string repair_run(const fs::path& path) {
    check_is_run(path);
    const RunFolder folder = RunFolder::reopen(path, 0.0);
    Findings findings;

    const bool readable = can_be_read_safely(folder.run_log());
    const fs::path copy = with(folder.run_log(), ".repairing");
    const auto is_log = [&] { return salvage_run_log(copy).rank_max.has_value(); };
    if (readable && !opens(folder.run_log()) && clear_mark(folder.run_log(), copy, is_log)) {
        replace(folder.run_log(), copy);
        findings.done.emplace_back(
            "run.h5 was marked as open for writing by a process that is gone: mark cleared; the old file is "
            "run.h5.damaged");
    }
    const SalvagedLog salvaged = readable ? salvage_run_log(folder.run_log()) : SalvagedLog();
    CommittedRounds committed = read_committed_rounds(folder, {}, readable);
    const std::string unreadable = committed.log_damage;
    if (!committed.log_damage.empty() && std::ssize(salvaged.records) > std::ssize(committed.records)) {
        for (const std::string& name : salvaged.lost_columns) {
            findings.lost.push_back(fmt::format("{} of the rounds from {} on", name, committed.records.size()));
        }
        if (committed.records.empty())
            committed.extra_metrics = salvaged.extra_metrics.value_or(committed.extra_metrics);
        committed.records.insert(committed.records.end(), salvaged.records.begin() + std::ssize(committed.records),
                                 salvaged.records.end());
    }
    if (committed.records.empty() && !unreadable.empty()) {
        throw input_error(
            "no round of the run in '{}' can be read: run.h5: {} - progress.jsonl: {} - nothing was changed; "
            "`hetlora run --resume` begins a run anew that never came to a checkpoint",
            path.string(), unreadable, committed.progress_damage.empty() ? "it is empty" : committed.progress_damage);
    }
    if (const std::int64_t told = rows_told_of(folder, salvaged); told > std::ssize(committed.records)) {
        const auto first = std::ssize(committed.records);
        findings.lost.push_back(first == told - 1 ? fmt::format("round {}", first)
                                                  : fmt::format("rounds {} to {}", first, told - 1));
    }
    if (!committed.log_damage.empty()) mend_log(folder, salvaged, committed, findings);
    mend_progress(folder, committed, findings);
    look_at_trace(folder, findings);

    if (findings.done.empty() && findings.lost.empty()) {
        return fmt::format(
            "nothing to repair in {}: {} committed rows (row 0: before training) in run.h5 and progress.jsonl\n",
            path.string(), committed.records.size());
    }
    std::string text;
    for (const std::string& line : findings.done) text += line + "\n";
    if (findings.lost.empty())
        return text + fmt::format("nothing was lost: {} committed rows\n", committed.records.size());
    for (const std::string& line : findings.lost) text += "lost: " + line + "\n";
    return text + fmt::format("{} committed rows are whole\n", committed.records.size());
}

}  // namespace hetlora
