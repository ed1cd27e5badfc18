// What a real client would send and receive in a round: adapter values at the precision of the run, plus indices of
// slots (4 bytes each) where both sides cannot know them, plus the weight that a client has to tell.
#pragma once

#include <cstdint>
#include <string>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

/// The formulas in symbols, e.g. "P(r_k)" (see strategy_table()).
[[nodiscard]] std::string symbols_up(const Policies& policies);
[[nodiscard]] std::string symbols_down(const Policies& policies);

/// One participation.
struct TrafficOf {
    std::int64_t round = 1;
    std::int64_t lora_rank_before = 0;
    std::int64_t lora_rank_after = 0;
    std::int64_t value_bytes = 4;
};

/// Bytes that the client sends. slot_select = random needs no indices (seed, round and client give them to both sides);
/// scored ones travel as one bit per pair.
[[nodiscard]] std::int64_t true_bytes_up(const Strategy& strategy, const AdapterLayout& layout,
                                         const TrafficOf& client);
/// Bytes that the client receives, without what went into the base in the round before (delta_bytes counts these).
[[nodiscard]] std::int64_t true_bytes_down(const Strategy& strategy, const AdapterLayout& layout,
                                           const TrafficOf& client);

/// Values of the sent factors of one slot over all matrices: sum of d_in and / or d_out.
[[nodiscard]] std::int64_t values_per_slot(const AdapterLayout& layout, const Factors& factors);

}  // namespace hetlora
