#include "hetlora/fed/aggregate.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {

UploadSum::UploadSum(ReductionKind kind, std::size_t n)
    : kind_(kind), exact_(kind == ReductionKind::exact ? n : 0), fast_(kind == ReductionKind::exact ? 0 : n) {}

void UploadSum::add(double weight, std::span<const double> values, std::size_t first) {
    if (kind_ == ReductionKind::exact) {
        exact_.add(weight, values, first);
        return;
    }
    double* sums = fast_.data() + first;
    for (std::size_t i = 0; i < values.size(); ++i) sums[i] += weight * values[i];
}

void UploadSum::add_sums(const UploadSum& other, std::size_t first, std::size_t n) {
    if (kind_ == ReductionKind::exact) {
        exact_.add_sums(other.exact_, first, n);
        return;
    }
    for (std::size_t i = first; i < first + n; ++i) fast_[i] += other.fast_[i];
}

void UploadSum::clear() {
    exact_.clear();
    std::ranges::fill(fast_, 0.0);
}

UploadAccumulator::UploadAccumulator(AdapterLayout layout, const AggregationOptions& options)
    : layout_(std::move(layout)),
      options_(options),
      weighted_(options.reduction, static_cast<std::size_t>(layout_.parameters(options.rank_max)) *
                                       (options.slot_norm == SlotNorm::replicate ? 2 : 1)),
      has_weight_(layout_.matrices.size() * static_cast<std::size_t>(options.rank_max)) {}

void UploadAccumulator::check(const ClientUpload& upload) const {
    const bool deltas = options_.aggregate == Aggregate::deltas;
    if (upload.lora_rank < 1 || upload.lora_rank > options_.rank_max ||
        std::ssize(upload.factors) != layout_.parameters(upload.lora_rank) ||
        upload.weights.size() != layout_.matrices.size() ||
        (!upload.slots.empty() && (std::ssize(upload.slots) != upload.lora_rank || upload.slots.front() < 0 ||
                                   upload.slots.back() >= options_.rank_max)) ||
        (deltas && (upload.received_lora_rank < upload.lora_rank ||
                    std::ssize(upload.received) != layout_.parameters(upload.received_lora_rank)))) {
        throw bug_error("upload of client {}: lora_rank {} (received {}), {} values (received {}), {} weights",
                        upload.client, upload.lora_rank, upload.received_lora_rank, upload.factors.size(),
                        upload.received.size(), upload.weights.size());
    }
    double largest_weight = 1.0;  // a weight of 0 may become 1 in the uniform fallback
    for (const double weight : upload.weights) {
        if (!(weight >= 0.0) || !std::isfinite(weight)) {
            throw training_error(
                "client {}: aggregation weight {} is not a finite number >= 0 - its training diverged: lower "
                "local.learning_rate or set local.clip_norm",
                upload.client, weight);
        }
        largest_weight = std::max(largest_weight, weight);
    }
    double largest = 0.0;
    for (const double value : upload.factors) {
        if (!std::isfinite(value)) {
            throw training_error("client {}: the uploaded adapter holds {} - its training diverged", upload.client,
                                 value);
        }
        largest = std::max(largest, std::abs(value));
    }
    if (deltas) {
        for (const double value : upload.received) largest = std::max(largest, 2.0 * std::abs(value));
        largest *= 2.0;  // |a - b| <= 2 max(|a|, |b|)
    }
    if (options_.reduction == ReductionKind::exact && largest * largest_weight >= ExactSum::largest_term - 1.0) {
        throw training_error(
            "client {}: its adapter reaches {} with aggregation weight {}, too large to be summed exactly - its "
            "training "
            "diverged: lower local.learning_rate or set local.clip_norm (or comm.reduction = fast)",
            upload.client, largest, largest_weight);
    }
}

