// See hetlora/store/run_log_reader.hpp.
#include "hetlora/store/run_log_reader.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <optional>
#include <utility>

#include "hetlora/base/error.hpp"
#include "run_log_layout.hpp"

namespace hetlora {

namespace {

using hdf5::Dataset;
using hdf5::ElementType;

std::string dataset_type_name(ElementType type) {
    switch (type) {
        case ElementType::i8:
            return "int8";
        case ElementType::u8:
            return "uint8";
        case ElementType::i32:
            return "int32";
        case ElementType::i64:
            return "int64";
        case ElementType::f32:
            return "float32";
        case ElementType::f64:
            return "float64";
        case ElementType::text:
            return "string";
    }
    return "?";
}

template <typename T>
std::vector<T> read_rows(const Dataset& data, std::int64_t rows) {
    std::vector<T> values(static_cast<std::size_t>(rows * data.row_elements()));
    data.read<T>(0, values);
    return values;
}

template <typename Row>
std::vector<Row> read_table(const hdf5::Group& group, std::span<const Column<Row>> columns, std::int64_t many) {
    std::vector<Row> rows(static_cast<std::size_t>(many));
    for (const Column<Row>& column : columns) {
        const Dataset data = group.open_dataset(std::string(column.name));
        if (column.is_float()) {
            const std::vector<double> values = read_rows<double>(data, many);
            for (std::size_t i = 0; i < rows.size(); ++i) column.set_number(rows[i], values[i]);
        } else {
            const std::vector<std::int64_t> values = read_rows<std::int64_t>(data, many);
            for (std::size_t i = 0; i < rows.size(); ++i) column.set_integer(rows[i], values[i]);
        }
    }
    return rows;
}

/// True if the column must be the same for any number of MPI ranks.
bool reproducible(const std::string& group, const std::string& name) {
    const auto free = [&name](const auto& column) { return column.name == name && !column.any_mpi_ranks; };
    if (group == "rounds") return std::ranges::none_of(round_columns(), free);
    if (group == "participation") return std::ranges::none_of(participation_columns(), free);
    return true;
}

/// The first difference of two columns, bit by bit (a NaN equals the same NaN).
std::optional<std::string> first_difference(const ColumnData& a, const ColumnData& b) {
    if (a.type != b.type) return fmt::format("type {} and {}", a.type, b.type);
    if (a.shape != b.shape) {
        return fmt::format("{} and {} rows", a.shape.empty() ? 0 : a.shape[0], b.shape.empty() ? 0 : b.shape[0]);
    }
    const std::size_t per_row =
        a.shape.empty()
            ? std::size_t{1}
            : std::max<std::size_t>(static_cast<std::size_t>(std::accumulate(a.shape.begin() + 1, a.shape.end(),
                                                                             std::int64_t{1}, std::multiplies<>())),
                                    1);
    const char* place = a.shape.size() == 2 ? "column" : "place";
    const auto line = [&](std::size_t i, const auto& x, const auto& y) {
        return fmt::format("row {}{}: {} and {}", i / per_row,
                           per_row > 1 ? fmt::format(", {} {}", place, i % per_row) : std::string(), x, y);
    };
    for (std::size_t i = 0; i < a.numbers.size(); ++i) {
        if (std::bit_cast<std::uint64_t>(a.numbers[i]) != std::bit_cast<std::uint64_t>(b.numbers[i])) {
            return line(i, a.numbers[i], b.numbers[i]);
        }
    }
    for (std::size_t i = 0; i < a.integers.size(); ++i) {
        if (a.integers[i] != b.integers[i]) return line(i, a.integers[i], b.integers[i]);
    }
    for (std::size_t i = 0; i < a.texts.size(); ++i) {
        if (a.texts[i] != b.texts[i]) return line(i, a.texts[i], b.texts[i]);
    }
    return std::nullopt;
}

}  // namespace

struct RunLogReader::Impl {
    hdf5::File file;
    std::int64_t committed_rounds = 0;
    std::int64_t events = 0;
    std::int64_t layer_rows = 0;

