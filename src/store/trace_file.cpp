// See hetlora/store/trace_file.hpp.
#include "hetlora/store/trace_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <system_error>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/store/hdf5_handle.hpp"
#include "hetlora/store/progress_clock.hpp"

namespace hetlora {

namespace {

using hdf5::Dataset;
using hdf5::ElementType;

/// Order of the data sets in TraceWriter::Impl::data.
enum Field : std::size_t {
    event_round,
    event_client,
    event_rank_before,
    event_rank_after,
    event_n_steps,
    event_dropped,
    event_weight,
    event_loss_first,
    event_loss_last,
    event_learning_rate,
    event_lora_rank,
    received_offset,
    sent_offset,
    slots_offset,
    received,
    sent,
    slots,
    step_event,
    step_step,
    step_loss,
    step_n_loss_tokens,
    step_window_offset,
    window_sequence,
    window_window,
    global_round,
    global_offset,
    global_values,
    head_sent_offset,
    head_samples,
    head_sent,
    head_global,
    n_fields,
};

constexpr std::size_t first_head_field = head_sent_offset;  // these are in traces of classification runs only

struct FieldInfo {
    const char* group;
    const char* name;
    ElementType type;
    std::int64_t chunk_rows;
    bool is_offset;  ///< starts with one row that holds 0
    const char* units;
    const char* long_name;
};

constexpr auto trace_fields = [] {
    using enum ElementType;
    return std::array<FieldInfo, n_fields>{{
        {"events", "round", i32, 1024, false, "1", "round of the participation"},
        {"events", "client", i32, 1024, false, "1", "client, an index into /clients of the data and of run.h5"},
        {"events", "lora_rank_before", i32, 1024, false, "1", "slots of the adapter received"},
        {"events", "lora_rank_after", i32, 1024, false, "1", "slots of the adapter sent, after pruning"},
        {"events", "n_steps", i32, 1024, false, "1", "local steps"},
        {"events", "dropped", i32, 1024, false, "1", "1 if the update was left out"},
        {"events", "weight", f64, 1024, false, "1", "aggregation weight, normalised over the cohort"},
        {"events", "loss_first", f64, 1024, false, "nat", "mean loss of the first local step"},
        {"events", "loss_last", f64, 1024, false, "nat", "mean loss of the last local step"},
        {"events", "learning_rate", f64, 1024, false, "1", "learning rate of the round"},
        {"events", "lora_rank", i32, 1024, false, "1", "LoRA rank of the client in the round, before pruning"},
        {"events", "received_offset", i64, 1024, true, "1", "first value in /adapters/received"},
        {"events", "sent_offset", i64, 1024, true, "1", "first value in /adapters/sent"},
        {"events", "slots_offset", i64, 1024, true, "1", "first value in /slots/slot"},
        {"adapters", "received", f64, 16384, false, "1", "adapters received, canonical form at lora_rank_before"},
        {"adapters", "sent", f64, 16384, false, "1", "adapters sent, canonical form at lora_rank_after"},
        {"slots", "slot", i32, 4096, false, "1",
         "slots of the global adapter chosen for the client; none: the leading ones"},
        {"steps", "event", i32, 4096, false, "1", "participation of the step"},
        {"steps", "step", i32, 4096, false, "1", "number of the step in its participation"},
        {"steps", "loss", f64, 4096, false, "nat", "mean negative log-likelihood over the step's loss tokens"},
        {"steps", "n_loss_tokens", i64, 4096, false, "1", "loss tokens of the step"},
        {"steps", "window_offset", i64, 4096, true, "1", "first row in /windows"},
        {"windows", "sequence", i32, 4096, false, "1", "sequence of the prepared data"},
        {"windows", "window", i32, 4096, false, "1", "number of the window in its sequence"},
        {"globals", "round", i32, 1024, false, "1", "round after which the adapter stood; 0 is the initial one"},
        {"globals", "offset", i64, 1024, true, "1", "first value in /globals/values"},
        {"globals", "values", f64, 16384, false, "1", "global adapters, canonical form at rank_max"},
        {"heads", "sent_offset", i64, 1024, true, "1", "first value in /heads/sent of the participation"},
        {"heads", "n_samples", f64, 1024, false, "1", "what the participation's head counts in the average"},
        {"heads", "sent", f64, 16384, false, "1", "classification heads sent"},
        {"heads", "global", f64, 16384, false, "1", "global heads, one after each row of /globals"},
    }};
}();

constexpr std::array trace_groups{"matrices", "events", "adapters", "slots", "steps", "windows", "globals"};

}  // namespace

struct TraceWriter::Impl {
    hdf5::File file;  // first: closed after the data sets
    std::array<Dataset, n_fields> data;
    AdapterLayout layout;
    std::int64_t rank_max = 0;
    std::int64_t last_global = -1;
    std::int64_t head = 0;  ///< values of a classification head; 0: there is none

