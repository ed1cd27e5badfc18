// Creates and opens the data sets of run.h5: see run_log_layout.hpp.
#include "run_log_layout.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/store/progress_clock.hpp"

namespace hetlora {

namespace {

using hdf5::Dataset;
using hdf5::ElementType;
using hdf5::Group;

constexpr std::int64_t round_chunk = 32;        // 256 bytes per column: small runs stay small
constexpr std::int64_t event_chunk = 128;       // 1 KiB
constexpr std::int64_t client_block = 1 << 14;  // rows of /clients in memory at once

/// Rows of so many fp64 values that make a chunk of about 16 KiB, or one row.
std::int64_t chunk_for(std::int64_t row_values) {
    return std::clamp<std::int64_t>(2048 / std::max<std::int64_t>(row_values, 1), 1, 64);
}

ElementType stored_type(ColumnType type) {
    switch (type) {
        case ColumnType::i8:
            return ElementType::i8;
        case ColumnType::i32:
            return ElementType::i32;
        case ColumnType::i64:
            return ElementType::i64;
        case ColumnType::f64:
            return ElementType::f64;
    }
    throw bug_error("unknown column type {} - run_log.cpp - add it", static_cast<int>(type));
}

void describe(Dataset& data, std::string_view units, std::string_view long_name) {
    // netCDF readers take missing values from the attribute, not from HDF5's own fill value.
    if (data.type() == ElementType::f64) data.write_attribute_as(ElementType::f64, "_FillValue", not_measured);
    data.write_attribute("long_name", long_name);
    data.write_attribute("units", units);
}

/// Creates an extensible or fixed column described by the table of special columns.
Dataset make_special(Group& group, std::string_view group_name, const std::string& name, ElementType type,
                     const hdf5::DatasetShape& shape) {
    const SpecialColumn& column = special_column(group_name, name);
    Dataset data = group.create_dataset(name, type, shape);
    describe(data, column.units, column.long_name);
    return data;
}

/// Creates one data set per column of a table, all along `scale` (created by the caller, or the first column itself).
template <typename Row>
std::vector<Dataset> make_table(Group& group, std::span<const Column<Row>> columns, const hdf5::DatasetShape& shape,
                                const Dataset* scale) {
    std::vector<Dataset> table;
    for (const Column<Row>& column : columns) {
        Dataset data = group.create_dataset(std::string(column.name), stored_type(column.type), shape);
        describe(data, column.units, column.long_name);
        if (scale == nullptr && table.empty()) {
            data.make_scale(std::string(column.name));
        } else {
            data.attach_scale(0, scale == nullptr ? table.front() : *scale);
        }
        table.push_back(std::move(data));
    }
    return table;
}

template <typename Row>
std::vector<Dataset> open_table(const Group& group, std::span<const Column<Row>> columns) {
    std::vector<Dataset> table;
    for (const Column<Row>& column : columns) table.push_back(group.open_dataset(std::string(column.name)));
    return table;
}

}  // namespace

RunLogLayout RunLogLayout::create(hdf5::File& file, const RunLogHeader& header) {
    RunLogLayout layout;
    layout.rank_max = header.rank_max;
    layout.n_clients = header.client_of ? header.n_clients : std::ssize(header.clients);
    layout.create_rounds(file, header);
    layout.create_slots(file);
    layout.create_participation(file);
    create_clients(file, header);
    if (!header.labels.names.empty()) create_labels(file, header.labels, layout.n_clients);
    if (!header.layers.empty()) layout.create_layers(file, header.layers);
    file.create_group("provenance").write_attribute("NX_class", "NXcollection");
    write_provenance(file, header.provenance);
    file.write_attribute("schema_name", run_log_schema_name);
    file.write_attribute("schema_version", run_log_schema_version);
    file.write_attribute("run_id", header.run_id);
    file.write_attribute("creator", "hetlora");
    file.write_attribute("creator_version", header.creator_version);
    file.write_attribute("hdf5_version", hdf5::library_version());
    file.write_attribute("created_utc", header.created_utc.empty() ? utc_now() : header.created_utc);
    file.write_attribute("NX_class", "NXroot");
    file.write_attribute("default", "rounds");
    file.write_attribute("rank_max", header.rank_max);
    file.write_attribute("committed_rounds", 0);
    return layout;
}

void RunLogLayout::create_rounds(hdf5::File& file, const RunLogHeader& header) {
    Group group = file.create_group("rounds");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "eval_loss");
    group.write_attribute("axes", std::vector<std::string>{"round"});
    const hdf5::DatasetShape shape{.extent = {0}, .unlimited = true, .chunk_rows = round_chunk};
    rounds = make_table(group, round_columns(), shape, nullptr);
    for (const ExtraMetric& metric : header.extra_metrics) {
        const std::string name = "eval_" + metric.name;
        if (metric.name.empty() || group.has(name)) {
            throw bug_error(
                "metric '{}' is empty, listed twice or one of the standard columns - run log - list each "
                "further metric once",
                metric.name);
        }
        Dataset data = group.create_dataset(name, ElementType::f64, shape);
        describe(data, metric.units, metric.long_name.empty() ? name : metric.long_name);
        data.attach_scale(0, rounds.front());
        extra_metrics.push_back(std::move(data));
    }
}

