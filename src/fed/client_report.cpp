#include "hetlora/fed/client_report.hpp"

#include <cstring>

#include "hetlora/base/error.hpp"

namespace hetlora {

namespace {

/// Calls visit(field) for every plain field, in one order for both directions.
template <typename Report, typename Visit>
void for_each_field(Report& r, Visit visit) {
    visit(r.cohort_index), visit(r.client), visit(r.lora_rank_before), visit(r.lora_rank_after), visit(r.n_steps);
    visit(r.n_tokens), visit(r.n_rows), visit(r.n_samples), visit(r.loss_sum), visit(r.loss_first), visit(r.loss_last);
    visit(r.learning_rate), visit(r.tail_before), visit(r.tail_after), visit(r.t_train_s), visit(r.pack);
    visit(r.mpi_rank), visit(r.dropped);
}

void append(std::vector<std::byte>& bytes, const void* data, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), first, first + size);
}

class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
    [[nodiscard]] bool at_end() const { return rest_.empty(); }
    void take(void* target, std::size_t size) {
        if (size > rest_.size()) throw bug_error("client reports: {} bytes are missing", size - rest_.size());
        if (size > 0) std::memcpy(target, rest_.data(), size);
        rest_ = rest_.subspan(size);
    }
    [[nodiscard]] std::size_t left() const { return rest_.size(); }

private:
    std::span<const std::byte> rest_;
};

}  // namespace

std::vector<std::byte> pack_reports(std::span<const ClientReport> reports) {
    std::vector<std::byte> bytes;
    for (const auto& report : reports) {
        for_each_field(report, [&](const auto& field) { append(bytes, &field, sizeof(field)); });
        const std::int64_t n = std::ssize(report.weights);
        append(bytes, &n, sizeof(n));
        append(bytes, report.weights.data(), report.weights.size() * sizeof(double));
    }
    return bytes;
}

std::vector<ClientReport> unpack_reports(std::span<const std::byte> bytes) {
    std::vector<ClientReport> reports;
    for (Reader reader(bytes); !reader.at_end();) {
        auto& report = reports.emplace_back();
        for_each_field(report, [&](auto& field) { reader.take(&field, sizeof(field)); });
        std::int64_t n = 0;
        reader.take(&n, sizeof(n));
        if (n < 0 || static_cast<std::uint64_t>(n) > reader.left() / sizeof(double)) {
            throw bug_error("client reports: {} weights in {} bytes", n, reader.left());
        }
        report.weights.resize(static_cast<std::size_t>(n));
        reader.take(report.weights.data(), report.weights.size() * sizeof(double));
    }
    return reports;
}

}  // namespace hetlora
