// A sweep as its writer put it: a base config, fixed settings, axes, exclusions and a cap.
//
//   [sweep]    name, base, output, max_runs
//   [set]      section.key = value                 the same for every run
//   [axes]     section.key = value, value, 0..4    the product of all axes is run
//   [zip.X]    section.key = value, value          keys that step together: one axis of the product
//   [exclude]  any_name = section.key=value,value section.key=value     left out where all conditions hold
//
// Where values hold commas (lists of names or numbers), "|" separates them. The value "-" leaves a key out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace hetlora::sweep {

/// The value with which a run does not set a key at all, wherever else it is set.
inline constexpr const char* left_out = "-";

/// One axis: a key with its values, or several keys that step together.
struct Axis {
    std::string name;                              ///< "section.key", or "zip.NAME"
    std::vector<std::string> keys;                 ///< one, or those of the group
    std::vector<std::vector<std::string>> values;  ///< [step][key], as text
    std::string where;                             ///< "file:line", or "command line"
    [[nodiscard]] std::size_t size() const noexcept { return values.size(); }
};

/// A rule that leaves combinations out: those for which every condition holds.
struct Exclusion {
    struct Condition {
        std::string key;
        std::vector<std::string> values;  ///< any of them
    };
    std::string name;
    std::vector<Condition> conditions;
    std::string where;
};

/// A parsed and checked sweep. Paths are absolute.
struct SweepFile {
    std::string name;
    std::filesystem::path file;    ///< what --config named
    std::filesystem::path base;    ///< the base config; the same as `file` where the axes came as words
    std::filesystem::path output;  ///< the sweep's folder
    std::int64_t max_runs = 5000;
    std::string base_text;                   ///< content of the base config
    std::map<std::string, std::string> set;  ///< key -> value
    std::vector<Axis> axes;                  ///< in the order of the file, then of the words
    std::vector<Exclusion> exclusions;
};

/// The values of an axis, from one line of text: separated by "|" if there is one or if the key holds a list, else by
/// commas; "0..4" and "0..20..5" (first..last..step) are ranges of whole numbers.
[[nodiscard]] std::vector<std::string> split_values(const std::string& key, std::string_view text);

/// Equal as text, or as numbers: "0.10" is "0.1".
[[nodiscard]] bool same_value(const std::string& a, const std::string& b);

/// Reads a sweep file, or makes a sweep of a plain config and words.
/// @param file    with one of the sections above it is a sweep file; otherwise it is the base config
/// @param words   "section.key=value,value": axes, or fixed settings where there is one value; they replace the file's
/// @param output  the sweep's folder, if not the file's own choice
/// @throws Error (usage) with all problems at once, each with its place
[[nodiscard]] SweepFile read_sweep(const std::filesystem::path& file, const std::vector<std::string>& words,
                                   const std::optional<std::filesystem::path>& output = {});

/// The same for text. @param origin  what problems name as the file
[[nodiscard]] SweepFile read_sweep_text(const std::string& text, const std::filesystem::path& origin,
                                        const std::vector<std::string>& words,
                                        const std::optional<std::filesystem::path>& output = {});

}  // namespace hetlora::sweep
