// See hetlora/sweep/submission.hpp.
#include "hetlora/sweep/submission.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optional>
#include <span>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/store/progress_clock.hpp"
#include "hetlora/sweep/process.hpp"
#include "hetlora/sweep/report.hpp"

namespace hetlora::sweep {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t usual_array_limit = 1001;  // Slurm's default MaxArraySize: indices 0 to 1000

/// MaxArraySize of this cluster.
std::int64_t array_limit() {
    if (!find_on_path("scontrol")) return usual_array_limit;
    const auto finished = run_process({"scontrol", "show", "config"});
    for (const auto& line : split(finished.out, '\n')) {
        if (!line.starts_with("MaxArraySize")) continue;
        const auto number = parse_integer(trim(std::string_view(line).substr(line.find('=') + 1)));
        if (number && *number > 1) return *number;
    }
    return usual_array_limit;
}

/// "20260131-123456", with "-2" and so on where that folder exists already.
fs::path new_submission_folder(const fs::path& output) {
    std::string stamp = utc_now();  // 2026-01-31T12:34:56Z
    std::erase_if(stamp, [](char c) { return c == '-' || c == ':' || c == 'Z'; });
    std::ranges::replace(stamp, 'T', '-');
    fs::path folder = output / "slurm" / stamp;
    for (int n = 2; fs::exists(folder); ++n) folder = output / "slurm" / fmt::format("{}-{}", stamp, n);
    return folder;
}

std::string tasks_text(const SweepPlan& plan, std::span<const Task> tasks) {
    std::string text;
    for (std::size_t t = 0; t < tasks.size(); ++t) {
        for (const auto run : tasks[t].runs) text += fmt::format("{}\t{}\n", t, plan.runs[run].folder.string());
    }
    return text;
}

ScriptFacts facts_of(const SweepPlan& plan, std::span<const Task> tasks, const Costs& costs, std::int64_t mpi_ranks) {
    ScriptFacts facts{.sweep_name = plan.sweep.name, .folder = {}, .program = program_path(), .n_tasks = tasks.size()};
    for (const auto& task : tasks) {
        facts.n_runs += task.runs.size();
        const bool known = std::isfinite(task.seconds) && std::isfinite(facts.longest_task_s);
        facts.longest_task_s = known ? std::max(facts.longest_task_s, task.seconds) : not_measured;
        for (const auto run : task.runs)
            facts.threads = std::max(facts.threads, plan.runs[run].settings.compute.threads);
    }
    facts.peak_memory_bytes = costs.largest_memory_bytes(plan) * mpi_ranks;
    return facts;
}

/// Indices of an array that are still in the queue; empty optional if squeue gave no answer.
std::optional<std::set<std::string>> indices_in_queue(const std::string& job, std::string& note) {
    const auto finished = run_process({"squeue", "-h", "-r", "-j", job, "-o", "%K"});
    if (finished.ended.fine()) {
        const auto lines = split(finished.out, '\n');
        return std::set<std::string>(lines.begin(), lines.end());
    }
    if (finished.err.find("Invalid job id") != std::string::npos) return std::set<std::string>{};  // long gone
    note = fmt::format("squeue does not answer ({})", trim(finished.err));
    return {};
}

std::string submit_one(const fs::path& script) {
    const auto finished = run_process({"sbatch", "--parsable", script.string()});
    if (!finished.ended.fine()) {
        throw environment_error(
            "sbatch refused the sweep:\n{}\nChange the site profile (--profile) or the options; "
            "--dry-run prints the script",
            trim(finished.err.empty() ? finished.out : finished.err));
    }
    const auto id = std::string(trim(finished.out));
    return id.substr(0, id.find(';'));  // "id;cluster"
}

/// Writes one array's folder and submits it; removes the folder if sbatch refuses.
std::string write_and_submit(const SweepPlan& plan, std::span<const Task> tasks, const fs::path& folder,
                             const std::string& script) {
    create_folder(folder);
    try {
        write_file_atomically(folder / "tasks.tsv", tasks_text(plan, tasks));
        write_file_atomically(folder / "sweep.sbatch", script);
        const auto id = submit_one(folder / "sweep.sbatch");
        write_file_atomically(folder / "job_ids", id + "\n");
        return id;
    } catch (...) {
        std::error_code ignored;
        if (!fs::exists(folder / "job_ids", ignored)) fs::remove_all(folder, ignored);
        fs::remove(folder.parent_path(), ignored);  // where it is empty
        throw;
    }
}

void warn(const std::string& text) { std::fputs(("hetlora: warning: " + text + "\n").c_str(), stderr); }

}  // namespace

