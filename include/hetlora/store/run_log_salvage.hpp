// What can still be read of a damaged run.h5, piece by piece: a piece that cannot be read is left out and named.
// For `hetlora repair`; whoever goes on with a log uses run_recovery.hpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "hetlora/store/run_log.hpp"

namespace hetlora {

/// The readable pieces. What is absent could not be read.
struct SalvagedLog {
    std::optional<std::string> run_id{};
    std::optional<std::string> creator_version{};
    std::optional<std::string> created_utc{};
    std::optional<std::int64_t> rank_max{};
    std::optional<std::int64_t> committed_rounds{};
    std::optional<std::vector<ClientRow>> clients{};
    std::optional<Provenance> provenance{};
    std::optional<std::vector<ExtraMetric>> extra_metrics{};
    std::vector<RoundRecord> records{};       ///< rounds 0, 1, ... as far as they can be told apart
    std::vector<std::string> lost_columns{};  ///< "group/name": NaN or 0 in `records`
};

/// Reads what can be read; a file that does not open gives nothing.
/// @throws Error (input) for a log of a newer schema version, and for a file that says it is something else
[[nodiscard]] SalvagedLog salvage_run_log(const std::filesystem::path& path);

/// True if reading every piece of the log ends in order: it is tried in a process of its own, since HDF5 may crash or
/// loop over torn metadata. False also if that process cannot be started.
[[nodiscard]] bool can_be_read_safely(const std::filesystem::path& run_log);

/// Clears the mark "open for writing" that a killed writer leaves in files of HDF5's newer formats, and that keeps
/// readers out. @return false if the file does not open in spite of it (it may be changed then: try it on a copy)
[[nodiscard]] bool clear_stale_writer_mark(const std::filesystem::path& path);

/// Why trace.h5 cannot be replayed: "" if its data sets can be read at both ends and fit together.
[[nodiscard]] std::string trace_damage(const std::filesystem::path& path);

}  // namespace hetlora
