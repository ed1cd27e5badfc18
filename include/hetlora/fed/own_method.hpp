// A round's data in a plugin's terms, and back: who gets which slots, weights, merged factors. Root only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/fed/gathered_merge.hpp"
#include "hetlora/fed/plan.hpp"
#include "hetlora/plugin/method.hpp"

namespace hetlora {

/// Writes the plugin's choice into own_slots of the cohort.
/// @param global canonical form at rank_max
void choose_own_slots(plugin::Method& method, const AdapterLayout& layout, const AdapterInitLaw& law,
                      std::span<const double> global, RoundPlan& plan);

/// A plugin's weights are used as they are where the largest is in this range.
inline constexpr double largest_own_weight = 0x1.0p10;
inline constexpr double smallest_own_weight = 0x1.0p-20;

/// The plugin's weight of every client of the cohort; 0 for dropped ones. At most largest_own_weight.
[[nodiscard]] std::vector<double> own_weights(plugin::Method& method, std::int64_t round,
                                              std::span<const ClientReport> reports);

/// The plugin's merge. A factor that was not sent keeps its previous values. All clients dropped: nothing changes.
[[nodiscard]] MergeResult own_merge(plugin::Method& method, const GatheredMerge& input, std::int64_t round);

}  // namespace hetlora
