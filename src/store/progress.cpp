// progress.jsonl: see hetlora/store/progress.hpp. The columns come from the same table as those of run.h5.
#include "hetlora/store/progress.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/run_log_columns.hpp"
#include "json_number.hpp"

namespace hetlora {

namespace {

using Json = nlohmann::ordered_json;

template <typename Row>
void put_row(Json& out, std::span<const Column<Row>> columns, const Row& row, std::string_view skip) {
    for (const Column<Row>& column : columns) {
        if (column.name == skip) continue;
        const std::string name(column.name);
        out[name] = column.is_float() ? number_or_null(column.number(row)) : Json(column.integer(row));
    }
}

template <typename Row>
Row take_row(const Json& in, std::span<const Column<Row>> columns, std::string_view skip) {
    Row row;
    for (const Column<Row>& column : columns) {
        if (column.name == skip) continue;
        const Json& value = in.at(std::string(column.name));
        if (column.is_float()) {
            column.set_number(row, number_or_unmeasured(value));
        } else {
            column.set_integer(row, value.get<std::int64_t>());
        }
    }
    return row;
}

[[nodiscard]] Error cannot_write(const std::filesystem::path& path) {
    return environment_error("cannot write '{}' - {} - check free space, quota and permissions there", path.string(),
                             std::strerror(errno));
}

}  // namespace

std::string progress_line(const RoundRecord& record, std::span<const ExtraMetric> extra_metrics) {
    Json line = Json::object();
    put_row<RoundRow>(line, round_columns(), record.round, "");
    for (std::size_t i = 0; i < extra_metrics.size(); ++i) {
        const bool measured = i < record.round.extra_metrics.size();
        line["eval_" + extra_metrics[i].name] =
            measured ? number_or_null(record.round.extra_metrics[i]) : Json(nullptr);
    }
    Json& events = line["participation"] = Json::array();
    for (const ParticipationRow& row : record.participation) {
        put_row<ParticipationRow>(events.emplace_back(Json::object()), participation_columns(), row, "round");
    }
    Json& energy = line["slots"]["energy"] = Json::array();
    for (const double value : record.slots.energy) energy.push_back(number_or_null(value));
    line["slots"]["n_contributors"] = record.slots.n_contributors;
    for (const LayerRow& row : record.layers) {
        Json& layer = line["layers"].emplace_back(Json{{"name", row.name}});
        put_row<LayerRow>(layer, layer_columns(), row, "");
        Json& values = layer["singular_value"] = Json::array();
        for (const double value : row.singular_value) values.push_back(number_or_null(value));
    }
    return line.dump();
}

RoundRecord parse_progress_line(std::string_view line, std::span<const ExtraMetric> extra_metrics,
                                const std::string& where) {
    try {
        const Json in = Json::parse(line);
        RoundRecord record;
        record.round = take_row<RoundRow>(in, round_columns(), "");
        for (const ExtraMetric& metric : extra_metrics) {
            record.round.extra_metrics.push_back(number_or_unmeasured(in.at("eval_" + metric.name)));
        }
        for (const Json& event : in.at("participation")) {
            record.participation.push_back(take_row<ParticipationRow>(event, participation_columns(), "round"));
            record.participation.back().round = record.round.round;
        }
        for (const Json& value : in.at("slots").at("energy"))
            record.slots.energy.push_back(number_or_unmeasured(value));
        record.slots.n_contributors = in.at("slots").at("n_contributors").get<std::vector<std::int64_t>>();
        if (!in.contains("layers")) return record;
        for (const Json& layer : in.at("layers")) {
            record.layers.push_back(take_row<LayerRow>(layer, layer_columns(), ""));
            record.layers.back().name = layer.at("name").get<std::string>();
            for (const Json& value : layer.at("singular_value")) {
                record.layers.back().singular_value.push_back(number_or_unmeasured(value));
            }
        }
        return record;
    } catch (const nlohmann::json::exception& error) {
        throw input_error(
            "not a line of progress.jsonl ({}) - {} - remove the line and those after it, then resume or "
            "repair from the rounds before",
            error.what(), where);
    }
}

std::vector<ExtraMetric> progress_extra_metrics(std::string_view line) {
    std::vector<ExtraMetric> metrics;
    const Json in = Json::parse(line, nullptr, false);
    if (!in.is_object()) return metrics;
    for (const auto& [key, value] : in.items()) {
        const auto is_it = [&key](const Column<RoundRow>& column) { return column.name == key; };
        if (key.starts_with("eval_") && std::ranges::none_of(round_columns(), is_it)) {
            metrics.push_back({.name = key.substr(std::string_view("eval_").size())});
        }
    }
    return metrics;
}

std::vector<RoundRecord> read_progress(const std::filesystem::path& path, std::span<const ExtraMetric> extra_metrics) {
    const std::string content = read_text_file(path);
    std::vector<RoundRecord> records;
    std::size_t from = 0;
    for (std::size_t end = content.find('\n'); end != std::string::npos; end = content.find('\n', from)) {
        const std::string where = fmt::format("{}, line {}", path.string(), records.size() + 1);
        const std::string_view line = std::string_view(content).substr(from, end - from);
        records.push_back(parse_progress_line(line, extra_metrics, where));
        from = end + 1;
    }
    return records;
}

ProgressFile::ProgressFile(std::filesystem::path path, std::ofstream file, std::vector<ExtraMetric> extra_metrics)
    : path_(std::move(path)), file_(std::move(file)), extra_metrics_(std::move(extra_metrics)) {}

ProgressFile ProgressFile::create(const std::filesystem::path& path, std::vector<ExtraMetric> extra_metrics) {
    if (std::filesystem::exists(std::filesystem::symlink_status(path))) {
        throw environment_error("will not overwrite '{}' - it exists - remove it, or choose another output folder",
                                path.string());
    }
    return reopen(path, 0, std::move(extra_metrics));
}

ProgressFile ProgressFile::reopen(const std::filesystem::path& path, std::int64_t keep_rounds,
                                  std::vector<ExtraMetric> extra_metrics) {
    std::size_t keep_bytes = 0;
    if (keep_rounds > 0) {
        const std::string content = read_text_file(path);
        for (std::int64_t line = 0; line < keep_rounds; ++line) {
            const std::size_t end = content.find('\n', keep_bytes);
            if (end == std::string::npos) {
                throw input_error(
                    "only {} complete lines, {} rounds are to be kept - {} - resume from an older checkpoint, "
                    "or make the file anew with `hetlora repair`",
                    line, keep_rounds, path.string());
            }
            keep_bytes = end + 1;
        }
    }
    std::ofstream file(path, std::ios::binary | std::ios::app);
    if (!file) throw cannot_write(path);
    std::error_code error;
    std::filesystem::resize_file(path, keep_bytes, error);
    if (error) {
        throw environment_error("cannot cut '{}' to {} bytes - {} - check its permissions", path.string(), keep_bytes,
                                error.message());
    }
    return {path, std::move(file), std::move(extra_metrics)};
}

void ProgressFile::append(const RoundRecord& record) {
    file_ << progress_line(record, extra_metrics_) << '\n' << std::flush;
    if (!file_) throw cannot_write(path_);
}

}  // namespace hetlora