    void count_rows();
    /// Rows of a column that are committed; -1 = all (it does not grow).
    [[nodiscard]] std::int64_t committed_rows(const std::string& group, const std::string& name) const {
        if (group == "rounds" || (group == "slots" && name != "slot")) return committed_rounds;
        if (group == "layers" && name != "layer" && name != "index" && name != "name") return layer_rows;
        return group == "participation" ? events : -1;
    }
};

RunLogReader::RunLogReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RunLogReader::RunLogReader(RunLogReader&&) noexcept = default;
RunLogReader& RunLogReader::operator=(RunLogReader&&) noexcept = default;
RunLogReader::~RunLogReader() = default;

void RunLogReader::Impl::count_rows() {
    committed_rounds = file.read_int("committed_rounds");
    events = events_before(file.open_dataset("participation/round").read_all<std::int64_t>(), committed_rounds);
    if (!file.has("layers")) return;
    layer_rows = layer_rows_before(file.open_dataset("layers/round").read_all<std::int64_t>(), committed_rounds);
}

RunLogReader RunLogReader::open(const std::filesystem::path& path) {
    auto impl = std::make_unique<Impl>();
    impl->file = hdf5::File::open_read(path);
    check_run_log_schema(impl->file);
    impl->count_rows();
    return RunLogReader(std::move(impl));
}

RunLogReader RunLogReader::open_damaged(const std::filesystem::path& path) {
    auto impl = std::make_unique<Impl>();
    impl->file = hdf5::File::open_read(path);
    try {
        impl->count_rows();
    } catch (const Error&) {  // what was counted before stays
    }
    return RunLogReader(std::move(impl));
}

const std::filesystem::path& RunLogReader::path() const { return impl_->file.path(); }
std::string RunLogReader::run_id() const { return impl_->file.read_text("run_id"); }
std::string RunLogReader::creator_version() const { return impl_->file.read_text("creator_version"); }
std::string RunLogReader::created_utc() const { return impl_->file.read_text("created_utc"); }
std::int64_t RunLogReader::committed_rounds() const { return impl_->committed_rounds; }
std::int64_t RunLogReader::rank_max() const { return impl_->file.read_int("rank_max"); }

Provenance RunLogReader::provenance() const {
    const hdf5::Group group = impl_->file.open_group("provenance");
    Provenance provenance;
    for (const std::string& name : group.attribute_names()) {
        if (name == "NX_class") continue;  // for viewers, not ours
        if (group.attribute_is_text(name)) {
            provenance.texts[name] = group.read_text(name);
        } else {
            provenance.integers[name] = group.read_int(name);
        }
    }
    return provenance;
}

std::vector<std::string> RunLogReader::groups() const {
    std::vector<std::string> groups = impl_->file.names();
    std::erase(groups, "provenance");
    return groups;
}

std::vector<std::string> RunLogReader::column_names(const std::string& group) const {
    return impl_->file.open_group(group).names();
}

ColumnData RunLogReader::column(const std::string& group, const std::string& name) const {
    const Dataset data = impl_->file.open_group(group).open_dataset(name);
    const std::int64_t committed = impl_->committed_rows(group, name);
    const std::int64_t rows = committed < 0 ? data.rows() : committed;
    ColumnData column;
    column.name = name;
    column.units = data.has_attribute("units") ? data.read_text("units") : "";
    column.long_name = data.has_attribute("long_name") ? data.read_text("long_name") : "";
    column.type = dataset_type_name(data.type());
    column.shape = data.shape();
    if (!column.shape.empty()) column.shape[0] = rows;
    if (data.type() == ElementType::text) {
        column.texts = data.read_strings();
    } else if (data.type() == ElementType::f64 || data.type() == ElementType::f32) {
        column.numbers = read_rows<double>(data, rows);
    } else {
        column.integers = read_rows<std::int64_t>(data, rows);
    }
    return column;
}

std::vector<RoundRow> RunLogReader::rounds() const {
    const hdf5::Group group = impl_->file.open_group("rounds");
    std::vector<RoundRow> rows = read_table(group, round_columns(), impl_->committed_rounds);
    for (const ExtraMetric& metric : extra_metrics()) {
        const std::vector<double> values =
            read_rows<double>(group.open_dataset("eval_" + metric.name), impl_->committed_rounds);
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i].extra_metrics.push_back(values[i]);
    }
    return rows;
}

