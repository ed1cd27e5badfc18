#include "hetlora/fed/prune.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {

std::int64_t tail_start(std::int64_t lora_rank, const Strategy& strategy) {
    if (!strategy.prunes()) return lora_rank;
    constexpr double tolerance = 1e-9;
    const double exact = strategy.prune_gamma * static_cast<double>(lora_rank);
    double rounded = 0.0;
    switch (strategy.prune_rounding) {
        case PruneRounding::floor:
            rounded = std::floor(exact + tolerance);
            break;
        case PruneRounding::nearest:
            rounded = std::floor(exact + 0.5 + tolerance);
            break;
        case PruneRounding::ceil:
            rounded = std::ceil(exact - tolerance);
            break;
    }
    return std::max(strategy.rank_min, static_cast<std::int64_t>(rounded));
}

double tail_norm_product(const AdapterLayout& layout, std::span<const double> factors, std::int64_t lora_rank,
                         std::int64_t first_slot) {
    if (std::ssize(factors) != layout.parameters(lora_rank)) {
        throw bug_error("tail norm: {} values for lora_rank {}", factors.size(), lora_rank);
    }
    if (first_slot >= lora_rank) return 0.0;
    const std::int64_t tail = lora_rank - first_slot;
    double total = 0.0;
    const double* a = factors.data();
    for (const auto& matrix : layout.matrices) {
        const double* bt = a + lora_rank * matrix.d_in;
        const double norm_a =
            std::sqrt(sum_of_squares({a + first_slot * matrix.d_in, static_cast<std::size_t>(tail * matrix.d_in)}));
        const double norm_b =
            std::sqrt(sum_of_squares({bt + first_slot * matrix.d_out, static_cast<std::size_t>(tail * matrix.d_out)}));
        total += norm_b * norm_a;
        a = bt + lora_rank * matrix.d_out;
    }
    return total;
}

PruneDecision decide_prune(const AdapterLayout& layout, std::span<const double> received,
                           std::span<const double> trained, std::int64_t lora_rank, const Strategy& strategy) {
    PruneDecision decision{.pruned = false, .lora_rank_after = lora_rank, .before = 0.0, .after = 0.0};
    const std::int64_t g = tail_start(lora_rank, strategy);
    if (g >= lora_rank) return decision;
    if (strategy.prune_reference == PruneReference::received) {
        decision.before = tail_norm_product(layout, received, lora_rank, g);
    }
    decision.after = tail_norm_product(layout, trained, lora_rank, g);
    if (decision.after < decision.before) {
        decision.pruned = true;
        decision.lora_rank_after = g;
    }
    return decision;
}

}  // namespace hetlora
