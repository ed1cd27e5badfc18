// Checks that concern more than one key (private to config).
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora::config_detail {

/// Where values come from, for messages.
struct Origins {
    std::map<std::string, std::string, std::less<>> where;  ///< "section.key" -> "file:line" or "command line"
    std::set<std::string, std::less<>> unreadable;          ///< keys whose value was refused: not checked any further

    /// "demo.ini:5: lora.rank_min = 9", or "lora.rank_min = 9 (default)"
    [[nodiscard]] std::string describe(const Settings& settings, std::string_view full_name) const;
    /// As describe, for the middle of a sentence: "lora.rank_min = 9 (demo.ini:5)".
    [[nodiscard]] std::string mention(const Settings& settings, std::string_view full_name) const;
};

/// All contradictions between keys, one text each.
[[nodiscard]] std::vector<std::string> combination_problems(const Settings& settings, const Origins& origins);

/// Whether the value says "nothing", so that it may be given where its key has no effect: empty, 0, false.
[[nodiscard]] bool is_switched_off(std::string_view value_text);

}  // namespace hetlora::config_detail