void RunLogLayout::create_slots(hdf5::File& file) {
    Group group = file.create_group("slots");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "energy");
    group.write_attribute("axes", std::vector<std::string>{"round", "slot"});
    const hdf5::DatasetShape growing{.extent = {0}, .unlimited = true, .chunk_rows = round_chunk};
    const hdf5::DatasetShape table{.extent = {0, rank_max}, .unlimited = true, .chunk_rows = 64};
    slots_round = make_special(group, "slots", "round", ElementType::i64, growing);
    slots_round.make_scale("round");
    Dataset slot = make_special(group, "slots", "slot", ElementType::i32, {.extent = {rank_max}});
    slot.write<std::int64_t>(0, count_from(0, static_cast<std::size_t>(rank_max)));
    slot.make_scale("slot");
    slots_energy = make_special(group, "slots", "energy", ElementType::f64, table);
    slots_contributors = make_special(group, "slots", "n_contributors", ElementType::i32, table);
    for (Dataset* data : {&slots_energy, &slots_contributors}) {
        data->attach_scale(0, slots_round);
        data->attach_scale(1, slot);
    }
}

void RunLogLayout::create_participation(hdf5::File& file) {
    Group group = file.create_group("participation");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "loss_last");
    group.write_attribute("axes", std::vector<std::string>{"event"});
    const hdf5::DatasetShape shape{.extent = {0}, .unlimited = true, .chunk_rows = event_chunk};
    events = make_special(group, "participation", "event", ElementType::i64, shape);
    events.make_scale("event");
    participation = make_table(group, participation_columns(), shape, &events);
}

void RunLogLayout::create_clients(hdf5::File& file, const RunLogHeader& header) {
    Group group = file.create_group("clients");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "initial_lora_rank");
    group.write_attribute("axes", std::vector<std::string>{"client"});
    const std::int64_t many = header.client_of ? header.n_clients : std::ssize(header.clients);
    const auto row_of = [&](std::int64_t k) {
        return header.client_of ? header.client_of(k) : header.clients[static_cast<std::size_t>(k)];
    };
    Dataset client = make_special(group, "clients", "client", ElementType::i32, {.extent = {many}});
    client.make_scale("client");
    Dataset name = group.create_strings("name", many, [&](std::int64_t k) { return row_of(k).name; });
    const SpecialColumn& about = special_column("clients", "name");
    describe(name, about.units, about.long_name);
    name.attach_scale(0, client);
    std::vector<Dataset> table = make_table(group, client_columns(), {.extent = {many}}, &client);
    for (std::int64_t begin = 0; begin < many; begin += client_block) {
        std::vector<ClientRow> rows;
        for (std::int64_t k = begin; k < std::min(begin + client_block, many); ++k) rows.push_back(row_of(k));
        client.write<std::int64_t>(begin, count_from(begin, rows.size()));
        put_table<ClientRow>(table, client_columns(), begin, rows, false);
    }
}

