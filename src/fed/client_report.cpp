#include "hetlora/fed/client_report.hpp"

#include <type_traits>

#include "byte_stream.hpp"

namespace hetlora {

namespace {

/// Calls visit(field) for every plain field, in one order for both directions.
template <typename Report, typename Visit>
void for_each_field(Report& r, Visit visit) {
    visit(r.cohort_index), visit(r.client), visit(r.lora_rank_before), visit(r.lora_rank_after), visit(r.n_steps);
    visit(r.n_tokens), visit(r.n_rows), visit(r.n_samples), visit(r.loss_sum), visit(r.loss_first), visit(r.loss_last);
    visit(r.learning_rate), visit(r.tail_before), visit(r.tail_after), visit(r.t_train_s), visit(r.pack);
    visit(r.mpi_rank), visit(r.bytes_up), visit(r.bytes_down), visit(r.dropped);
}

}  // namespace

std::vector<std::byte> pack_reports(std::span<const ClientReport> reports) {
    ByteWriter writer;
    for (const auto& report : reports) {
        for_each_field(report, [&](const auto& field) { writer.put(field); });
        writer.put_all(report.weights);
        writer.put_all(report.product_norms_squared);
        writer.put_all(report.slots);
    }
    return writer.bytes();
}

std::vector<ClientReport> unpack_reports(std::span<const std::byte> bytes) {
    std::vector<ClientReport> reports;
    for (ByteReader reader(bytes); !reader.at_end();) {
        auto& report = reports.emplace_back();
        for_each_field(report, [&](auto& field) { field = reader.get<std::remove_reference_t<decltype(field)>>(); });
        report.weights = reader.get_all<double>();
        report.product_norms_squared = reader.get_all<double>();
        report.slots = reader.get_all<std::int32_t>();
    }
    return reports;
}

}  // namespace hetlora
