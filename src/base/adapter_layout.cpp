#include "hetlora/base/adapter_layout.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// Calls visit(width, few, all) for A and Bt of every matrix: the width of a slot, and where the factor begins in an
/// adapter of slots.size() slots and in one of lora_rank slots.
template <typename Visit>
void for_each_factor(const AdapterLayout& layout, std::span<const std::int64_t> slots, std::int64_t lora_rank,
                     Visit visit) {
    std::int64_t few = 0;
    std::int64_t all = 0;
    for (const auto& matrix : layout.matrices) {
        for (const std::int64_t width : {matrix.d_in, matrix.d_out}) {
            visit(width, few, all);
            few += std::ssize(slots) * width;
            all += lora_rank * width;
        }
    }
}

/// Refuses sizes that do not fit, and slots that do not exist.
void check_slots(const AdapterLayout& layout, std::span<const std::int64_t> slots, std::size_t few_values,
                 std::size_t all_values, std::int64_t lora_rank) {
    if (static_cast<std::int64_t>(few_values) != layout.parameters(std::ssize(slots)) ||
        static_cast<std::int64_t>(all_values) != layout.parameters(lora_rank)) {
        throw bug_error("slots of an adapter: {} and {} values for {} slots out of lora_rank {}", few_values,
                        all_values, slots.size(), lora_rank);
    }
    for (const std::int64_t slot : slots) {
        if (slot < 0 || slot >= lora_rank) {
            throw bug_error("slots of an adapter: slot {} of lora_rank {}", slot, lora_rank);
        }
    }
}

}  // namespace

std::int64_t AdapterLayout::parameters_per_slot() const {
    std::int64_t total = 0;
    for (const auto& matrix : matrices) total += matrix.d_in + matrix.d_out;
    return total;
}

std::int64_t AdapterLayout::parameters(std::int64_t lora_rank) const { return lora_rank * parameters_per_slot(); }

std::int64_t AdapterLayout::offset_a(std::size_t matrix, std::int64_t lora_rank) const {
    std::int64_t slots = 0;
    for (std::size_t m = 0; m < matrix; ++m) slots += matrices[m].d_in + matrices[m].d_out;
    return slots * lora_rank;
}

std::int64_t AdapterLayout::offset_b(std::size_t matrix, std::int64_t lora_rank) const {
    return offset_a(matrix, lora_rank) + matrices[matrix].d_in * lora_rank;
}

template <typename T>
void resize_adapter(const AdapterLayout& layout, std::span<const T> from, std::int64_t from_rank, std::span<T> to,
                    std::int64_t to_rank) {
    if (std::ssize(from) != layout.parameters(from_rank) || std::ssize(to) != layout.parameters(to_rank)) {
        throw bug_error("resize_adapter: {} and {} values for lora_ranks {} and {}", from.size(), to.size(), from_rank,
                        to_rank);
    }
    const std::int64_t kept = std::min(from_rank, to_rank);
    const T* source = from.data();
    T* target = to.data();
    for (const auto& matrix : layout.matrices) {
        for (const std::int64_t width : {matrix.d_in, matrix.d_out}) {
            std::copy_n(source, kept * width, target);
            std::fill(target + kept * width, target + to_rank * width, T{0});
            source += from_rank * width;
            target += to_rank * width;
        }
    }
}

template <typename T>
void select_slots(const AdapterLayout& layout, std::span<const T> from, std::int64_t from_rank,
                  std::span<const std::int64_t> slots, std::span<T> to) {
    check_slots(layout, slots, to.size(), from.size(), from_rank);
    for_each_factor(layout, slots, from_rank, [&](std::int64_t width, std::int64_t few, std::int64_t all) {
        T* target = to.data() + few;
        for (const std::int64_t slot : slots) target = std::copy_n(from.data() + all + slot * width, width, target);
    });
}

template <typename T>
void place_slots(const AdapterLayout& layout, std::span<const T> from, std::span<const std::int64_t> slots,
                 std::span<T> to, std::int64_t to_rank) {
    check_slots(layout, slots, from.size(), to.size(), to_rank);
    for_each_factor(layout, slots, to_rank, [&](std::int64_t width, std::int64_t few, std::int64_t all) {
        const T* source = from.data() + few;
        for (const std::int64_t slot : slots) {
            std::copy_n(source, width, to.data() + all + slot * width);
            source += width;
        }
    });
}

template void resize_adapter<float>(const AdapterLayout&, std::span<const float>, std::int64_t, std::span<float>,
                                    std::int64_t);
template void resize_adapter<double>(const AdapterLayout&, std::span<const double>, std::int64_t, std::span<double>,
                                     std::int64_t);

template void select_slots<float>(const AdapterLayout&, std::span<const float>, std::int64_t,
                                  std::span<const std::int64_t>, std::span<float>);
template void select_slots<double>(const AdapterLayout&, std::span<const double>, std::int64_t,
                                   std::span<const std::int64_t>, std::span<double>);
template void place_slots<float>(const AdapterLayout&, std::span<const float>, std::span<const std::int64_t>,
                                 std::span<float>, std::int64_t);
template void place_slots<double>(const AdapterLayout&, std::span<const double>, std::span<const std::int64_t>,
                                  std::span<double>, std::int64_t);

}  // namespace hetlora