    void create(const std::string& run_id);
    void create_fields(std::size_t begin, std::size_t end);
    void open();
    void cut(std::int64_t last_round);
    void cut_heads(std::int64_t events, std::int64_t globals);

    template <typename T>
    void append(Field field, T value) {
        data[field].append<T>({&value, 1});
    }
    /// Appends values and the offset at which they end.
    void append_slice(Field offset, Field values, std::span<const double> slice) {
        data[values].append<double>(slice);
        append<std::int64_t>(offset, data[values].rows());
    }
    [[nodiscard]] std::int64_t offset_at(Field field, std::int64_t row) const {
        std::int64_t value = 0;
        data[field].read<std::int64_t>(row, {&value, 1});
        return value;
    }
};

void TraceWriter::Impl::create(const std::string& run_id) {
    for (const char* group : trace_groups) file.create_group(group);
    create_fields(0, first_head_field);
    std::vector<std::string> names;
    std::vector<std::int64_t> d_out;
    std::vector<std::int64_t> d_in;
    for (const AdaptedMatrix& matrix : layout.matrices) {
        names.push_back(matrix.name);
        d_out.push_back(matrix.d_out);
        d_in.push_back(matrix.d_in);
    }
    hdf5::Group matrices = file.open_group("matrices");
    matrices.create_strings("name", names);
    matrices.create_array<std::int64_t>("d_out", d_out);
    matrices.create_array<std::int64_t>("d_in", d_in);
    file.write_attribute("schema_name", trace_schema_name);
    file.write_attribute("schema_version", trace_schema_version);
    file.write_attribute("run_id", run_id);
    file.write_attribute("creator", "hetlora");
    file.write_attribute("created_utc", utc_now());
    file.write_attribute("rank_max", rank_max);
    file.flush();
}

void TraceWriter::Impl::create_fields(std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
        const FieldInfo& field = trace_fields[i];
        const std::int64_t rows = field.is_offset ? 1 : 0;
        data[i] = file.open_group(field.group)
                      .create_dataset(field.name, field.type,
                                      {.extent = {rows}, .unlimited = true, .chunk_rows = field.chunk_rows});
        data[i].write_attribute("long_name", field.long_name);
        data[i].write_attribute("units", field.units);
    }
}

void TraceWriter::Impl::open() {
    if (!file.attribute_is_text("schema_name") || file.read_text("schema_name") != trace_schema_name ||
        file.read_int("schema_version") != trace_schema_version) {
        throw input_error("not a trace of schema {} version {} - {} - remove it, or run without --resume",
                          trace_schema_name, trace_schema_version, file.where());
    }
    const std::vector<std::string> names = file.open_dataset("matrices/name").read_strings();
    const auto d_out = file.open_dataset("matrices/d_out").read_all<std::int64_t>();
    const auto d_in = file.open_dataset("matrices/d_in").read_all<std::int64_t>();
    bool same = names.size() == layout.matrices.size() && file.read_int("rank_max") == rank_max;
    for (std::size_t i = 0; same && i < names.size(); ++i) {
        const AdaptedMatrix& matrix = layout.matrices[i];
        same = names[i] == matrix.name && d_out[i] == matrix.d_out && d_in[i] == matrix.d_in;
    }
    if (!same) {
        throw input_error(
            "the trace belongs to other adapters (rank_max {}, {} matrices; the run has {}, {}) - {} - use the "
            "config of the run that wrote it",
            file.read_int("rank_max"), names.size(), rank_max, layout.matrices.size(), file.where());
    }
    if (!file.has("slots")) {
        throw input_error(
            "the trace was begun by an older hetlora, which did not write /slots - {} - resume with that version, or "
            "with output.trace=false",
            file.where());
    }
    const std::size_t fields = file.has("heads") ? n_fields : first_head_field;
    for (std::size_t i = 0; i < fields; ++i) {
        data[i] = file.open_dataset(std::string(trace_fields[i].group) + "/" + trace_fields[i].name);
    }
    if (fields == n_fields) head = file.open_group("heads").read_int("n_values");
}

