#include "hetlora/fed/drift.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {

UpdateDrift::UpdateDrift(AdapterLayout layout, std::int64_t rank_max, ReductionKind reduction)
    : layout_(std::move(layout)),
      rank_max_(rank_max),
      sums_(reduction, static_cast<std::size_t>(layout_.parameters(rank_max))),
      counts_(layout_.matrices.size()) {}

void UpdateDrift::add(std::span<const double> sent, std::int64_t lora_rank, std::span<const double> received,
                      std::int64_t received_lora_rank) {
    if (lora_rank > received_lora_rank || lora_rank > rank_max_ || std::ssize(sent) != layout_.parameters(lora_rank) ||
        std::ssize(received) != layout_.parameters(received_lora_rank)) {
        throw bug_error("drift: lora_rank {} of {} values, received {} of {}, rank_max {}", lora_rank, sent.size(),
                        received_lora_rank, received.size(), rank_max_);
    }
    for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
        const auto size_a = static_cast<std::size_t>(lora_rank * layout_.matrices[m].d_in);
        const auto size_b = static_cast<std::size_t>(lora_rank * layout_.matrices[m].d_out);
        change_.resize(size_a + size_b);
        const auto subtract = [&](std::int64_t at_sent, std::int64_t at_received, std::size_t n, std::size_t to) {
            std::ranges::transform(sent.subspan(static_cast<std::size_t>(at_sent), n),
                                   received.subspan(static_cast<std::size_t>(at_received), n),
                                   change_.begin() + static_cast<std::ptrdiff_t>(to), std::minus<>{});
        };
        subtract(layout_.offset_a(m, lora_rank), layout_.offset_a(m, received_lora_rank), size_a, 0);
        subtract(layout_.offset_b(m, lora_rank), layout_.offset_b(m, received_lora_rank), size_b, size_a);
        const double norm = std::sqrt(sum_of_squares(change_));
        if (!(norm > 0.0) || !std::isfinite(norm)) continue;
        for (double& value : change_) value /= norm;  // not a weight: 1 / norm may be too large to be summed
        const std::span<const double> unit = change_;
        sums_.add(1.0, unit.first(size_a), static_cast<std::size_t>(layout_.offset_a(m, rank_max_)));
        sums_.add(1.0, unit.subspan(size_a), static_cast<std::size_t>(layout_.offset_b(m, rank_max_)));
        ++counts_[m];
    }
}

void UpdateDrift::clear() {
    sums_.clear();
    std::ranges::fill(counts_, 0);
}

std::vector<double> UpdateDrift::mean_cosines(std::span<const double> sums,
                                              std::span<const std::int64_t> counts) const {
    std::vector<double> cosines(layout_.matrices.size(), std::numeric_limits<double>::quiet_NaN());
    for (std::size_t m = 0; m < cosines.size(); ++m) {
        if (counts[m] < 2) continue;
        const auto first = static_cast<std::size_t>(layout_.offset_a(m, rank_max_));
        const auto size = static_cast<std::size_t>(rank_max_ * (layout_.matrices[m].d_in + layout_.matrices[m].d_out));
        const auto n = static_cast<double>(counts[m]);
        cosines[m] = (sum_of_squares(sums.subspan(first, size)) - n) / (n * (n - 1.0));
    }
    return cosines;
}

}  // namespace hetlora
