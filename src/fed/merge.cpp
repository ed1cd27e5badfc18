#include "hetlora/fed/merge.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {

namespace {

void check(const MergeInput& input) {
    const auto n = input.layout.parameters(input.init.rank_max);
    const std::int64_t n_sums = input.strategy.slot_norm == SlotNorm::replicate ? 2 * n : n;
    if (std::ssize(input.sums) != n_sums || std::ssize(input.previous) != n) {
        throw bug_error("merge of round {}: {} sums and {} old values instead of {}", input.round, input.sums.size(),
                        input.previous.size(), n);
    }
    for (const auto& report : input.reports) {
        if (report.dropped) continue;
        if (report.weights.size() != input.layout.matrices.size() || report.lora_rank_after < 1 ||
            report.lora_rank_after > input.init.rank_max) {
            throw bug_error("merge of round {}: client {} has {} weights and lora_rank {}", input.round, report.client,
                            report.weights.size(), report.lora_rank_after);
        }
        for (const double weight : report.weights) {
            if (!(weight >= 0.0) || !std::isfinite(weight)) {
                throw bug_error("merge of round {}: client {} has weight {}", input.round, report.client, weight);
            }
        }
    }
}

/// Z of one slot of one matrix; 0 exactly if no client counts.
double normaliser(const MergeInput& input, std::size_t matrix, std::int64_t slot) {
    double total = 0.0;
    double n_clients = 0.0;
    for (const auto& report : input.reports) {
        if (report.dropped) continue;
        if (input.strategy.slot_norm == SlotNorm::contributors && !report.has_slot(slot)) continue;
        total += report.weights[matrix];
        n_clients += 1.0;
    }
    return total > 0.0 ? total : n_clients;
}

/// Where a row of the global adapter lies.
struct Row {
    std::size_t first = 0;
    std::size_t width = 0;
};

/// How a row's sums become its mean: (sum + fill * sum over the largest clients) / z.
struct Divisor {
    double z = 1.0;
    double fill = 0.0;
};

/// slot_norm = replicate: clients without the slot count with the mean of the largest ones, of weight `largest` in all.
Divisor replicated(const MergeInput& input, std::size_t matrix, std::int64_t slot) {
    double all = 0.0, without = 0.0, largest = 0.0;
    for (const auto& report : input.reports) {
        if (report.dropped) continue;
        all += report.weights[matrix];
        if (!report.has_slot(slot)) without += report.weights[matrix];
        if (report.lora_rank_after == input.largest_lora_rank) largest += report.weights[matrix];
    }
    if (largest > 0.0) return {.z = all, .fill = without / largest};
    return {.z = all - without, .fill = 0.0};  // all the largest were dropped: the mean of those that have the slot
}

/// One row of A or of Bt: base + sums / z.
void write_row(const MergeInput& input, const Row& row, const Divisor& divisor, std::vector<double>& global) {
    const bool deltas = input.strategy.aggregate == Aggregate::deltas;
    const std::size_t second_half = input.sums.size() / 2;
    for (std::size_t i = row.first; i < row.first + row.width; ++i) {
        const double base = deltas ? input.previous[i] : 0.0;
        const double sum =
            divisor.fill == 0.0 ? input.sums[i] : input.sums[i] + divisor.fill * input.sums[i + second_half];
        const double value = base + sum / divisor.z;
        global[i] = input.init.round_to_fp32 ? static_cast<double>(static_cast<float>(value)) : value;
    }
}

void keep_row(const MergeInput& input, const Row& row, std::vector<double>& global) {
    std::ranges::copy(input.previous.subspan(row.first, row.width),
                      global.begin() + static_cast<std::ptrdiff_t>(row.first));
}

/// A slot that no client has. Only the factors that were sent are touched.
void write_uncovered(const MergeInput& input, std::size_t matrix, std::int64_t slot, const Row& a, const Row& b,
                     std::vector<double>& global) {
    const bool keep =
        input.strategy.aggregate == Aggregate::deltas || input.strategy.keep_uncovered == KeepUncovered::last;
    if (keep || !input.sent.a) keep_row(input, a, global);
    if (keep || !input.sent.b) keep_row(input, b, global);
    if (!keep && input.sent.a && input.strategy.keep_uncovered == KeepUncovered::refill) {
        refill_row(input.init, input.round, matrix, slot, std::span(global).subspan(a.first, a.width));
    }  // else: `global` is 0 there, the literal rule
}

std::vector<std::int64_t> count_contributors(std::span<const ClientReport> reports, std::int64_t rank_max) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(rank_max));
    for (const auto& report : reports) {
        if (report.dropped) continue;
        for (std::int64_t slot = 0; slot < rank_max; ++slot) {
            if (report.has_slot(slot)) ++counts[static_cast<std::size_t>(slot)];
        }
    }
    return counts;
}

}  // namespace