void TraceWriter::Impl::cut(std::int64_t last_round) {
    const auto rounds = data[global_round].read_all<std::int64_t>();
    const auto found = std::ranges::find(rounds, last_round);
    if (found == rounds.end()) {
        throw input_error(
            "the trace has no global adapter of round {} - {} - remove the trace and run without --resume, or "
            "resume with output.trace=false",
            last_round, file.where());
    }
    const std::int64_t globals = found - rounds.begin() + 1;
    // Rows of an unfinished append may be 0: the events end where the rounds stop rising.
    const auto event_rounds = data[event_round].read_all<std::int64_t>();
    std::int64_t events = 0;
    std::int64_t previous = 1;
    for (const std::int64_t round : event_rounds) {
        if (round < previous || round > last_round) break;
        previous = round;
        ++events;
    }
    const auto step_events = data[step_event].read_all<std::int64_t>();
    std::int64_t steps = 0;
    const auto n_steps = data[event_n_steps].read_all<std::int64_t>();
    for (std::int64_t i = 0; i < events; ++i) steps += n_steps[static_cast<std::size_t>(i)];

    const std::int64_t windows = offset_at(step_window_offset, steps);
    data[received].resize_rows(offset_at(received_offset, events));
    data[sent].resize_rows(offset_at(sent_offset, events));
    data[slots].resize_rows(offset_at(slots_offset, events));
    data[global_values].resize_rows(offset_at(global_offset, globals));
    if (head > 0) cut_heads(events, globals);
    for (std::size_t i = 0; i < first_head_field; ++i) {
        const std::string_view group = trace_fields[i].group;
        if (group == "adapters" || group == "slots" || i == global_values) continue;
        const std::int64_t rows = group == "events"    ? events
                                  : group == "steps"   ? steps
                                  : group == "windows" ? windows
                                                       : globals;
        data[i].resize_rows(rows + (trace_fields[i].is_offset ? 1 : 0));
    }
    file.flush();
    last_global = last_round;
}

void TraceWriter::Impl::cut_heads(std::int64_t events, std::int64_t globals) {
    data[head_sent].resize_rows(offset_at(head_sent_offset, events));
    data[head_sent_offset].resize_rows(events + 1);
    data[head_samples].resize_rows(events);
    data[head_global].resize_rows(globals * head);
}

TraceWriter::TraceWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TraceWriter::TraceWriter(TraceWriter&&) noexcept = default;
TraceWriter& TraceWriter::operator=(TraceWriter&&) noexcept = default;
TraceWriter::~TraceWriter() = default;

TraceWriter TraceWriter::create(const std::filesystem::path& path, const std::string& run_id,
                                const AdapterLayout& layout, std::int64_t rank_max) {
    auto impl = std::make_unique<Impl>();
    impl->layout = layout;
    impl->rank_max = rank_max;
    impl->file = hdf5::File::create(path);
    try {
        impl->create(run_id);
    } catch (...) {
        impl.reset();
        std::error_code ignored;
        std::filesystem::remove(path, ignored);
        throw;
    }
    return TraceWriter(std::move(impl));
}

TraceWriter TraceWriter::reopen(const std::filesystem::path& path, const AdapterLayout& layout, std::int64_t rank_max,
                                std::int64_t last_round) {
    auto impl = std::make_unique<Impl>();
    impl->layout = layout;
    impl->rank_max = rank_max;
    impl->file = hdf5::File::open_write(path);
    impl->open();
    impl->cut(last_round);
    return TraceWriter(std::move(impl));
}

