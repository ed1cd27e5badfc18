#include "hetlora/app/run_files.hpp"

#include "hetlora/app/build_info.hpp"
#include "hetlora/app/client_table.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/store/progress_clock.hpp"

namespace hetlora {
namespace {

/// Lines kept in a text of /provenance: an attribute of HDF5 holds 64 kB at most.
constexpr std::size_t most_provenance_lines = 100;

/// "slot_select=prefix receive=selected ...", with `plugin` for what a plugin has taken over.
std::string logged_policies(const Strategy& strategy) {
    const auto logged = logged_strategy(strategy);
    std::string text;
    for (const auto& policy : policy_values(strategy)) {
        text += fmt::format("{}{}={}", text.empty() ? "" : " ", policy.key, logged.at(std::string(policy.key)));
    }
    return text;
}

/// Numbers of the table of classes by client that are logged at most (4 bytes each).
constexpr std::int64_t most_label_cells = 4'000'000;

LabelTable label_table(const Corpus& corpus) {
    ClassCounts found = corpus.class_counts(most_label_cells);
    if (found.counts.empty()) return {};
    return {.kind = found.by_group ? "group" : "label",
            .names = std::move(found.names),
            .counts = {found.counts.begin(), found.counts.end()}};
}

RunLogHeader log_header(const Experiment& experiment, const Transport& transport, const std::string& run_id,
                        const std::string& command_line) {
    RunLogHeader header{
        .run_id = run_id, .creator_version = build_info::version, .rank_max = experiment.settings.lora.rank_max};
    if (experiment.settings.log.spectra > 0) {
        for (const AdaptedMatrix& matrix : experiment.layout.matrices) header.layers.push_back(matrix.name);
    }
    header.extra_metrics = extra_metrics(experiment.settings);
    header.client_of = client_table(*experiment.corpus, *experiment.population);
    header.n_clients = experiment.corpus->n_clients();
    header.labels = label_table(*experiment.corpus);
    header.provenance = machine_provenance(transport, experiment.engine->weights().options().device());
    header.provenance.texts["placement"] = join(experiment.placement, "\n");
    header.provenance.texts["config"] = resolved_ini(experiment.settings);
    header.provenance.texts["strategy_policies"] = logged_policies(experiment.strategy);
    header.provenance.texts["command_line"] = command_line;
    header.provenance.texts["base_sha256"] = experiment.base_sha256;
    if (const auto model = hub_model_of(experiment.settings.model.path)) {
        header.provenance.texts["base_hub_id"] = model->hub_id;
        header.provenance.texts["base_hub_commit"] = model->commit;
    }
    header.provenance.texts["data_sha256"] = experiment.data_sha256;
    if (experiment.plugin) header.provenance.texts["plugin"] = experiment.plugin->describe();
    header.provenance.texts["partition_sha256"] = experiment.partition_sha256;
    header.provenance.integers["threads"] = experiment.settings.compute.threads;
    return header;
}

void write_config(const RunFolder& folder, const Experiment& experiment, const std::string& run_id) {
    folder.write_config(
        resolved_ini(experiment.settings, fmt::format("identity {}\nbase sha256 {}\ndata sha256 {}", run_id,
                                                      experiment.base_sha256, experiment.data_sha256)),
        resolved_json(experiment.settings, logged_strategy(experiment.strategy)));
}

/// Requests of a user to a process that is gone.
void remove_requests(const RunFolder& folder) {
    std::error_code ignored;
    std::filesystem::remove(folder.stop_request(), ignored);
    std::filesystem::remove(folder.checkpoint_request(), ignored);
}

RunStatus first_status(const Experiment& experiment, const std::string& run_id, std::int64_t round) {
    RunStatus status = status_of_this_process();
    status.run_id = run_id;
    status.round = round;
    status.rounds = experiment.settings.experiment.rounds;
    return status;
}

}  // namespace

RunFiles create_files(const Experiment& experiment, const Transport& transport, const std::string& command_line,
                      std::optional<RunFolder> taken) {
    const Settings& settings = experiment.settings;
    RunFolder folder = taken ? std::move(*taken) : RunFolder::create(settings.output.dir);
    const std::string run_id = identity_hash(settings, experiment.base_sha256, experiment.data_sha256);
    folder.clear_run();
    remove_requests(folder);
    // The status goes first: whoever finds any other file of the run also finds whose they are.
    RunStatus status = first_status(experiment, run_id, 0);
    write_status(folder.status(), status);
    write_config(folder, experiment, run_id);
    RunLog log = RunLog::create(folder.run_log(), log_header(experiment, transport, run_id, command_line));
    ProgressFile progress = ProgressFile::create(folder.progress(), extra_metrics(settings));
    std::optional<TraceWriter> trace;
    if (settings.output.trace)
        trace = TraceWriter::create(folder.trace(), run_id, experiment.layout, settings.lora.rank_max);
    auto heartbeat = std::make_unique<Heartbeat>(folder);
    return {std::move(folder), std::move(log),    std::move(progress),
            std::move(trace),  std::move(status), std::move(heartbeat)};
}

RunFiles resume_files(const Experiment& experiment, const Transport& transport, const std::string& command_line,
                      ResumePoint& point) {
    const Settings& settings = experiment.settings;
    RunFolder folder = std::move(*point.folder);
    const std::string run_id = point.checkpoint->run_id;
    // What can refuse goes first: then a run that was complete still is.
    std::optional<TraceWriter> trace;
    if (settings.output.trace) {
        if (!std::filesystem::exists(folder.trace())) {
            throw usage_error(
                "output.trace = true, but the run in '{}' was not traced from its start; resume it with "
                "output.trace=false",
                folder.path().string());
        }
        trace = TraceWriter::reopen(folder.trace(), experiment.layout, settings.lora.rank_max, point.round);
    } else if (std::filesystem::exists(folder.trace())) {
        point.notes.push_back(fmt::format("output.trace is off now: trace.h5 ends at round {} or before", point.round));
    }
    ReopenedLog reopened =
        reopen_log(folder, point.committed, point.round + 1, log_header(experiment, transport, run_id, command_line));
    for (auto& note : reopened.notes) point.notes.push_back(std::move(note));
    RunStatus status = first_status(experiment, run_id, point.round);
    write_status(folder.status(), status);
    folder.clear_complete();
    write_config(folder, experiment, run_id);
    remove_requests(folder);
    auto heartbeat = std::make_unique<Heartbeat>(folder);
    RunFiles files{std::move(folder), std::move(reopened.log), std::move(reopened.progress),
                   std::move(trace),  std::move(status),       std::move(heartbeat)};
    add_provenance_line(
        files, "resumes",
        fmt::format("{} after round {} on {}, {}, {} each{}; {}", utc_now(), point.round, join(transport.hosts(), " "),
                    counted(transport.mpi_size(), "MPI rank"), counted(settings.compute.threads, "thread"),
                    files.status.job_id.empty() ? "" : ", job " + files.status.job_id, command_line));
    return files;
}

void add_provenance_line(RunFiles& files, const std::string& name, const std::string& line) {
    auto lines = split(files.log.provenance_text(name), '\n');
    std::erase(lines, "");
    lines.push_back(line);
    if (lines.size() > most_provenance_lines) {
        lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(most_provenance_lines));
    }
    files.log.add_provenance({.texts = {{name, join(lines, "\n")}}, .integers = {}});
}

}  // namespace hetlora
