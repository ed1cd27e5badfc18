// From axes to combinations: the product of all axes, without those that a rule leaves out.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "hetlora/sweep/sweep_file.hpp"

namespace hetlora::sweep {

/// What one run of a sweep sets.
struct Combination {
    std::vector<std::string> overrides;  ///< "section.key=value" of [set] and the axes, for load_settings_text()
    std::set<std::string> left_out;      ///< keys that this run does not set, whatever base and [set] say
    std::string label;                   ///< the values of the axes that step, e.g. "uniform_2-8_s3"; file-name safe
    std::string text;                    ///< the same for people: "lora.rank_min = 2, experiment.seed = 3"
};

/// Longest label in characters.
inline constexpr std::size_t longest_label = 80;

struct Expansion {
    std::vector<Combination> combinations;  ///< first axis slowest
    std::int64_t excluded = 0;              ///< combinations that a rule left out
};

/// @throws Error (usage) if there are more runs than the cap (saying how many) or none at all
[[nodiscard]] Expansion expand(const SweepFile& sweep);

/// A value as a part of a label: letters, digits, '.', '+', '-' and '_' stay, a path gives its stem, seeds are "s3".
[[nodiscard]] std::string label_of(const std::string& key, const std::string& value);

}  // namespace hetlora::sweep