void RunLogLayout::create_labels(hdf5::File& file, const LabelTable& labels, std::int64_t n_clients) {
    const auto n_labels = static_cast<std::int64_t>(labels.names.size());
    if (std::ssize(labels.counts) != n_clients * n_labels) {
        throw bug_error("{} counts of {} clients in {} classes - run log - this is a mistake in hetlora",
                        labels.counts.size(), n_clients, n_labels);
    }
    Group group = file.create_group("labels");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "n_train_sequences");
    group.write_attribute("axes", std::vector<std::string>{"client", "label"});
    group.write_attribute("kind", labels.kind);
    // Scales of its own: one that is attached from another group breaks netCDF readers.
    Dataset client = make_special(group, "labels", "client", ElementType::i32, {.extent = {n_clients}});
    client.write<std::int64_t>(0, count_from(0, static_cast<std::size_t>(n_clients)));
    client.make_scale("client");
    Dataset label = make_special(group, "labels", "label", ElementType::i32, {.extent = {n_labels}});
    label.write<std::int64_t>(0, count_from(0, labels.names.size()));
    label.make_scale("label");
    Dataset name = group.create_strings("name", labels.names);
    describe(name, special_column("labels", "name").units, special_column("labels", "name").long_name);
    name.attach_scale(0, label);
    Dataset counts =
        make_special(group, "labels", "n_train_sequences", ElementType::i32, {.extent = {n_clients, n_labels}});
    counts.write<std::int64_t>(0, labels.counts);
    counts.attach_scale(0, client);
    counts.attach_scale(1, label);
}

void RunLogLayout::create_groups(hdf5::File& file, std::span<const std::string> names) {
    Group group = file.create_group("groups");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "eval_loss");
    group.write_attribute("axes", std::vector<std::string>{"group"});
    const hdf5::DatasetShape shape{.extent = {static_cast<std::int64_t>(names.size())}};
    Dataset scale = make_special(group, "groups", "group", ElementType::i32, shape);
    scale.write<std::int64_t>(0, count_from(0, names.size()));
    scale.make_scale("group");
    Dataset name = group.create_strings("name", names);
    describe(name, special_column("groups", "name").units, special_column("groups", "name").long_name);
    name.attach_scale(0, scale);
    make_special(group, "groups", "tokens", ElementType::i64, shape).attach_scale(0, scale);
    for (const char* column : {"eval_loss", "eval_accuracy", "eval_choice_accuracy"})
        make_special(group, "groups", column, ElementType::f64, shape).attach_scale(0, scale);
}

Dataset RunLogLayout::client_column(hdf5::File& file, const std::string& name, std::int64_t n_clients) {
    Group group = file.open_group("clients");
    if (group.has(name)) return group.open_dataset(name);
    Dataset data = make_special(group, "clients", name, ElementType::f64, {.extent = {n_clients}});
    data.attach_scale(0, group.open_dataset("client"));
    return data;
}

RunLogLayout RunLogLayout::open(const hdf5::File& file) {
    check_run_log_schema(file);
    RunLogLayout layout;
    const Group rounds_group = file.open_group("rounds");
    layout.rounds = open_table(rounds_group, round_columns());
    for (const std::string& name : run_log_extra_columns(rounds_group.names())) {
        layout.extra_metrics.push_back(rounds_group.open_dataset(name));
    }
    layout.slots_round = file.open_dataset("slots/round");
    layout.slots_energy = file.open_dataset("slots/energy");
    layout.slots_contributors = file.open_dataset("slots/n_contributors");
    layout.events = file.open_dataset("participation/event");
    layout.participation = open_table(file.open_group("participation"), participation_columns());
    if (file.has("layers")) {
        const Group layers = file.open_group("layers");
        layout.layers_round = layers.open_dataset("round");
        layout.layers = open_table(layers, layer_columns());
        layout.singular_values = layers.open_dataset("singular_value");
        layout.layer_names = layers.open_dataset("name").read_strings();
    }
    layout.rank_max = file.read_int("rank_max");
    layout.n_clients = file.open_dataset("clients/client").rows();
    return layout;
}

