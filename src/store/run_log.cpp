// Writes run.h5. Every round rewrites nothing: columns grow by rows at fixed positions, so an append that failed
// half-way is simply repeated or cut off.
#include "hetlora/store/run_log.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

#include "hetlora/base/error.hpp"
#include "run_log_layout.hpp"

namespace hetlora {

struct RunLog::Impl {
    hdf5::File file;  // first: closed after the data sets
    RunLogLayout data;
    std::int64_t committed_rounds = 0;
    std::int64_t committed_events = 0;
    std::int64_t committed_layer_rows = 0;

    void cut(std::int64_t keep_rounds);
    void check(const RoundRow& row, std::span<const ParticipationRow> participation, const SlotRow& slots) const;
    void check_layers(std::int64_t round, std::span<const LayerRow> layers) const;
    void put_layers(std::int64_t round, std::span<const LayerRow> layers);
};

void RunLog::Impl::cut(std::int64_t keep_rounds) {
    const std::vector<std::int64_t> event_rounds = file.open_dataset("participation/round").read_all<std::int64_t>();
    const std::int64_t keep_events = events_before(event_rounds, keep_rounds);
    if (data.layers_round) {
        committed_layer_rows = layer_rows_before(data.layers_round.read_all<std::int64_t>(), keep_rounds);
    }
    // Lowered before the rows go, raised after they came: a reader never counts on rows that are not there.
    file.write_attribute("committed_rounds", keep_rounds);
    file.flush();
    for (hdf5::Dataset& column : data.rounds) column.resize_rows(keep_rounds);
    for (hdf5::Dataset& column : data.extra_metrics) column.resize_rows(keep_rounds);
    for (hdf5::Dataset* column : {&data.slots_round, &data.slots_energy, &data.slots_contributors})
        column->resize_rows(keep_rounds);
    data.events.resize_rows(keep_events);
    for (hdf5::Dataset& column : data.participation) column.resize_rows(keep_events);
    if (data.layers_round) {
        data.layers_round.resize_rows(committed_layer_rows);
        for (hdf5::Dataset& column : data.layers) column.resize_rows(committed_layer_rows);
        data.singular_values.resize_rows(committed_layer_rows);
    }
    file.flush();
    committed_rounds = keep_rounds;
    committed_events = keep_events;
}

void RunLog::Impl::check(const RoundRow& row, std::span<const ParticipationRow> rows, const SlotRow& slots) const {
    if (!file) throw bug_error("round {} appended to a closed log - run.h5 - this is a mistake in hetlora", row.round);
    if (row.round != committed_rounds) {
        throw bug_error("round {} appended, {} is next - {} - append every round once, in order", row.round,
                        committed_rounds, file.where());
    }
    for (const ParticipationRow& one : rows) {
        if (one.round < 1 || one.round != row.round || one.client < 0 || one.client >= data.n_clients) {
            throw bug_error(
                "participation of client {} in round {} appended to round {} of a log with {} clients - {} - "
                "this is a mistake in hetlora",
                one.client, one.round, row.round, data.n_clients, file.where());
        }
    }
    const auto slots_wanted = static_cast<std::size_t>(data.rank_max);
    if (slots.energy.size() != slots_wanted || slots.n_contributors.size() != slots_wanted) {
        throw bug_error(
            "{} energies and {} contributor counts for {} slots - {}, round {} - this is a mistake in hetlora",
            slots.energy.size(), slots.n_contributors.size(), data.rank_max, file.where(), row.round);
    }
    if (!row.extra_metrics.empty() && row.extra_metrics.size() != data.extra_metrics.size()) {
        throw bug_error("{} further metrics for {} columns - {}, round {} - this is a mistake in hetlora",
                        row.extra_metrics.size(), data.extra_metrics.size(), file.where(), row.round);
    }
}

void RunLog::Impl::check_layers(std::int64_t round, std::span<const LayerRow> layers) const {
    if (layers.empty()) return;
    bool fits = layers.size() == data.layer_names.size();
    for (std::size_t i = 0; fits && i < layers.size(); ++i) {
        fits = layers[i].name == data.layer_names[i] && std::ssize(layers[i].singular_value) == data.rank_max;
    }
    if (!fits) {
        throw bug_error("{} layers that are not the log's {} - {}, round {} - this is a mistake in hetlora",
                        layers.size(), data.layer_names.size(), file.where(), round);
    }
}

void RunLog::Impl::put_layers(std::int64_t round, std::span<const LayerRow> layers) {
    if (layers.empty()) return;
    const std::int64_t at = committed_layer_rows;
    std::vector<double> values;
    for (const LayerRow& row : layers)
        values.insert(values.end(), row.singular_value.begin(), row.singular_value.end());
    put_rows<double>(data.singular_values, at, values);
    for (std::size_t i = 0; i < data.layers.size(); ++i) {
        values.clear();
        for (const LayerRow& row : layers) values.push_back(layer_columns()[i].number(row));
        put_rows<double>(data.layers[i], at, values);
    }
    put_rows<std::int64_t>(data.layers_round, at, {&round, 1});
}

RunLog::RunLog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RunLog::RunLog(RunLog&&) noexcept = default;
RunLog& RunLog::operator=(RunLog&&) noexcept = default;
RunLog::~RunLog() = default;

RunLog RunLog::create(const std::filesystem::path& path, const RunLogHeader& header) {
    if (header.rank_max < 1) throw bug_error("rank_max {} - run log - must be at least 1", header.rank_max);
    auto impl = std::make_unique<Impl>();
    impl->file = hdf5::File::create(path);
    try {
        impl->data = RunLogLayout::create(impl->file, header);
        impl->file.flush();
    } catch (...) {
        impl.reset();
        std::error_code ignored;
        std::filesystem::remove(path, ignored);
        throw;
    }
    return RunLog(std::move(impl));
}

RunLog RunLog::reopen(const std::filesystem::path& path, std::int64_t keep_rounds, std::span<const std::string> layers,
                      const LabelTable& labels) {
    auto impl = std::make_unique<Impl>();
    impl->file = hdf5::File::open_write(path);
    impl->data = RunLogLayout::open(impl->file);
    const std::int64_t committed = impl->file.read_int("committed_rounds");
    if (keep_rounds < 0 || keep_rounds > committed) {
        throw input_error(
            "the log has {} committed rounds, {} are wanted - {} - resume from an older checkpoint, or make "
            "the log anew with `hetlora repair`",
            committed, keep_rounds, path.string());
    }
    if (!layers.empty() && !impl->data.layers_round) impl->data.create_layers(impl->file, layers);
    if (!layers.empty() && !std::ranges::equal(layers, impl->data.layer_names)) {
        throw input_error("the log's /layers are of other matrices than the run's - {} - resume with log.spectra=0",
                          path.string());
    }
    if (!labels.names.empty() && !impl->file.has("labels")) {
        RunLogLayout::create_labels(impl->file, labels, impl->data.n_clients);
    }
    impl->cut(keep_rounds);
    return RunLog(std::move(impl));
}

void RunLog::append_round(const RoundRow& row, std::span<const ParticipationRow> participation, const SlotRow& slots,
                          std::span<const LayerRow> layers) {
    Impl& log = *impl_;
    log.check(row, participation, slots);
    log.check_layers(row.round, layers);
    const std::int64_t at = log.committed_rounds;
    put_table<RoundRow>(log.data.rounds, round_columns(), at, {&row, 1});
    for (std::size_t i = 0; i < log.data.extra_metrics.size(); ++i) {
        const double value = row.extra_metrics.empty() ? not_measured : row.extra_metrics[i];
        put_rows<double>(log.data.extra_metrics[i], at, {&value, 1});
    }
    put_rows<std::int64_t>(log.data.slots_round, at, {&row.round, 1});
    put_rows<double>(log.data.slots_energy, at, slots.energy);
    put_rows<std::int64_t>(log.data.slots_contributors, at, slots.n_contributors);
    put_rows<std::int64_t>(log.data.events, log.committed_events,
                           count_from(log.committed_events, participation.size()));
    put_table<ParticipationRow>(log.data.participation, participation_columns(), log.committed_events, participation);
    log.put_layers(row.round, layers);
    log.file.flush();
    log.file.write_attribute("committed_rounds", at + 1);
    log.file.flush();
    log.committed_rounds = at + 1;
    log.committed_events += static_cast<std::int64_t>(participation.size());
    if (!layers.empty()) ++log.committed_layer_rows;
}

void RunLog::set_client_final(std::span<const double> eval_loss_base, std::span<const double> eval_loss_final) {
    const auto many = static_cast<std::size_t>(impl_->data.n_clients);
    if (eval_loss_base.size() != many || eval_loss_final.size() != many) {
        throw bug_error("{} base and {} final losses for {} clients - {} - this is a mistake in hetlora",
                        eval_loss_base.size(), eval_loss_final.size(), many, impl_->file.where());
    }
    impl_->file.open_dataset("clients/eval_loss_base").write<double>(0, eval_loss_base);
    impl_->file.open_dataset("clients/eval_loss_final").write<double>(0, eval_loss_final);
    impl_->file.flush();
}

void RunLog::set_client_column(const std::string& name, std::span<const double> values) {
    if (std::ssize(values) != impl_->data.n_clients) {
        throw bug_error("{} values of {} for {} clients - {} - this is a mistake in hetlora", values.size(), name,
                        impl_->data.n_clients, impl_->file.where());
    }
    RunLogLayout::client_column(impl_->file, name, impl_->data.n_clients).write<double>(0, values);
    impl_->file.flush();
}

void RunLog::set_group_final(std::span<const GroupRow> rows) {
    std::vector<std::string> names;
    std::vector<std::int64_t> tokens;
    std::vector<double> loss;
    std::vector<double> accuracy;
    std::vector<double> choice_accuracy;
    for (const GroupRow& row : rows) {
        names.push_back(row.name);
        tokens.push_back(row.tokens);
        loss.push_back(row.eval_loss);
        accuracy.push_back(row.eval_accuracy);
        choice_accuracy.push_back(row.eval_choice_accuracy);
    }
    if (!impl_->file.has("groups")) RunLogLayout::create_groups(impl_->file, names);
    const hdf5::Group group = impl_->file.open_group("groups");
    if (group.open_dataset("name").read_strings() != names)
        throw bug_error("{} groups that are not the log's - {} - this is a mistake in hetlora", names.size(),
                        impl_->file.where());
    group.open_dataset("eval_loss").write<double>(0, loss);
    group.open_dataset("tokens").write<std::int64_t>(0, tokens);
    group.open_dataset("eval_accuracy").write<double>(0, accuracy);
    group.open_dataset("eval_choice_accuracy").write<double>(0, choice_accuracy);
    impl_->file.flush();
}

void RunLog::add_provenance(const Provenance& provenance) {
    write_provenance(impl_->file, provenance);
    impl_->file.flush();
}

std::string RunLog::provenance_text(const std::string& name) const {
    const hdf5::Group group = impl_->file.open_group("provenance");
    return group.has_attribute(name) && group.attribute_is_text(name) ? group.read_text(name) : std::string();
}

std::int64_t RunLog::committed_rounds() const noexcept { return impl_->committed_rounds; }

std::string RunLog::close() {
    impl_->file.flush();
    hdf5::File file = std::move(impl_->file);
    const std::int64_t committed = impl_->committed_rounds;
    impl_ = std::make_unique<Impl>();  // releases the data sets first
    impl_->committed_rounds = committed;
    try {
        file.close();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace hetlora
