// See hetlora/store/run_log_salvage.hpp.
#include "hetlora/store/run_log_salvage.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "hetlora/store/trace_file.hpp"
#include "run_log_layout.hpp"

namespace hetlora {

namespace {

using hdf5::Dataset;
using hdf5::File;
using hdf5::Group;

/// The value of `read`, or nothing if it throws.
template <typename Read>
auto attempt(Read read) -> std::optional<decltype(read())> {
    try {
        return read();
    } catch (const std::exception&) {
        return std::nullopt;
    }
}

/// Column `name` of `group` without rows beyond `rows`; nothing if it cannot be read or is shorter.
template <typename T>
std::optional<std::vector<T>> column_of(const File& file, const std::string& group, std::string_view name,
                                        std::int64_t rows) {
    return attempt([&] {
        const Dataset data = file.open_dataset(group + "/" + std::string(name));
        std::vector<T> values(static_cast<std::size_t>(rows * data.row_elements()));
        data.read<T>(0, values);
        return values;
    });
}

/// Fills what can be read of a table's columns and names the others.
template <typename Row>
std::vector<Row> table_of(const File& file, const std::string& group, std::span<const Column<Row>> columns,
                          std::int64_t rows, std::vector<std::string>& lost) {
    std::vector<Row> table(static_cast<std::size_t>(rows));
    for (const Column<Row>& column : columns) {
        bool found = false;
        if (column.is_float()) {
            const auto values = column_of<double>(file, group, column.name, rows);
            found = values.has_value();
            for (std::size_t i = 0; found && i < table.size(); ++i) column.set_number(table[i], (*values)[i]);
        } else {
            const auto values = column_of<std::int64_t>(file, group, column.name, rows);
            found = values.has_value();
            for (std::size_t i = 0; found && i < table.size(); ++i) column.set_integer(table[i], (*values)[i]);
        }
        if (!found) lost.push_back(group + "/" + std::string(column.name));
    }
    return table;
}

/// Leading rows of /rounds whose number is their place, at most the committed ones.
std::int64_t countable_rounds(const File& file, std::optional<std::int64_t> committed) {
    const auto numbers = attempt([&] { return file.open_dataset("rounds/round").read_all<std::int64_t>(); });
    if (!numbers) return 0;
    std::int64_t rows = 0;
    while (rows < std::ssize(*numbers) && (*numbers)[static_cast<std::size_t>(rows)] == rows) ++rows;
    return committed ? std::clamp<std::int64_t>(*committed, 0, rows) : rows;
}

void salvage_rounds(const File& file, SalvagedLog& found) {
    const std::int64_t rows = countable_rounds(file, found.committed_rounds);
    if (rows == 0 || !found.rank_max) return;
    std::vector<std::string>& lost = found.lost_columns;
    const auto rounds = table_of(file, "rounds", round_columns(), rows, lost);
    const auto slots = static_cast<std::size_t>(*found.rank_max);
    const auto energy = column_of<double>(file, "slots", "energy", rows);
    const auto contributors = column_of<std::int64_t>(file, "slots", "n_contributors", rows);
    if (!energy || energy->size() != rounds.size() * slots) lost.emplace_back("slots/energy");
    if (!contributors || contributors->size() != rounds.size() * slots) lost.emplace_back("slots/n_contributors");
    for (std::size_t i = 0; i < rounds.size(); ++i) {
        RoundRecord& record = found.records.emplace_back();
        record.round = rounds[i];
        record.slots.energy.assign(slots, not_measured);
        record.slots.n_contributors.assign(slots, 0);
        for (std::size_t s = 0; s < slots; ++s) {
            if (energy && energy->size() == rounds.size() * slots) record.slots.energy[s] = (*energy)[i * slots + s];
            if (contributors && contributors->size() == rounds.size() * slots) {
                record.slots.n_contributors[s] = (*contributors)[i * slots + s];
            }
        }
    }
    for (const ExtraMetric& metric : found.extra_metrics.value_or(std::vector<ExtraMetric>())) {
        const auto values = column_of<double>(file, "rounds", "eval_" + metric.name, rows);
        if (!values) lost.push_back("rounds/eval_" + metric.name);
        for (std::size_t i = 0; i < rounds.size(); ++i) {
            found.records[i].round.extra_metrics.push_back(values ? (*values)[i] : not_measured);
        }
    }
}

void salvage_participation(const File& file, SalvagedLog& found) {
    if (found.records.empty()) return;
    const auto rounds = attempt([&] { return file.open_dataset("participation/round").read_all<std::int64_t>(); });
    if (!rounds) {
        found.lost_columns.emplace_back("participation");
        return;
    }
    const std::int64_t rows = events_before(*rounds, std::ssize(found.records));
    for (ParticipationRow& row : table_of(file, "participation", participation_columns(), rows, found.lost_columns)) {
        found.records[static_cast<std::size_t>(row.round)].participation.push_back(row);
    }
}

void salvage_layers(const std::filesystem::path& path, const File& file, SalvagedLog& found) {
    if (!attempt([&] { return file.has("layers"); }).value_or(false)) return;
    auto layers = attempt([&] { return RunLogReader::open_damaged(path).layers(); });
    if (!layers) found.lost_columns.emplace_back("layers");
    for (LayerRound& one : layers.value_or(std::vector<LayerRound>())) {
        const auto round = static_cast<std::size_t>(one.round);
        if (round < found.records.size()) found.records[round].layers = std::move(one.layers);
    }
}

}  // namespace

SalvagedLog salvage_run_log(const std::filesystem::path& path) {
    SalvagedLog found;
    const auto file = attempt([&] { return File::open_read(path); });
    if (!file) return found;
    // A log that this program is too old for, and a file of another kind, are not damage.
    const auto name = attempt([&] { return file->read_text("schema_name"); });
    const auto version = attempt([&] { return file->read_int("schema_version"); });
    if ((name && *name != run_log_schema_name) || (version && *version > run_log_schema_version)) {
        check_run_log_schema(*file);
    }
    found.run_id = attempt([&] { return file->read_text("run_id"); });
    found.creator_version = attempt([&] { return file->read_text("creator_version"); });
    found.created_utc = attempt([&] { return file->read_text("created_utc"); });
    found.rank_max = attempt([&] { return file->read_int("rank_max"); });
    if (found.rank_max && (*found.rank_max < 1 || *found.rank_max > 1'000'000)) found.rank_max.reset();
    found.committed_rounds = attempt([&] { return file->read_int("committed_rounds"); });
    // The parts of the reader that need no other part.
    const auto log = attempt([&] { return RunLogReader::open_damaged(path); });
    if (log) {
        found.clients = attempt([&] { return log->clients(); });
        found.provenance = attempt([&] { return log->provenance(); });
        found.extra_metrics = attempt([&] { return log->extra_metrics(); });
    }
    salvage_rounds(*file, found);
    salvage_participation(*file, found);
    salvage_layers(path, *file, found);
    return found;
}

bool can_be_read_safely(const std::filesystem::path& run_log) {
    constexpr unsigned longest_s = 120;
    const pid_t child = ::fork();
    if (child < 0) return false;
    if (child == 0) {
        ::alarm(longest_s);
        try {
            (void)salvage_run_log(run_log);
        } catch (...) {  // an orderly end, too
        }
        ::_exit(0);
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string trace_damage(const std::filesystem::path& path) {
    try {
        const File file = File::open_read(path);
        if (file.read_text("schema_name") != trace_schema_name) return "it is no trace";
        const auto last_of = [&](const std::string& name) {
            const Dataset data = file.open_dataset(name);
            std::vector<double> row(static_cast<std::size_t>(data.row_elements()));
            if (data.rows() == 0) return 0.0;
            data.read<double>(0, row);
            data.read<double>(data.rows() - 1, row);
            return row.back();
        };
        for (const char* group : {"events", "adapters", "steps", "windows", "globals"}) {
            for (const std::string& name : file.open_group(group).names()) {
                (void)last_of(std::string(group) + "/" + name);
            }
        }
        const auto fits = [&](const char* offset, const char* values) {
            return last_of(offset) <= static_cast<double>(file.open_dataset(values).rows());
        };
        if (!fits("events/received_offset", "adapters/received") || !fits("events/sent_offset", "adapters/sent") ||
            !fits("steps/window_offset", "windows/window") || !fits("globals/offset", "globals/values")) {
            return "it ends before what it says it holds";
        }
        return "";
    } catch (const std::exception& error) {
        return error.what();
    }
}

}  // namespace hetlora