void RunLogLayout::create_layers(hdf5::File& file, std::span<const std::string> names) {
    Group group = file.create_group("layers");
    group.write_attribute("NX_class", "NXdata");
    group.write_attribute("signal", "update_norm");
    group.write_attribute("axes", std::vector<std::string>{"round", "layer"});
    const auto many = static_cast<std::int64_t>(names.size());
    layer_names.assign(names.begin(), names.end());
    layers_round = make_special(group, "layers", "round", ElementType::i64,
                                {.extent = {0}, .unlimited = true, .chunk_rows = round_chunk});
    layers_round.make_scale("round");
    Dataset layer = make_special(group, "layers", "layer", ElementType::i32, {.extent = {many}});
    layer.write<std::int64_t>(0, count_from(0, names.size()));
    layer.make_scale("layer");
    Dataset index = make_special(group, "layers", "index", ElementType::i32, {.extent = {rank_max}});
    index.write<std::int64_t>(0, count_from(0, static_cast<std::size_t>(rank_max)));
    index.make_scale("index");
    Dataset name = group.create_strings("name", names);
    describe(name, special_column("layers", "name").units, special_column("layers", "name").long_name);
    name.attach_scale(0, layer);
    for (const Column<LayerRow>& column : layer_columns()) {
        Dataset data = group.create_dataset(std::string(column.name), ElementType::f64,
                                            {.extent = {0, many}, .unlimited = true, .chunk_rows = chunk_for(many)});
        describe(data, column.units, column.long_name);
        data.attach_scale(0, layers_round);
        data.attach_scale(1, layer);
        layers.push_back(std::move(data));
    }
    singular_values =
        make_special(group, "layers", "singular_value", ElementType::f64,
                     {.extent = {0, many, rank_max}, .unlimited = true, .chunk_rows = chunk_for(many * rank_max)});
    singular_values.attach_scale(0, layers_round);
    singular_values.attach_scale(1, layer);
    singular_values.attach_scale(2, index);
}

void write_provenance(hdf5::File& file, const Provenance& provenance) {
    Group group = file.open_group("provenance");
    for (const auto& [name, value] : provenance.texts) group.write_attribute(name, value);
    for (const auto& [name, value] : provenance.integers) group.write_attribute(name, value);
}

void check_run_log_schema(const hdf5::File& file) {
    if (!file.attribute_is_text("schema_name") || file.read_text("schema_name") != run_log_schema_name) {
        throw input_error("not the log of a run (no root attribute schema_name = \"{}\") - {} - name a run.h5",
                          run_log_schema_name, file.where());
    }
    const std::int64_t version = file.read_int("schema_version");
    if (version != run_log_schema_version) {
        throw input_error(
            "the log has schema version {}, this program reads {} - {} - use the hetlora that wrote it ({})", version,
            run_log_schema_version, file.where(), file.read_text("creator_version"));
    }
}

std::vector<std::string> run_log_extra_columns(const std::vector<std::string>& names) {
    std::vector<std::string> extra;
    for (const std::string& name : names) {
        const auto is_it = [&name](const Column<RoundRow>& column) { return column.name == name; };
        if (std::ranges::none_of(round_columns(), is_it)) extra.push_back(name);
    }
    return extra;
}

std::int64_t events_before(std::span<const std::int64_t> event_rounds, std::int64_t rounds) {
    std::int64_t previous = 1;  // round 0 trains nobody
    std::size_t many = 0;
    while (many < event_rounds.size() && event_rounds[many] >= previous && event_rounds[many] < rounds) {
        previous = event_rounds[many++];
    }
    return static_cast<std::int64_t>(many);
}

std::int64_t layer_rows_before(std::span<const std::int64_t> layer_rounds, std::int64_t rounds) {
    std::int64_t previous = 0;
    std::size_t many = 0;
    while (many < layer_rounds.size() && layer_rounds[many] > previous && layer_rounds[many] < rounds) {
        previous = layer_rounds[many++];
    }
    return static_cast<std::int64_t>(many);
}

std::vector<std::int64_t> count_from(std::int64_t first, std::size_t many) {
    std::vector<std::int64_t> values(many);
    for (std::size_t i = 0; i < many; ++i) values[i] = first + static_cast<std::int64_t>(i);
    return values;
}

}  // namespace hetlora
