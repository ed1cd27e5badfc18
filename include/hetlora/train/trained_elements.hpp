// Which elements of a client's row of an AdapterGroup train, when not all of them do.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/model/lora.hpp"

namespace hetlora {

/// Elements [begin, end) of a client's row.
struct RowRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
};

/// The elements of one client's row that train.
struct TrainedElements {
    bool all = true;               ///< the whole row, padding included: `ranges` is not read
    std::vector<RowRange> ranges;  ///< ascending, none of them empty, no two touching
};

/// What a client chose to train: one factor or both, of all slots or of some.
struct TrainedPart {
    std::int64_t lora_rank = 0;
    TrainedFactors factors = TrainedFactors::both;
    std::span<const std::uint8_t> slots = {};  ///< [matrix, slot], not 0 where it trains; empty: all slots
};

/// A part that is everything becomes `all`, so that a mask of ones has the bits of no mask.
/// @throws Error (bug) where the mask has another size than matrices * lora_rank
[[nodiscard]] TrainedElements trained_elements(const AdapterGroup& adapters, const AdapterLayout& layout,
                                               const TrainedPart& part);

}  // namespace hetlora
