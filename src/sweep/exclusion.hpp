// Rules of [exclude]: read and checked (private to sweep).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "hetlora/sweep/sweep_file.hpp"

namespace hetlora::sweep {

/// A rule from one line, "a.b=1,2 c.d=x": conditions separated by blanks; blanks around "=", "," and "|" do not count.
/// @return nothing, with `problem` set, if it cannot be understood
[[nodiscard]] std::optional<Exclusion> parse_exclusion(const std::string& name, const std::string& text,
                                                       const std::string& where, std::string& problem);

/// Conditions that can never hold: on keys that are no axis, or values that the axis does not have. Each with its
/// place.
[[nodiscard]] std::vector<std::string> exclusion_problems(const SweepFile& sweep);

}  // namespace hetlora::sweep
