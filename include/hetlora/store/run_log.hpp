// run.h5, the log of one run: what was measured in each round, by whom, and where it all came from.
//
// Schema "hetlora-run" version 1, described in docs/run-log.md; xarray opens every group as it is. One process writes
// (the MPI root). A round becomes visible in one step: its rows are appended and flushed, then the root attribute
// `committed_rounds` is raised and flushed; readers take only that many rounds. After a crash the rows beyond it are
// cut off by reopen().
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hetlora/store/run_log_rows.hpp"

namespace hetlora {

inline constexpr const char* run_log_schema_name = "hetlora-run";
inline constexpr int run_log_schema_version = 1;

/// A metric beyond loss, perplexity and accuracy; stored as the column eval_<name> of /rounds.
struct ExtraMetric {
    std::string name{};
    std::string units = "1";
    std::string long_name{};
};

/// The group /labels: training sequences of each client by class. Empty names: no such group.
struct LabelTable {
    std::string kind = "label";          ///< "label" or "group"
    std::vector<std::string> names{};    ///< of the classes
    std::vector<std::int64_t> counts{};  ///< [client, class], row by row
};

/// What is known of a run before its first round.
struct RunLogHeader {
    std::string run_id{};
    std::string creator_version{};
    std::int64_t rank_max = 0;  ///< slots of the global adapter
    std::vector<ExtraMetric> extra_metrics{};
    std::vector<ClientRow> clients{};  ///< all clients; their index is the `client` of the participations
    /// Instead of `clients` where there may be very many: n_clients rows, asked for one at a time in rising order, the
    /// whole table several times over.
    std::function<ClientRow(std::int64_t)> client_of{};
    std::int64_t n_clients = 0;
    LabelTable labels{};
    Provenance provenance{};
    std::vector<std::string> layers{};  ///< names of the adapted matrices; empty: no /layers
    std::string created_utc{};          ///< empty: now
};

/// Writes run.h5. Move-only.
class RunLog {
public:
    /// Creates the file with all groups, no rounds.
    /// @throws Error (environment) if the file exists or cannot be written; a half-made file is removed.
    [[nodiscard]] static RunLog create(const std::filesystem::path& path, const RunLogHeader& header);
    /// Opens an existing log to go on after `keep_rounds` committed rows (row 0 included); later rows are cut off.
    /// @param layers as RunLogHeader::layers: /layers is made where they are named and the log has none
    /// @param labels as RunLogHeader::labels: /labels is made where the log has none (`hetlora repair` cannot make it)
    /// @throws Error (input) if it is no log of this schema, has fewer committed rows or other layers.
    [[nodiscard]] static RunLog reopen(const std::filesystem::path& path, std::int64_t keep_rounds,
                                       std::span<const std::string> layers = {}, const LabelTable& labels = {});

    RunLog(RunLog&&) noexcept;
    RunLog& operator=(RunLog&&) noexcept;
    /// Closes without reporting; call close() to learn of failures.
    ~RunLog();

    /// Appends one round and commits it. Call once per round, for row 0 first (participation empty). If it throws,
    /// nothing is committed and the same round may be appended again.
    /// @pre row.round == committed_rounds(); every participation has this round; slots have rank_max elements;
    ///      row.extra_metrics is empty or has one value per extra metric; layers is empty or has one row per layer
    void append_round(const RoundRow& row, std::span<const ParticipationRow> participation, const SlotRow& slots,
                      std::span<const LayerRow> layers = {});
    /// Fills eval_loss_base and eval_loss_final of /clients, one value per client (NaN where not measured), and
    /// flushes.
    void set_client_final(std::span<const double> eval_loss_base, std::span<const double> eval_loss_final);
    /// Fills a column of /clients that only some logs have (eval_accuracy_final, ...: run_log_columns.cpp), which is
    /// made where the log has none, and flushes. @param values one per client, NaN where not measured
    void set_client_column(const std::string& name, std::span<const double> values);
    /// Fills /groups, which is made where the log has none, and flushes. @pre always the same groups
    void set_group_final(std::span<const GroupRow> rows);
    /// Adds or replaces attributes of /provenance (resumes, end time), and flushes.
    void add_provenance(const Provenance& provenance);
    /// A text attribute of /provenance; "" if there is none of this name.
    [[nodiscard]] std::string provenance_text(const std::string& name) const;

    /// Rows of /rounds that are committed, row 0 included.
    [[nodiscard]] std::int64_t committed_rounds() const noexcept;
    /// Flushes and closes.
    /// @return what HDF5 says if all is written out but closing failed ("" otherwise): nothing is lost then
    /// @throws Error (environment) if HDF5 could not write the file out.
    std::string close();

private:
    struct Impl;
    explicit RunLog(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace hetlora
