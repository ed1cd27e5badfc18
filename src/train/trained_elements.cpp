#include "hetlora/train/trained_elements.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"

namespace hetlora {

TrainedElements trained_elements(const AdapterGroup& adapters, const AdapterLayout& layout, const TrainedPart& part) {
    const std::int64_t n_slots = std::ssize(layout.matrices) * part.lora_rank;
    if (!part.slots.empty() && std::ssize(part.slots) != n_slots) {
        throw bug_error("trained_elements: a mask of {} slots for {} matrices at lora_rank {}", part.slots.size(),
                        layout.matrices.size(), part.lora_rank);
    }
    const bool every_slot = std::ranges::find(part.slots, std::uint8_t{0}) == part.slots.end();
    if (every_slot && part.factors == TrainedFactors::both) return {};

    TrainedElements trained{.all = false, .ranges = {}};
    const auto add = [&](std::int64_t begin, std::int64_t end) {
        if (!trained.ranges.empty() && trained.ranges.back().end == begin) {
            trained.ranges.back().end = end;
        } else {
            trained.ranges.push_back({.begin = begin, .end = end});
        }
    };
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto add_factor = [&](std::int64_t offset, std::int64_t width) {
            for (std::int64_t slot = 0; slot < part.lora_rank; ++slot) {
                const std::size_t index = m * static_cast<std::size_t>(part.lora_rank) + static_cast<std::size_t>(slot);
                if (every_slot || part.slots[index] != 0) add(offset + slot * width, offset + (slot + 1) * width);
            }
        };
        if (part.factors != TrainedFactors::b_only) add_factor(adapters.offset_a(m), layout.matrices[m].d_in);
        if (part.factors != TrainedFactors::a_only) add_factor(adapters.offset_b(m), layout.matrices[m].d_out);
    }
    return trained;
}

}  // namespace hetlora
