#include "hetlora/fed/slot_choice.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

/// Indices of the `count` largest values, ascending.
std::vector<std::size_t> largest(std::span<const double> values, std::int64_t count) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto key = [&](std::size_t i) {
        return std::isnan(values[i]) ? -std::numeric_limits<double>::infinity() : values[i];
    };
    const auto end = order.begin() + std::min(count, std::ssize(order));
    std::ranges::partial_sort(order, end,
                              [&](std::size_t x, std::size_t y) { return key(x) != key(y) ? key(x) > key(y) : x < y; });
    order.erase(end, order.end());
    std::ranges::sort(order);
    return order;
}

void check_adapter(const AdapterLayout& layout, std::span<const double> adapter, std::int64_t lora_rank) {
    if (std::ssize(adapter) != layout.parameters(lora_rank)) {
        throw bug_error("slot choice: an adapter of {} values at lora_rank {}", adapter.size(), lora_rank);
    }
}

void check_count(std::int64_t k, std::int64_t rank_max) {
    if (k < 0 || k > rank_max) throw bug_error("slot choice: {} slots out of lora_rank {}", k, rank_max);
}

double norm_squared(std::span<const double> values) {
    double sum = 0.0;
    for (const double x : values) sum += x * x;
    return sum;
}

/// A slot's row of a factor that begins at `offset`.
std::span<const double> slot_row(std::span<const double> adapter, std::int64_t offset, std::int64_t width,
                                 std::int64_t slot) {
    return adapter.subspan(static_cast<std::size_t>(offset + slot * width), static_cast<std::size_t>(width));
}

}  // namespace

std::vector<double> slot_scores(const AdapterLayout& layout, const FactorChange& change) {
    if (change.factors == TrainedFactors::both) throw bug_error("slot_scores: both factors trained, not one");
    check_adapter(layout, change.received, change.lora_rank);
    check_adapter(layout, change.trained, change.lora_rank);
    const bool of_a = change.factors == TrainedFactors::a_only;
    std::vector<double> scores;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto& matrix = layout.matrices[m];
        const std::int64_t a = layout.offset_a(m, change.lora_rank);
        const std::int64_t b = layout.offset_b(m, change.lora_rank);
        const std::int64_t live = of_a ? a : b;
        const std::int64_t live_width = of_a ? matrix.d_in : matrix.d_out;
        const std::int64_t still = of_a ? b : a;
        const std::int64_t still_width = of_a ? matrix.d_out : matrix.d_in;
        for (std::int64_t slot = 0; slot < change.lora_rank; ++slot) {
            const auto before = slot_row(change.received, live, live_width, slot);
            const auto after = slot_row(change.trained, live, live_width, slot);
            double moved = 0.0;
            for (std::size_t i = 0; i < before.size(); ++i) moved += (after[i] - before[i]) * (after[i] - before[i]);
            const double other = norm_squared(slot_row(change.received, still, still_width, slot));
            scores.push_back(std::sqrt(moved) * std::sqrt(other));
        }
    }
    return scores;
}

std::vector<std::uint8_t> choose_slots(std::span<const double> scores, std::int64_t budget) {
    if (budget < 0) throw bug_error("choose_slots: a budget of {}", budget);
    std::vector<std::uint8_t> mask(scores.size(), 0);
    for (const std::size_t i : largest(scores, budget)) mask[i] = 1;
    return mask;
}

std::vector<std::uint8_t> mask_of_slots(const AdapterLayout& layout, std::int64_t lora_rank,
                                        std::span<const std::int64_t> slots) {
    const auto width = static_cast<std::size_t>(lora_rank);
    std::vector<std::uint8_t> mask(layout.matrices.size() * width, 0);
    for (const std::int64_t slot : slots) {
        if (slot < 0 || slot >= lora_rank) throw bug_error("mask_of_slots: slot {} of lora_rank {}", slot, lora_rank);
        for (std::size_t m = 0; m < layout.matrices.size(); ++m) mask[m * width + static_cast<std::size_t>(slot)] = 1;
    }
    return mask;
}

std::vector<std::int64_t> random_slots(const SlotDraw& draw, std::int64_t rank_max, std::int64_t k) {
    check_count(k, rank_max);
    std::vector<std::int64_t> slots(static_cast<std::size_t>(rank_max));
    std::iota(slots.begin(), slots.end(), std::int64_t{0});
    const auto ticket = [&](std::int64_t slot) {
        return hash_seed(draw.seed, Purpose::slot_choice, draw.round, draw.client, slot);
    };
    std::ranges::partial_sort(slots, slots.begin() + k, [&](std::int64_t x, std::int64_t y) {
        return ticket(x) != ticket(y) ? ticket(x) < ticket(y) : x < y;
    });
    slots.resize(static_cast<std::size_t>(k));
    std::ranges::sort(slots);
    return slots;
}

std::vector<double> slot_energies(const AdapterLayout& layout, std::span<const double> adapter,
                                  std::int64_t lora_rank) {
    check_adapter(layout, adapter, lora_rank);
    std::vector<double> energy(static_cast<std::size_t>(lora_rank), 0.0);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const std::int64_t a = layout.offset_a(m, lora_rank);
        const std::int64_t b = layout.offset_b(m, lora_rank);
        for (std::int64_t slot = 0; slot < lora_rank; ++slot) {
            energy[static_cast<std::size_t>(slot)] +=
                norm_squared(slot_row(adapter, a, layout.matrices[m].d_in, slot)) *
                norm_squared(slot_row(adapter, b, layout.matrices[m].d_out, slot));
        }
    }
    return energy;
}

std::vector<std::int64_t> important_slots(const AdapterLayout& layout, std::span<const double> global,
                                          std::int64_t rank_max, std::int64_t k) {
    check_count(k, rank_max);
    std::vector<std::int64_t> slots;
    for (const std::size_t i : largest(slot_energies(layout, global, rank_max), k)) {
        slots.push_back(static_cast<std::int64_t>(i));
    }
    return slots;
}

}  // namespace hetlora
