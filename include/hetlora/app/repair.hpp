// `hetlora repair RUN_DIR`: run.h5 and progress.jsonl made whole again, and what was lost said.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log_salvage.hpp"
#include "hetlora/store/run_recovery.hpp"

namespace hetlora {

/// Mends the log of a run and leaves the damaged files beside it as FILE.damaged.
/// @return lines for people: what was made anew from what, and what is lost; or that there is nothing to repair
/// @throws Error (input) if the folder is no run's, or neither copy of its log can be read; Error (usage) if a process
///         works in it; Error (environment) if the disk refuses
[[nodiscard]] std::string repair_run(const std::filesystem::path& folder);

/// What a run.h5 made anew starts with, and what of it could not be found anywhere (one sentence each).
struct RebuiltHeader {
    RunLogHeader header;
    std::vector<double> eval_loss_base{};  ///< of the clients; empty where nothing was measured or it is lost
    std::vector<double> eval_loss_final{};
    std::vector<std::string> lost{};
};

/// Puts the header together from the damaged log, the newest whole checkpoint, config.ini with the data file, and the
/// rounds themselves, in this order. @pre committed.records is not empty
[[nodiscard]] RebuiltHeader rebuild_header(const RunFolder& folder, const SalvagedLog& salvaged,
                                           const CommittedRounds& committed);

}  // namespace hetlora
