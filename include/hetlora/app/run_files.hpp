// Root's files of a run: made for a new run, or opened again to go on with one that was cut short.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"
#include "hetlora/app/resume.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log.hpp"
#include "hetlora/store/trace_file.hpp"

namespace hetlora {

/// Root's files of a run. Elsewhere there is none.
struct RunFiles {
    RunFolder folder;
    RunLog log;
    ProgressFile progress;
    std::optional<TraceWriter> trace;
    RunStatus status;
    std::unique_ptr<Heartbeat> heartbeat;
};

/// Creates the run's folder and files on root. @throws Error (usage, environment) if the folder cannot be taken
/// @param folder where a run stood that never came to its first checkpoint: already locked, its files are replaced
[[nodiscard]] RunFiles create_files(const Experiment& experiment, const Transport& transport,
                                    const std::string& command_line, std::optional<RunFolder> folder);

/// Opens the files of `point` on root, cut back to its checkpoint, and logs the resume in /provenance.
/// @throws Error (environment) if the disk refuses, Error (input) if the trace is damaged
[[nodiscard]] RunFiles resume_files(const Experiment& experiment, const Transport& transport,
                                    const std::string& command_line, ResumePoint& point);

/// Adds a line to /provenance's text `name` ("resumes", "stops"); the oldest of very many are dropped.
void add_provenance_line(RunFiles& files, const std::string& name, const std::string& line);

}  // namespace hetlora
