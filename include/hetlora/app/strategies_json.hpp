// The table of methods for other programs: `hetlora strategies --json`.
#pragma once

#include <string>
#include <string_view>

namespace hetlora {

/// A JSON list with one object per preset: name, aliases, policies (key: value), requires_equal_lora_ranks, up and down
/// (what a client sends and receives, in symbols), paper, description, notes. Ends with a line break.
/// @param name  only this preset (or alias); empty: all of them, in the order of the table
/// @throws Error (usage) with the nearest known name
[[nodiscard]] std::string strategies_json(std::string_view name);

}  // namespace hetlora
