// Makes rows of the key table: binds a key to a member of its section's struct, with parser and printer (private to
// config).
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "choices.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/schema.hpp"

namespace hetlora::config_detail {

/// Allowed numbers.
struct Range {
    double low = -std::numeric_limits<double>::infinity();
    double high = std::numeric_limits<double>::infinity();
    bool low_open = false;
    bool high_open = false;

    [[nodiscard]] bool contains(double value) const;
    /// ">= 1", "> 0", "in [0, 1)"
    [[nodiscard]] std::string text() const;
};

[[nodiscard]] inline Range at_least(double low) { return {.low = low}; }
[[nodiscard]] inline Range above(double low) { return {.low = low, .low_open = true}; }

/// What every row says besides its binding.
struct Row {
    std::string_view name;
    Identity identity;
    std::string_view help;
};

/// Problem with a text value that a config file could not hold ("#" starts a comment, line breaks), or nothing.
[[nodiscard]] std::optional<std::string> text_problem(std::string_view text);

/// "'x' is not one of a | b; did you mean a?"
[[nodiscard]] std::string not_among(std::string_view text, const std::vector<std::string>& choices,
                                    std::string_view allowed);

/// Splits a list, refusing empty and repeated parts; orders the parts as in `known` (which also checks them).
struct NameList {
    std::vector<std::string> names;
    std::optional<std::string> problem;
};
[[nodiscard]] NameList parse_names(std::string_view text, const std::vector<std::string>& known);

/// Adds rows of one section. S is the section's struct.
template <typename S>
class SectionBuilder {
public:
    SectionBuilder(std::string section, S Settings::*part, std::vector<ConfigKey>& rows)
        : section_(std::move(section)), part_(part), rows_(rows) {}

    ConfigKey& integer(const Row& row, std::int64_t S::*member, Range range) {
        return add(row, "integer", range.text(), getter<std::int64_t>(member),
                   [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                       const auto value = parse_integer(text);
                       if (!value) return fmt::format("'{}' is not a whole number", text);
                       if (!range.contains(static_cast<double>(*value))) return out_of_range(text, range);
                       settings.*this_part.*member = *value;
                       return {};
                   });
    }

    /// A whole number, or the word "auto" for 0.
    ConfigKey& integer_or_auto(const Row& row, std::int64_t S::*member, Range range) {
        auto& key = integer(row, member, range);
        key.set = [=, this_part = part_, plain = key.set](Settings& settings, std::string_view text) -> Problem {
            if (text != "auto") return plain(settings, text);
            settings.*this_part.*member = 0;
            return {};
        };
        key.allowed = "auto | " + key.allowed;
        return key;
    }

    ConfigKey& number(const Row& row, double S::*member, Range range) {
        return add(row, "number", range.text(), getter<double>(member),
                   [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                       const auto value = parse_number(text);
                       if (!value) return fmt::format("'{}' is not a number", text);
                       if (!range.contains(*value)) return out_of_range(text, range);
                       settings.*this_part.*member = *value;
                       return {};
                   });
    }

    ConfigKey& flag(const Row& row, bool S::*member) {
        auto& key = add(row, "true or false", "true | false", getter<bool>(member),
                        [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                            if (text != "true" && text != "false")
                                return not_among(text, {"true", "false"}, "true | false");
                            settings.*this_part.*member = text == "true";
                            return {};
                        });
        key.choices = {"true", "false"};
        return key;
    }

    /// A seed; with `falls_back` also the word "seed", which stands for experiment.seed.
    ConfigKey& seed(const Row& row, std::uint64_t S::*member, bool falls_back) {
        return add(row, "integer", ">= 0", getter<std::uint64_t>(member),
                   [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                       if (falls_back && text == "seed")
                           return {};  // load_settings() copies experiment.seed at the end
                       const auto value = parse_unsigned(text);
                       if (!value)
                           return fmt::format("'{}' is not a whole number from 0 to 18446744073709551615", text);
                       settings.*this_part.*member = *value;
                       return {};
                   });
    }

    ConfigKey& text(const Row& row, std::string S::*member, std::vector<std::string> choices = {}) {
        const std::string allowed = join(choices, " | ");
        auto& key = add(row, choices.empty() ? "text" : "one of", allowed, getter<std::string>(member),
                        [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                            if (auto problem = text_problem(text)) return problem;
                            if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) {
                                return not_among(text, choices, allowed);
                            }
                            settings.*this_part.*member = text;
                            return {};
                        });
        key.choices = std::move(choices);
        return key;
    }

    ConfigKey& path(const Row& row, std::filesystem::path S::*member) {
        return add(
            row, "path", "",
            [=, this_part = part_](const Settings& settings) -> ConfigValue {
                return (settings.*this_part.*member).string();
            },
            [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                try {
                    const auto value = absolute_path(expand_path(text));
                    if (auto problem = text_problem(value.string())) return problem;
                    settings.*this_part.*member = value;
                } catch (const Error& error) {
                    return error.what();
                }
                return {};
            });
    }

