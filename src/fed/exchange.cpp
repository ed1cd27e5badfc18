#include "hetlora/fed/exchange.hpp"

#include <algorithm>

#include "byte_stream.hpp"
#include "hetlora/base/error.hpp"

namespace hetlora {

namespace {

/// Values of one piece of the exact reduction: bounds the memory for limbs (24 bytes a value, twice on root).
constexpr std::size_t values_per_piece = std::size_t{1} << 20;

}  // namespace

void broadcast_adapter(Transport& transport, std::span<double> global, Precision wire) {
    if (wire == Precision::fp64) {
        transport.broadcast_values(global);
        return;
    }
    std::vector<float> values(global.size());
    std::ranges::transform(global, values.begin(), [](double value) { return static_cast<float>(value); });
    transport.broadcast_values(values);
    std::ranges::copy(values, global.begin());
}

std::vector<ClientReport> gather_reports(Transport& transport, const RoundPlan& plan,
                                         std::span<const ClientReport> mine) {
    const auto parts = transport.gather(pack_reports(mine));
    if (!transport.is_root()) return {};
    std::vector<ClientReport> ordered(plan.cohort.size());
    std::vector<bool> seen(plan.cohort.size());
    for (const auto& part : parts) {
        for (auto& report : unpack_reports(part)) {
            const auto index = static_cast<std::size_t>(report.cohort_index);
            if (index >= ordered.size() || seen[index] || report.client != plan.cohort[index].client) {
                throw bug_error("round {}: unexpected report of client {} (cohort index {}) from mpi_rank {}",
                                plan.round, report.client, report.cohort_index, report.mpi_rank);
            }
            seen[index] = true;
            ordered[index] = std::move(report);
        }
    }
    const auto missing = std::ranges::find(seen, false);
    if (missing != seen.end()) {
        throw bug_error("round {}: no report of client {}", plan.round,
                        plan.cohort[static_cast<std::size_t>(missing - seen.begin())].client);
    }
    return ordered;
}

namespace {

/// The sums from place `first` on over all mpi_ranks.
/// @param totals on root as many as are asked for; elsewhere empty
void reduce_piece(Transport& transport, const UploadSum& sums, std::size_t first, std::size_t n,
                  std::span<double> totals) {
    if (sums.kind() == ReductionKind::fast) {
        transport.reduce_sum(sums.fast().subspan(first, n), totals);
        return;
    }
    std::vector<std::int64_t> limbs(ExactSum::limbs_per_value * n);
    std::vector<std::int64_t> total_limbs(transport.is_root() ? limbs.size() : 0);
    sums.exact().to_limbs(first, limbs);
    transport.reduce_sum(limbs, total_limbs);
    if (transport.is_root()) ExactSum::from_limbs(total_limbs, totals);
}

/// Calls visit(first, number of values) for every piece.
template <typename Visit>
void for_each_piece(std::size_t size, Visit visit) {
    for (std::size_t first = 0; first < size; first += values_per_piece)
        visit(first, std::min(values_per_piece, size - first));
}

/// The sums over all mpi_ranks, on root.
std::vector<double> reduce_sums(Transport& transport, const UploadSum& sums) {
    std::vector<double> totals(transport.is_root() ? sums.size() : 0);
    for_each_piece(sums.size(), [&](std::size_t first, std::size_t n) {
        const std::span<double> all(totals);
        reduce_piece(transport, sums, first, n, all.empty() ? all : all.subspan(first, n));
    });
    return totals;
}

}  // namespace

std::vector<double> reduce_uploads(Transport& transport, UploadAccumulator& accumulator) {
    std::vector<std::int64_t> has_weight = accumulator.has_weight();
    transport.all_max(has_weight);
    accumulator.settle(has_weight);
    return reduce_sums(transport, accumulator.sums());
}

std::vector<double> reduce_heads(Transport& transport, const DenseSum& heads) {
    return reduce_sums(transport, heads.sums());
}

void exchange_base(Transport& transport, const DenseSum& changes, Precision wire, const DensePiece& merge,
                   const DensePiece& take) {
    for_each_piece(changes.sums().size(), [&](std::size_t first, std::size_t n) {
        std::vector<double> values(n);
        reduce_piece(transport, changes.sums(), first, n,
                     transport.is_root() ? std::span(values) : std::span<double>());
        if (transport.is_root()) merge(first, values);
        broadcast_adapter(transport, values, wire);
        take(first, values);
    });
}

std::vector<double> reduce_drift(Transport& transport, const UpdateDrift& drift) {
    std::vector<std::int64_t> counts(transport.is_root() ? drift.counts().size() : 0);
    transport.reduce_sum(drift.counts(), counts);
    const std::vector<double> sums = reduce_sums(transport, drift.sums());
    return transport.is_root() ? drift.mean_cosines(sums, counts) : std::vector<double>();
}

std::vector<GatheredUpload> gather_uploads(Transport& transport, const RoundPlan& plan,
                                           std::span<const GatheredUpload> mine) {
    ByteWriter writer;
    for (const GatheredUpload& upload : mine) {
        writer.put(upload.cohort_index);
        writer.put_all(upload.factors);
    }
    const auto parts = transport.gather(writer.bytes());
    if (!transport.is_root()) return {};
    std::vector<GatheredUpload> ordered(plan.cohort.size());
    for (std::size_t i = 0; i < ordered.size(); ++i) ordered[i].cohort_index = static_cast<std::int64_t>(i);
    for (const auto& part : parts) {
        for (ByteReader reader(part); !reader.at_end();) {
            const auto index = reader.get<std::int64_t>();
            if (index < 0 || index >= std::ssize(ordered)) {
                throw bug_error("round {}: factors of cohort index {}", plan.round, index);
            }
            ordered[static_cast<std::size_t>(index)].factors = reader.get_all<double>();
        }
    }
    return ordered;
}

void broadcast_base_change(Transport& transport, LowRankDelta& change, const AdapterLayout& layout) {
    const std::size_t n_matrices = layout.matrices.size();
    change.matrices.resize(n_matrices);
    std::vector<std::int64_t> slots;
    for (const LowRankMatrix& matrix : change.matrices) slots.push_back(matrix.lora_rank);
    transport.broadcast_values(slots);
    for (std::size_t m = 0; m < n_matrices; ++m) {
        const AdaptedMatrix& shape = layout.matrices[m];
        LowRankMatrix& matrix = change.matrices[m];
        matrix.name = shape.name;
        matrix.d_out = shape.d_out;
        matrix.d_in = shape.d_in;
        matrix.lora_rank = slots[m];
        matrix.a.resize(static_cast<std::size_t>(slots[m] * shape.d_in));
        matrix.bt.resize(static_cast<std::size_t>(slots[m] * shape.d_out));
        transport.broadcast_values(matrix.a);
        transport.broadcast_values(matrix.bt);
    }
}

void broadcast_own_slots(Transport& transport, RoundPlan& plan) {
    for (PlannedClient& client : plan.cohort) {
        client.own_slots.resize(static_cast<std::size_t>(client.lora_rank));
        transport.broadcast_values(client.own_slots);
    }
}

void broadcast_lora_ranks(Transport& transport, const RoundPlan& plan, std::span<const ClientReport> reports,
                          Population& population) {
    std::vector<std::int64_t> lora_ranks(plan.cohort.size());
    for (std::size_t i = 0; i < lora_ranks.size() && transport.is_root(); ++i) {
        lora_ranks[i] = reports[i].dropped ? plan.cohort[i].lora_rank : reports[i].lora_rank_after;
    }
    transport.broadcast_values(lora_ranks);
    for (std::size_t i = 0; i < lora_ranks.size(); ++i)
        population.shrink_lora_rank(plan.cohort[i].client, lora_ranks[i]);
}

}  // namespace hetlora
