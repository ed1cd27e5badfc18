// The one table that says which columns a run's log has: name, units, meaning, stored type, and the field it comes
// from. The writer, the reader, progress.jsonl and the test of docs/run-log.md all walk over it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "hetlora/store/run_log_rows.hpp"

namespace hetlora {

/// How a column is stored in run.h5.
enum class ColumnType { i8, i32, i64, f64 };

/// "int8", "int32", "int64" or "float64", as xarray shows it.
[[nodiscard]] std::string_view column_type_name(ColumnType type) noexcept;

/// A column of a table of `Row`s.
template <typename Row>
struct Column {
    std::string_view name;
    std::string_view units;  ///< "1" = dimensionless
    std::string_view long_name;
    ColumnType type;
    std::variant<double Row::*, std::int64_t Row::*, bool Row::*> field;
    bool any_mpi_ranks = true;  ///< bit-identical for any number of MPI ranks

    [[nodiscard]] bool is_float() const noexcept { return type == ColumnType::f64; }
    /// The value of a float column. @pre is_float()
    [[nodiscard]] double number(const Row& row) const { return row.*std::get<double Row::*>(field); }
    /// The value of an integer column (a bool is 0 or 1). @pre !is_float()
    [[nodiscard]] std::int64_t integer(const Row& row) const {
        if (const auto* flag = std::get_if<bool Row::*>(&field)) return row.**flag ? 1 : 0;
        return row.*std::get<std::int64_t Row::*>(field);
    }
    void set_number(Row& row, double value) const { row.*std::get<double Row::*>(field) = value; }
    void set_integer(Row& row, std::int64_t value) const {
        if (const auto* flag = std::get_if<bool Row::*>(&field)) {
            row.** flag = value != 0;
        } else {
            row.*std::get<std::int64_t Row::*>(field) = value;
        }
    }
};

/// Columns of /rounds; the first is the dimension scale `round`. Further metrics follow `eval_accuracy` in the file's
/// documentation but are stored after these columns.
[[nodiscard]] std::span<const Column<RoundRow>> round_columns() noexcept;
/// Columns of /participation; its dimension scale `event` (0, 1, ...) is not among them.
[[nodiscard]] std::span<const Column<ParticipationRow>> participation_columns() noexcept;
/// Columns of /clients but for the text column `name`; its dimension scale is `client` (0, 1, ...).
[[nodiscard]] std::span<const Column<ClientRow>> client_columns() noexcept;

/// Columns of /layers with one number per round and matrix.
[[nodiscard]] std::span<const Column<LayerRow>> layer_columns() noexcept;

/// A column that is no plain field of a row: scales, texts, the 2-D columns of /slots and the 3-D one of
/// /layers.
struct SpecialColumn {
    std::string_view group;
    std::string_view name;
    std::string_view units;
    std::string_view long_name;
    std::string_view type;
};
[[nodiscard]] std::span<const SpecialColumn> special_columns() noexcept;
/// Looks one up. @throws Error (bug) if there is none.
[[nodiscard]] const SpecialColumn& special_column(std::string_view group, std::string_view name);

}  // namespace hetlora
