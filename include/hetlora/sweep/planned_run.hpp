// The runs of a sweep: their settings, identities and folders. A run is found by its identity, never by its number.
//
// The folder is <output>/<label>_<first 8 digits of the identity>/. A folder that ends in these digits is the run's,
// whatever its label: an axis that is added later changes labels, not runs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/config/settings.hpp"
#include "hetlora/sweep/sweep_file.hpp"

namespace hetlora::sweep {

struct PlannedRun {
    std::string label;
    std::string text;      ///< what this run sets, for people
    std::string identity;  ///< 64 hex digits, the same as the run's own
    std::filesystem::path folder;
    bool folder_exists = false;
    Settings settings;          ///< complete, threads included
    bool threads_open = false;  ///< the config leaves the number of threads open
    std::string cost_key;  ///< equal for runs that take the same time and memory (but for their lora_ranks and seeds)
    [[nodiscard]] std::filesystem::path request() const { return folder / "request.ini"; }
    [[nodiscard]] std::filesystem::path output_log() const { return folder / "output.log"; }
};

struct SweepPlan {
    SweepFile sweep;
    std::vector<PlannedRun> runs;
    std::int64_t excluded = 0;                   ///< combinations that a rule left out
    std::vector<std::filesystem::path> foreign;  ///< folders of runs that are not in the sweep as it is now
};

/// Expands a sweep, checks every run's config, and finds the folders. Writes nothing but the cache of hashes.
/// @param automatic_threads  threads of an MPI rank where a run's config leaves them open
/// @throws Error (usage) for wrong settings (at most 5, with the combination), two runs of the same identity, a folder
///         of the same 8 digits that holds another run; Error (input) for a missing base or data file
[[nodiscard]] SweepPlan make_plan(SweepFile sweep, std::int64_t automatic_threads = 1);

/// Creates the run's folder and its request.ini: the complete config with which it is started. A request that is
/// there already is replaced only where it differs; the larger number of rounds stays, and the threads of a run that
/// has begun.
/// @throws Error (environment)
void write_request(const PlannedRun& run, const SweepFile& sweep);

}  // namespace hetlora::sweep