void TraceWriter::append_event(const TraceEvent& event) {
    Impl& trace = *impl_;
    if (!trace.file || event.round != trace.last_global + 1 ||
        static_cast<std::int64_t>(event.received.size()) != trace.layout.parameters(event.lora_rank_before) ||
        static_cast<std::int64_t>(event.sent.size()) != trace.layout.parameters(event.lora_rank_after)) {
        throw bug_error(
            "event of round {}, client {} does not fit (round {} is next; {} values received at lora_rank {}, {} "
            "sent at {}) - {} - this is a mistake in hetlora",
            event.round, event.client, trace.last_global + 1, event.received.size(), event.lora_rank_before,
            event.sent.size(), event.lora_rank_after, trace.file.where());
    }
    const std::int64_t index = trace.data[event_round].rows();
    for (std::size_t s = 0; s < event.steps.size(); ++s) {
        const TraceStep& step = event.steps[s];
        std::vector<std::int32_t> sequences;
        std::vector<std::int32_t> windows;
        for (const TraceWindow& window : step.windows) {
            sequences.push_back(window.sequence);
            windows.push_back(window.window);
        }
        trace.data[window_sequence].append<std::int32_t>(sequences);
        trace.data[window_window].append<std::int32_t>(windows);
        trace.append<std::int64_t>(step_window_offset, trace.data[window_window].rows());
        trace.append<std::int64_t>(step_event, index);
        trace.append<std::int64_t>(step_step, static_cast<std::int64_t>(s));
        trace.append<double>(step_loss, step.loss);
        trace.append<std::int64_t>(step_n_loss_tokens, step.n_loss_tokens);
    }
    trace.append_slice(received_offset, received, event.received);
    trace.append_slice(sent_offset, sent, event.sent);
    trace.data[slots].append<std::int64_t>(event.slots);
    trace.append<std::int64_t>(slots_offset, trace.data[slots].rows());
    if (trace.head > 0) {
        trace.append_slice(head_sent_offset, head_sent, event.head);
        trace.append<double>(head_samples, event.n_samples);
    }
    const double missing = std::numeric_limits<double>::quiet_NaN();
    trace.append<std::int64_t>(event_round, event.round);
    trace.append<std::int64_t>(event_client, event.client);
    trace.append<std::int64_t>(event_lora_rank, event.lora_rank);
    trace.append<std::int64_t>(event_rank_before, event.lora_rank_before);
    trace.append<std::int64_t>(event_rank_after, event.lora_rank_after);
    trace.append<std::int64_t>(event_n_steps, static_cast<std::int64_t>(event.steps.size()));
    trace.append<std::int64_t>(event_dropped, event.dropped ? 1 : 0);
    trace.append<double>(event_weight, event.weight);
    trace.append<double>(event_loss_first, event.steps.empty() ? missing : event.steps.front().loss);
    trace.append<double>(event_loss_last, event.steps.empty() ? missing : event.steps.back().loss);
    trace.append<double>(event_learning_rate, event.learning_rate);
}

void TraceWriter::append_global(std::int64_t round, std::span<const double> values, std::span<const double> head) {
    Impl& trace = *impl_;
    if (!trace.file || round != trace.last_global + 1 ||
        static_cast<std::int64_t>(values.size()) != trace.layout.parameters(trace.rank_max) ||
        (round > 0 && static_cast<std::int64_t>(head.size()) != trace.head)) {
        throw bug_error(
            "global adapter of round {} with {} values and a head of {} does not fit (round {} is next, {} values and "
            "a head of {}) - {} - this is a mistake in hetlora",
            round, values.size(), head.size(), trace.last_global + 1, trace.layout.parameters(trace.rank_max),
            trace.head, trace.file.where());
    }
    if (round == 0 && !head.empty()) {
        trace.head = static_cast<std::int64_t>(head.size());
        trace.file.create_group("heads").write_attribute("n_values", trace.head);
        trace.create_fields(first_head_field, n_fields);
    }
    if (trace.head > 0) trace.data[head_global].append<double>(head);
    trace.append_slice(global_offset, global_values, values);
    trace.append<std::int64_t>(global_round, round);
    trace.last_global = round;
    trace.file.flush();
}

void TraceWriter::close() {
    impl_->file.flush();
    hdf5::File file = std::move(impl_->file);
    impl_ = std::make_unique<Impl>();  // releases the data sets first
    file.close();
}

}  // namespace hetlora
