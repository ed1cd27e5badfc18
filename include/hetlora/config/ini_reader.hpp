// Reads INI text with Boost.Program_options and finds out the line of every key: config files and sweep files.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// One "key = value" of the text.
struct IniEntry {
    std::string full_name;  ///< "section.key"; without a dot where it stands before the first section
    std::string value;      ///< trimmed, without comment
    int line = 0;           ///< from 1
};

/// A line that cannot be understood.
struct IniProblem {
    int line = 0;
    std::string text;
};

struct IniContent {
    std::vector<IniEntry> entries;  ///< in the order of the text
    std::vector<IniProblem> problems;
};

/// All entries of the text. Lines that are no entry, section, comment or blank are reported and left out, and so are
/// sections that do not exist (with all their keys).
/// @param sections  the sections that exist
[[nodiscard]] IniContent read_ini(std::string_view text, const std::vector<std::string>& sections);

}  // namespace hetlora