MergeResult merge_uploads(const MergeInput& input) {
    check(input);
    const std::int64_t rank_max = input.init.rank_max;
    MergeResult result;
    result.client_weight = normalised_weights(input.reports, input.layout.matrices.size());
    result.changed = std::ranges::any_of(input.reports, [](const auto& report) { return !report.dropped; });
    if (!result.changed) {
        result.global.assign(input.previous.begin(), input.previous.end());
        result.slots = slot_statistics(input.layout, result.global, rank_max, input.reports);
        return result;
    }
    const auto n_contributors = count_contributors(input.reports, rank_max);
    result.global.resize(input.previous.size());
    for (std::size_t m = 0; m < input.layout.matrices.size(); ++m) {
        const auto& shape = input.layout.matrices[m];
        for (std::int64_t slot = 0; slot < rank_max; ++slot) {
            const Row a{.first = static_cast<std::size_t>(input.layout.offset_a(m, rank_max) + slot * shape.d_in),
                        .width = static_cast<std::size_t>(shape.d_in)};
            const Row b{.first = static_cast<std::size_t>(input.layout.offset_b(m, rank_max) + slot * shape.d_out),
                        .width = static_cast<std::size_t>(shape.d_out)};
            if (n_contributors[static_cast<std::size_t>(slot)] == 0) {
                write_uncovered(input, m, slot, a, b, result.global);
                continue;
            }
            const Divisor divisor = input.strategy.slot_norm == SlotNorm::replicate
                                        ? replicated(input, m, slot)
                                        : Divisor{.z = normaliser(input, m, slot)};
            const auto write = [&](const Row& row, bool sent) {
                sent ? write_row(input, row, divisor, result.global) : keep_row(input, row, result.global);
            };
            write(a, input.sent.a);
            write(b, input.sent.b);
        }
    }
    result.slots = slot_statistics(input.layout, result.global, rank_max, input.reports);
    return result;
}

SlotStatistics slot_statistics(const AdapterLayout& layout, std::span<const double> global, std::int64_t rank_max,
                               std::span<const ClientReport> reports) {
    const auto n_slots = static_cast<std::size_t>(rank_max);
    SlotStatistics statistics;
    statistics.energy.resize(n_slots);
    statistics.n_contributors = count_contributors(reports, rank_max);
    std::vector<bool> alive(n_slots);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto d_in = static_cast<std::size_t>(layout.matrices[m].d_in);
        const auto d_out = static_cast<std::size_t>(layout.matrices[m].d_out);
        const auto a = global.subspan(static_cast<std::size_t>(layout.offset_a(m, rank_max)));
        const auto bt = global.subspan(static_cast<std::size_t>(layout.offset_b(m, rank_max)));
        for (std::size_t slot = 0; slot < n_slots; ++slot) {
            const auto row_a = a.subspan(slot * d_in, d_in);
            const auto row_b = bt.subspan(slot * d_out, d_out);
            const auto not_zero = [](double value) { return value != 0.0; };
            if (std::ranges::any_of(row_a, not_zero) || std::ranges::any_of(row_b, not_zero)) alive[slot] = true;
            statistics.energy[slot] += sum_of_squares(row_a) * sum_of_squares(row_b);
        }
    }
    statistics.slots_alive = std::ranges::count(alive, true);
    double total = 0.0;
    for (const double energy : statistics.energy) total += energy;
    if (total > 0.0) {
        for (double& energy : statistics.energy) energy /= total;
    }
    return statistics;
}

std::vector<double> normalised_weights(std::span<const ClientReport> reports, std::size_t n_matrices) {
    std::vector<double> weights(reports.size());
    const auto counted = std::ranges::count_if(reports, [](const auto& report) { return !report.dropped; });
    // Weights that are equal for all matrices are taken from the first one: a mean of equals could round.
    const bool per_matrix = std::ranges::any_of(reports, [](const auto& report) {
        return !report.dropped && std::ranges::any_of(report.weights, [&](double w) { return w != report.weights[0]; });
    });
    const std::size_t n = per_matrix ? n_matrices : 1;
    for (std::size_t m = 0; m < n && counted > 0; ++m) {
        double total = 0.0;
        for (const auto& report : reports) total += report.dropped ? 0.0 : report.weights[m];
        for (std::size_t k = 0; k < reports.size(); ++k) {
            if (reports[k].dropped) continue;
            weights[k] += total > 0.0 ? reports[k].weights[m] / total : 1.0 / static_cast<double>(counted);
        }
    }
    for (double& weight : weights) weight /= static_cast<double>(n);
    return weights;
}

}  // namespace hetlora