std::vector<ParticipationRow> RunLogReader::participation() const {
    return read_table(impl_->file.open_group("participation"), participation_columns(), impl_->events);
}

std::vector<SlotRow> RunLogReader::slots() const {
    const ColumnData energy = column("slots", "energy");
    const ColumnData contributors = column("slots", "n_contributors");
    const std::int64_t slots = rank_max();
    std::vector<SlotRow> rows(static_cast<std::size_t>(impl_->committed_rounds));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto from = static_cast<std::ptrdiff_t>(i) * slots;
        rows[i].energy.assign(energy.numbers.begin() + from, energy.numbers.begin() + from + slots);
        rows[i].n_contributors.assign(contributors.integers.begin() + from,
                                      contributors.integers.begin() + from + slots);
    }
    return rows;
}

std::vector<std::string> RunLogReader::layer_names() const {
    return impl_->file.has("layers") ? impl_->file.open_dataset("layers/name").read_strings()
                                     : std::vector<std::string>();
}

std::vector<LayerRound> RunLogReader::layers() const {
    std::vector<LayerRound> found;
    const std::vector<std::string> names = layer_names();
    if (names.empty()) return found;
    for (const std::int64_t round : column("layers", "round").integers) {
        found.push_back({.round = round, .layers = std::vector<LayerRow>(names.size())});
    }
    const std::size_t many = names.size();
    for (const Column<LayerRow>& about : layer_columns()) {
        const std::vector<double> values = column("layers", std::string(about.name)).numbers;
        for (std::size_t i = 0; i < values.size(); ++i) {
            about.set_number(found.at(i / many).layers.at(i % many), values[i]);
        }
    }
    const std::vector<double> singular = column("layers", "singular_value").numbers;
    const auto length = static_cast<std::size_t>(rank_max());
    for (std::size_t i = 0; i < found.size() * many; ++i) {
        LayerRow& row = found[i / many].layers[i % many];
        row.name = names[i % many];
        const std::span<const double> own = std::span(singular).subspan(i * length, length);
        row.singular_value.assign(own.begin(), own.end());
    }
    return found;
}

std::vector<ClientRow> RunLogReader::clients() const {
    const hdf5::Group group = impl_->file.open_group("clients");
    const std::vector<std::string> names = group.open_dataset("name").read_strings();
    std::vector<ClientRow> rows = read_table(group, client_columns(), static_cast<std::int64_t>(names.size()));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].name = names[i];
    return rows;
}

std::vector<ExtraMetric> RunLogReader::extra_metrics() const {
    const hdf5::Group group = impl_->file.open_group("rounds");
    std::vector<ExtraMetric> metrics;
    for (const std::string& name : run_log_extra_columns(group.names())) {
        const Dataset data = group.open_dataset(name);
        metrics.push_back(
            {name.substr(std::string_view("eval_").size()), data.read_text("units"), data.read_text("long_name")});
    }
    return metrics;
}

std::vector<std::string> compare_run_logs(const RunLogReader& a, const RunLogReader& b, bool everything) {
    std::vector<std::string> differences;
    const std::vector<std::string> groups_a = a.groups();
    const std::vector<std::string> groups_b = b.groups();
    for (const std::string& group : groups_b) {
        if (std::ranges::find(groups_a, group) == groups_a.end()) differences.push_back(group + ": only in the second");
    }
    for (const std::string& group : groups_a) {
        if (std::ranges::find(groups_b, group) == groups_b.end()) {
            differences.push_back(group + ": only in the first");
            continue;
        }
        const std::vector<std::string> names_b = b.column_names(group);
        const std::vector<std::string> names_a = a.column_names(group);
        for (const std::string& name : names_b) {
            if (std::ranges::find(names_a, name) == names_a.end()) {
                differences.push_back(group + "/" + name + ": only in the second");
            }
        }
        for (const std::string& name : names_a) {
            if (!everything && !reproducible(group, name)) continue;
            if (std::ranges::find(names_b, name) == names_b.end()) {
                differences.push_back(group + "/" + name + ": only in the first");
            } else if (const auto line = first_difference(a.column(group, name), b.column(group, name))) {
                differences.push_back(group + "/" + name + ", " + *line);
            }
        }
    }
    return differences;
}

}  // namespace hetlora
