// Small text tools: splitting, numbers without locales, the nearest known name, sizes and times for people.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// The text without white space (blank, tab, CR, LF) at both ends.
[[nodiscard]] std::string_view trim(std::string_view text);

/// The trimmed parts between separators; an empty (or blank) text has none, "a,,b" has an empty part in the middle.
[[nodiscard]] std::vector<std::string> split(std::string_view text, char separator);

/// The parts with the separator between them.
[[nodiscard]] std::string join(std::span<const std::string> parts, std::string_view separator);

/// Numbers independent of the locale; the whole text must be the number (no blanks, no "+").
[[nodiscard]] std::optional<std::int64_t> parse_integer(std::string_view text);
[[nodiscard]] std::optional<std::uint64_t> parse_unsigned(std::string_view text);
/// As parse_integer for a finite double: "0.5", "1e-3"; not "inf" or "nan".
[[nodiscard]] std::optional<double> parse_number(std::string_view text);
/// The shortest text that parse_number turns into the same double again.
[[nodiscard]] std::string shortest_text(double value);

/// Edits (insert, delete, replace, swap of neighbours) between two words: Damerau-Levenshtein distance, restricted
/// form (no piece is edited twice).
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate that the writer of `word` probably meant, if one is near enough: at most a third of the longer
/// word's letters differ (at least one edit is always allowed), or one is the start of the other.
[[nodiscard]] std::optional<std::string> nearest_name(std::string_view word, std::span<const std::string> candidates);

/// "; did you mean x?" with the nearest candidate, or nothing.
[[nodiscard]] std::string did_you_mean(std::string_view word, std::span<const std::string> candidates);

/// "512 B", "1.5 KiB", "3.2 GiB".
[[nodiscard]] std::string human_bytes(double bytes);

/// "0.25 s", "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"; "?" if not finite or negative.
[[nodiscard]] std::string human_seconds(double seconds);

/// "950", "12.3 k", "4.5 M": a count per unit, three digits.
[[nodiscard]] std::string human_count(double count);

/// "1 client", "0 clients", "20 clients": a number with the noun whose plural ends in s.
[[nodiscard]] std::string counted(std::int64_t number, std::string_view noun);

}  // namespace hetlora