void UploadAccumulator::mark_weight(const ClientUpload& upload, std::size_t matrix) {
    const auto first = has_weight_.begin() + static_cast<std::ptrdiff_t>(matrix) * options_.rank_max;
    if (options_.slot_norm == SlotNorm::contributors && !upload.slots.empty()) {
        for (const std::int32_t slot : upload.slots) first[slot] = 1;
        return;
    }
    std::fill_n(first, options_.slot_norm == SlotNorm::contributors ? upload.lora_rank : options_.rank_max, 1);
}

/// Adds the rows of one factor of one matrix to those of the global adapter that start at `first`.
void UploadAccumulator::add_rows(const ClientUpload& upload, double weight, std::span<const double> values,
                                 std::size_t first) {
    UploadSum& sums = weight > 0.0 ? weighted_ : *unweighted_;
    const double factor = weight > 0.0 ? weight : 1.0;
    if (upload.slots.empty()) {  // the client's rows are the leading part of the padded ones
        sums.add(factor, values, first);
        if (options_.slot_norm == SlotNorm::replicate && upload.lora_rank == scope_.largest_lora_rank) {
            sums.add(factor, values, first + weighted_.size() / 2);
        }
        return;
    }
    const std::size_t width = values.size() / upload.slots.size();
    for (std::size_t i = 0; i < upload.slots.size(); ++i) {
        sums.add(factor, values.subspan(i * width, width), first + static_cast<std::size_t>(upload.slots[i]) * width);
    }
}

void UploadAccumulator::add(const ClientUpload& upload) {
    check(upload);
    if (!unweighted_ && std::ranges::find(upload.weights, 0.0) != upload.weights.end()) {
        unweighted_ = std::make_unique<UploadSum>(options_.reduction, weighted_.size());
    }
    std::size_t source = 0;
    std::size_t source_received = 0;
    std::size_t target = 0;
    for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
        if (upload.weights[m] > 0.0) mark_weight(upload, m);
        for (const bool is_a : {true, false}) {
            const std::int64_t width = is_a ? layout_.matrices[m].d_in : layout_.matrices[m].d_out;
            const auto n = static_cast<std::size_t>(upload.lora_rank * width);
            if (is_a ? scope_.sent.a : scope_.sent.b) {
                auto values = upload.factors.subspan(source, n);
                if (options_.aggregate == Aggregate::deltas) {
                    contribution_.resize(n);
                    std::ranges::transform(values, upload.received.subspan(source_received, n), contribution_.begin(),
                                           std::minus<>{});
                    values = contribution_;
                }
                add_rows(upload, upload.weights[m], values, target);
            }
            source += n;
            source_received += static_cast<std::size_t>(upload.received_lora_rank * width);
            target += static_cast<std::size_t>(options_.rank_max * width);
        }
    }
}

void UploadAccumulator::begin(const RoundScope& scope) {
    scope_ = scope;
    weighted_.clear();
    unweighted_.reset();
    std::ranges::fill(has_weight_, 0);
}

void UploadAccumulator::settle(std::span<const std::int64_t> has_weight) {
    if (has_weight.size() != has_weight_.size()) {
        throw bug_error("settle: {} flags instead of {}", has_weight.size(), has_weight_.size());
    }
    if (!unweighted_) return;
    std::size_t row = 0;
    for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
        for (const auto width : {layout_.matrices[m].d_in, layout_.matrices[m].d_out}) {
            for (std::int64_t slot = 0; slot < options_.rank_max; ++slot) {
                // Without a positive weight the weighted sum of the slot is 0, so adding replaces it.
                if (has_weight[m * static_cast<std::size_t>(options_.rank_max) + static_cast<std::size_t>(slot)] == 0) {
                    weighted_.add_sums(*unweighted_, row, static_cast<std::size_t>(width));
                }
                row += static_cast<std::size_t>(width);
            }
        }
    }
    unweighted_.reset();
}

bool all_finite(std::span<const double> values) {
    return std::ranges::all_of(values, [](double value) { return std::isfinite(value); });
}

}  // namespace hetlora
