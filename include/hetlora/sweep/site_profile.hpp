// What one cluster asks of a job: a small INI file per site, used by `hetlora sweep submit --profile FILE`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace hetlora::sweep {

/// Section [site] of a profile. Everything is optional; what is empty is left to the cluster's own default.
struct SiteProfile {
    std::string name;
    std::string partition;
    std::string account;
    std::string qos;
    std::string time;  ///< of an array task, as sbatch takes it; empty: from the prediction
    std::string nodes;
    std::string mem;  ///< of a node, as sbatch takes it; empty: from the prediction, if there is one
    std::string gpus_per_node;
    std::string gpu_bind;
    std::string constraint;
    std::int64_t cpus_per_task = 1;
    std::string launcher = "srun-pmix";  ///< or "mpirun"
    std::vector<std::string> setup;      ///< shell lines before the first run: modules, environments
    std::string scratch;                 ///< folder for temporary files (TMPDIR of the runs)
    std::int64_t signal_lead_s = 120;    ///< the runs are told so long before the time limit
    std::int64_t max_requeues = 20;
    std::vector<std::string> extra;  ///< further sbatch options, e.g. "--exclusive"
};

/// @throws Error (usage) with all problems at once, each with file and line: unknown keys with the nearest name,
/// numbers
///         that are none, a launcher that does not exist
[[nodiscard]] SiteProfile read_site_profile(const std::filesystem::path& file);

/// The same for text. @param origin  what problems name as the file
[[nodiscard]] SiteProfile read_site_profile_text(const std::string& text, const std::string& origin);

}  // namespace hetlora::sweep