    template <typename E>
    ConfigKey& choice(const Row& row, E S::*member) {
        return any_choice<E>(
            row,
            [=, this_part = part_](const Settings& settings) -> ConfigValue {
                return std::string(name_of(settings.*this_part.*member));
            },
            [=, this_part = part_](Settings& settings, std::optional<E> value) {
                settings.*this_part.*member = *value;
            },
            {});
    }

    /// An override of a preset's policy: the word "preset" leaves it unset.
    template <typename E>
    ConfigKey& policy(const Row& row, std::optional<E> S::*member) {
        return any_choice<E>(
            row,
            [=, this_part = part_](const Settings& settings) -> ConfigValue {
                const auto& value = settings.*this_part.*member;
                return std::string(value ? name_of(*value) : "preset");
            },
            [=, this_part = part_](Settings& settings, std::optional<E> value) { settings.*this_part.*member = value; },
            {"preset"});
    }

    /// A comma-separated list of known names; `everything`, if given, is a word that may stand alone, for all
    /// that there are.
    ConfigKey& names(const Row& row, std::vector<std::string> S::*member, const std::vector<std::string>& known,
                     const std::string& everything, bool may_be_empty) {
        std::string allowed = "comma-separated: " + join(known, ", ");
        if (!everything.empty()) allowed += fmt::format("; or {}", everything);
        auto& key = add(row, "list", allowed, getter<std::vector<std::string>>(member),
                        [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                            auto list = !everything.empty() && text == everything ? NameList{{everything}, {}}
                                                                                  : parse_names(text, known);
                            if (list.problem) return list.problem;
                            if (list.names.empty() && !may_be_empty)
                                return "the list is empty; name at least one of " + join(known, ", ");
                            settings.*this_part.*member = std::move(list.names);
                            return {};
                        });
        key.choices = known;
        return key;
    }

    /// A comma-separated list of whole numbers.
    ConfigKey& integers(const Row& row, std::vector<std::int64_t> S::*member, Range range) {
        return add(row, "list", "comma-separated whole numbers " + range.text(),
                   getter<std::vector<std::int64_t>>(member),
                   [=, this_part = part_](Settings& settings, std::string_view text) -> Problem {
                       std::vector<std::int64_t> values;
                       for (const auto& part : split(text, ',')) {
                           const auto value = parse_integer(part);
                           if (!value) return fmt::format("'{}' in '{}' is not a whole number", part, text);
                           if (!range.contains(static_cast<double>(*value))) return out_of_range(part, range);
                           values.push_back(*value);
                       }
                       settings.*this_part.*member = std::move(values);
                       return {};
                   });
    }

private:
    using Problem = std::optional<std::string>;

    static Problem out_of_range(std::string_view text, const Range& range) {
        return fmt::format("{} is out of range: it must be {}", text, range.text());
    }

    template <typename T>
    auto getter(T S::*member) const {
        return [member, part = part_](const Settings& settings) -> ConfigValue { return settings.*part.*member; };
    }

    template <typename E, typename Get, typename Assign>
    ConfigKey& any_choice(const Row& row, Get get, Assign assign, std::vector<std::string> unset_words) {
        std::vector<std::string> choices = unset_words;
        std::vector<std::string> shown = unset_words;
        for (const auto& word : words_of<E>()) {
            choices.emplace_back(word.text);
            if (word.text == name_of(word.value)) shown.emplace_back(word.text);
        }
        const std::string allowed = join(shown, " | ");
        auto& key =
            add(row, "one of", allowed, std::move(get), [=](Settings& settings, std::string_view text) -> Problem {
                if (std::find(unset_words.begin(), unset_words.end(), text) != unset_words.end()) {
                    assign(settings, std::nullopt);
                    return {};
                }
                for (const auto& word : words_of<E>()) {
                    if (word.text != text) continue;
                    assign(settings, word.value);
                    return {};
                }
                return not_among(text, choices, allowed);
            });
        key.choices = std::move(choices);
        return key;
    }

    ConfigKey& add(const Row& row, std::string type, std::string allowed,
                   std::function<ConfigValue(const Settings&)> get,
                   std::function<Problem(Settings&, std::string_view)> set) {
        static const Settings defaults;
        ConfigKey& key = rows_.emplace_back();
        key.section = section_;
        key.name = row.name;
        key.type = std::move(type);
        key.allowed = std::move(allowed);
        key.help = row.help;
        key.identity = row.identity;
        key.default_text = config_text(get(defaults));
        key.get = std::move(get);
        key.set = std::move(set);
        return key;
    }

    std::string section_;
    S Settings::*part_;
    std::vector<ConfigKey>& rows_;
};

}  // namespace hetlora::config_detail