std::vector<Task> pack_tasks(const SweepPlan& plan, const std::vector<FolderState>& states,
                             const std::vector<std::size_t>& runs, const Costs& costs, double seconds) {
    std::vector<Task> tasks;
    for (const auto run : runs) {
        auto state = states[run];
        if (state.state == State::failed) state.state = State::stopped;  // goes again
        const double needed = costs.seconds_left(plan.runs[run], state);
        // A comparison with NaN is false: unknown runs start a task, and nothing joins them.
        if (!tasks.empty() && tasks.back().seconds + needed <= seconds) {
            tasks.back().runs.push_back(run);
            tasks.back().seconds += needed;
        } else {
            tasks.push_back({.runs = {run}, .seconds = needed});
        }
    }
    return tasks;
}

std::set<std::string> queued_folders(const fs::path& output, std::string& note) {
    std::set<std::string> folders;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(output / "slurm", error)) {
        const auto ids = entry.path() / "job_ids";
        if (!fs::exists(ids)) continue;
        if (!find_on_path("squeue")) {
            note = "there is no squeue on the path";
            return {};
        }
        std::set<std::string> open;
        for (const auto& id : split(read_text_file(ids, ExitCode::environment), '\n')) {
            if (id.empty()) continue;
            if (auto indices = indices_in_queue(id, note)) open.merge(*indices);
        }
        if (open.empty()) continue;
        for (const auto& line : split(read_text_file(entry.path() / "tasks.tsv", ExitCode::environment), '\n')) {
            const auto tab = line.find('\t');
            if (tab != std::string::npos && open.contains(line.substr(0, tab))) folders.insert(line.substr(tab + 1));
        }
    }
    return folders;
}

int submit(const SweepPlan& plan, const std::vector<FolderState>& states, const Costs& costs,
           const SubmitOptions& options) {
    if (!options.dry_run && !find_on_path("sbatch")) {
        throw environment_error(
            "there is no sbatch on the path: submit on a cluster's login node, load its Slurm module, "
            "run here with `hetlora sweep run`, or print the script with --dry-run");
    }
    std::string note;
    const auto queued = queued_folders(plan.sweep.output, note);
    if (!note.empty()) {
        warn(note + ", so runs of earlier submissions may be submitted twice; a run's folder lets in one process only");
    }
    std::vector<std::size_t> runs;
    std::size_t skipped = 0;
    for (std::size_t i = 0; i < plan.runs.size(); ++i) {
        if (!is_to_start(states[i].state, options.retry_failed)) continue;
        if (queued.contains(plan.runs[i].folder.string())) {
            ++skipped;
        } else {
            runs.push_back(i);
        }
    }
    const auto counts = count(states);
    const auto summary =
        fmt::format("sweep {}: {} ({}{})", plan.sweep.name, counted(std::ssize(plan.runs), "run"), counts_text(counts),
                    skipped > 0 ? fmt::format(", {} of them in the queue", skipped) : "");
    if (runs.empty()) {
        std::puts((summary + "; nothing to submit").c_str());
        return 0;
    }
    const auto tasks = pack_tasks(plan, states, runs, costs, static_cast<double>(options.task_minutes) * 60.0);
    const auto limit = static_cast<std::size_t>(array_limit());
    if (!options.dry_run) {
        create_folder(plan.sweep.output);
        for (const auto run : runs) write_request(plan.runs[run], plan.sweep);
    }
    std::string submitted;
    for (std::size_t from = 0; from < tasks.size(); from += limit) {
        const auto part = std::span(tasks).subspan(from, std::min(limit, tasks.size() - from));
        auto facts = facts_of(plan, part, costs, options.mpi_ranks);
        facts.folder = new_submission_folder(plan.sweep.output);
        const auto script = sbatch_script(facts, options);
        if (options.dry_run) {
            std::fputs(script.c_str(), stdout);
            std::fputs(fmt::format("\n# {}:\n", (facts.folder / "tasks.tsv").string()).c_str(), stdout);
            for (const auto& line : split(tasks_text(plan, part), '\n')) {
                if (!line.empty()) std::puts(("# " + line).c_str());
            }
            continue;
        }
        try {
            const auto id = write_and_submit(plan, part, facts.folder, script);
            submitted += fmt::format("\n  job {}: {} in {}, script {}", id,
                                     counted(static_cast<std::int64_t>(facts.n_runs), "run"),
                                     counted(static_cast<std::int64_t>(facts.n_tasks), "array task"),
                                     (facts.folder / "sweep.sbatch").string());
        } catch (const Error& error) {
            if (submitted.empty()) throw;
            throw Error(error.code(), fmt::format("{}\nSubmitted before that:{}", error.what(), submitted));
        }
    }
    if (options.dry_run) {
        std::fputs((summary +
                    fmt::format("; dry run of {} run{} in {} array task{}: nothing was written or submitted\n",
                                runs.size(), runs.size() == 1 ? "" : "s", tasks.size(), tasks.size() == 1 ? "" : "s"))
                       .c_str(),
                   stderr);
        return 0;
    }
    std::puts((summary + submitted + "\n  watch: hetlora sweep status").c_str());
    return 0;
}

}  // namespace hetlora::sweep
