// Reads run.h5 back: columns, rows, and the comparison of two runs. Only committed rounds are seen.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "hetlora/store/run_log.hpp"

namespace hetlora {

/// One column with its description. Exactly one of the value vectors is used, according to `type`.
struct ColumnData {
    std::string name{};
    std::string units{};
    std::string long_name{};
    std::string type{};                 ///< "int8", "int32", "int64", "float64" or "string"
    std::vector<std::int64_t> shape{};  ///< [rows], [rows, slots] or [rows, layers, indices]
    std::vector<double> numbers{};      ///< row-major
    std::vector<std::int64_t> integers{};
    std::vector<std::string> texts{};
};

/// One round of /layers.
struct LayerRound {
    std::int64_t round = 0;
    std::vector<LayerRow> layers{};
};

/// An open run.h5, read-only. Move-only.
class RunLogReader {
public:
    /// @throws Error (input) if the file is missing, damaged, no run's log or of another schema version.
    [[nodiscard]] static RunLogReader open(const std::filesystem::path& path);
    /// As open(), but committed rows, events and layers that cannot be counted are none: for what is left of a damaged
    /// log. Every other call may throw. @throws Error (input) if the file does not open at all
    [[nodiscard]] static RunLogReader open_damaged(const std::filesystem::path& path);
    RunLogReader(RunLogReader&&) noexcept;
    RunLogReader& operator=(RunLogReader&&) noexcept;
    ~RunLogReader();

    [[nodiscard]] const std::filesystem::path& path() const;
    [[nodiscard]] std::string run_id() const;
    [[nodiscard]] std::string creator_version() const;
    [[nodiscard]] std::string created_utc() const;
    /// Rows of /rounds, row 0 included.
    [[nodiscard]] std::int64_t committed_rounds() const;
    /// Slots of the global adapter.
    [[nodiscard]] std::int64_t rank_max() const;
    [[nodiscard]] Provenance provenance() const;

    /// Names of the groups that hold columns: rounds, slots, participation, clients (and layers where asked for).
    [[nodiscard]] std::vector<std::string> groups() const;
    [[nodiscard]] std::vector<std::string> column_names(const std::string& group) const;
    /// One column, cut to the committed rounds. @throws Error (input) if there is none.
    [[nodiscard]] ColumnData column(const std::string& group, const std::string& name) const;

    [[nodiscard]] std::vector<RoundRow> rounds() const;
    [[nodiscard]] std::vector<ParticipationRow> participation() const;
    [[nodiscard]] std::vector<SlotRow> slots() const;
    /// Names of the adapted matrices of /layers; empty if the log has none.
    [[nodiscard]] std::vector<std::string> layer_names() const;
    /// The rounds that /layers has, in order.
    [[nodiscard]] std::vector<LayerRound> layers() const;
    [[nodiscard]] std::vector<ClientRow> clients() const;
    /// Further metrics of this log: names without "eval_", in the order of RoundRow::extra_metrics.
    [[nodiscard]] std::vector<ExtraMetric> extra_metrics() const;

private:
    struct Impl;
    explicit RunLogReader(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// What differs between two logs, one line each ("rounds/eval_loss, row 3: 1.25 and 1.5"), bit by bit, at most one line
/// per column. Columns that may depend on machine and MPI ranks (times, memory, padded bytes, mpi_rank) are left out
/// unless `everything`. Empty: the runs are the same.
[[nodiscard]] std::vector<std::string> compare_run_logs(const RunLogReader& a, const RunLogReader& b,
                                                        bool everything = false);

}  // namespace hetlora
