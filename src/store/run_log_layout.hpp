// The groups, data sets and root attributes of run.h5, created or opened: where the writer (run_log.cpp) puts rows.
// Internal to src/store.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hetlora/store/hdf5_handle.hpp"
#include "hetlora/store/run_log.hpp"
#include "hetlora/store/run_log_columns.hpp"

namespace hetlora {

/// Open data sets of a run's log, each table in the order of its column table.
struct RunLogLayout {
    std::vector<hdf5::Dataset> rounds;
    std::vector<hdf5::Dataset> extra_metrics;
    hdf5::Dataset slots_round;
    hdf5::Dataset slots_energy;        ///< [round, slot]
    hdf5::Dataset slots_contributors;  ///< [round, slot]
    hdf5::Dataset events;
    std::vector<hdf5::Dataset> participation;
    hdf5::Dataset layers_round;         ///< empty without /layers
    std::vector<hdf5::Dataset> layers;  ///< [round, layer] each
    hdf5::Dataset singular_values;      ///< [round, layer, index]
    std::vector<std::string> layer_names;
    std::int64_t rank_max = 0;
    std::int64_t n_clients = 0;

    /// Creates everything, with committed_rounds = 0.
    [[nodiscard]] static RunLogLayout create(hdf5::File& file, const RunLogHeader& header);
    /// Opens everything. @throws Error (input) naming what is missing.
    [[nodiscard]] static RunLogLayout open(const hdf5::File& file);
    /// Adds /layers. @pre there is none
    void create_layers(hdf5::File& file, std::span<const std::string> names);
    /// Adds /labels. @pre there is none, labels.counts has n_clients rows
    static void create_labels(hdf5::File& file, const LabelTable& labels, std::int64_t n_clients);
    /// Adds /groups, with nothing measured. @pre there is none
    static void create_groups(hdf5::File& file, std::span<const std::string> names);
    /// A column of /clients that only some logs have, made where there is none.
    static hdf5::Dataset client_column(hdf5::File& file, const std::string& name, std::int64_t n_clients);

private:
    void create_rounds(hdf5::File& file, const RunLogHeader& header);
    void create_slots(hdf5::File& file);
    void create_participation(hdf5::File& file);
    static void create_clients(hdf5::File& file, const RunLogHeader& header);
};

/// Adds or replaces the attributes of /provenance.
void write_provenance(hdf5::File& file, const Provenance& provenance);

/// @throws Error (input) unless the file says that it is a run's log of a version that this program knows.
void check_run_log_schema(const hdf5::File& file);

/// Those of /rounds' members that are further metrics (in the order given).
[[nodiscard]] std::vector<std::string> run_log_extra_columns(const std::vector<std::string>& names);

/// Number of leading events that belong to rounds 1 .. rounds-1. Events are in order of rounds; rows left by an
/// unfinished append may hold the next round or still be 0, and end the count.
[[nodiscard]] std::int64_t events_before(std::span<const std::int64_t> event_rounds, std::int64_t rounds);

/// Number of leading rows of /layers that belong to rounds 1 .. rounds-1, judged as events_before() does.
[[nodiscard]] std::int64_t layer_rows_before(std::span<const std::int64_t> layer_rounds, std::int64_t rounds);

/// first, first + 1, ...: `many` numbers.
[[nodiscard]] std::vector<std::int64_t> count_from(std::int64_t first, std::size_t many);

/// Makes `data` end with `values`, which start at row `first` (whatever stood there before is replaced).
template <typename T>
void put_rows(hdf5::Dataset& data, std::int64_t first, std::span<const T> values) {
    data.resize_rows(first + static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(data.row_elements(), 1));
    data.write<T>(first, values);
}

/// Writes one row set into every column of a table; with `resize`, the columns end with them.
template <typename Row>
void put_table(std::vector<hdf5::Dataset>& table, std::span<const Column<Row>> columns, std::int64_t first,
               std::span<const Row> rows, bool resize = true) {
    for (std::size_t i = 0; i < columns.size(); ++i) {
        const auto write = [&]<typename T>(const std::vector<T>& values) {
            resize ? put_rows<T>(table[i], first, values) : table[i].write<T>(first, values);
        };
        if (columns[i].is_float()) {
            std::vector<double> values;
            for (const Row& row : rows) values.push_back(columns[i].number(row));
            write(values);
        } else {
            std::vector<std::int64_t> values;
            for (const Row& row : rows) values.push_back(columns[i].integer(row));
            write(values);
        }
    }
}

}  // namespace hetlora
