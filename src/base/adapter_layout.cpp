#include "hetlora/base/adapter_layout.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"

namespace hetlora {

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

template void resize_adapter<float>(const AdapterLayout&, std::span<const float>, std::int64_t, std::span<float>,
                                    std::int64_t);
template void resize_adapter<double>(const AdapterLayout&, std::span<const double>, std::int64_t, std::span<double>,
                                     std::int64_t);

}  // namespace hetlora
