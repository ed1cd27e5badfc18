// See exclusion.hpp.
#include "exclusion.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "hetlora/base/text.hpp"

namespace hetlora::sweep {
namespace {

/// Blanks remain only between conditions.
std::string without_inner_blanks(const std::string& text) {
    std::string dense;
    for (const char c : text) {
        const bool blank = c == ' ' || c == '\t';
        if (c == '=' || c == ',' || c == '|') dense.erase(trim(dense).size());
        const bool after_joint = dense.empty() || std::string_view("=,|").find(dense.back()) != std::string_view::npos;
        if (!blank) dense += c;
        if (blank && !after_joint) dense += ' ';
    }
    return dense;
}

/// What is wrong with one condition, or "".
std::string problem_of(const SweepFile& sweep, const Exclusion::Condition& condition) {
    std::vector<std::string> keys;
    for (const auto& axis : sweep.axes) {
        keys.insert(keys.end(), axis.keys.begin(), axis.keys.end());
        const auto key = std::ranges::find(axis.keys, condition.key);
        if (key == axis.keys.end()) continue;
        if (axis.where == "command line") return {};  // other values than the file's, on purpose
        const auto column = static_cast<std::size_t>(key - axis.keys.begin());
        std::vector<std::string> known;
        for (const auto& step : axis.values) known.push_back(step[column]);
        for (const auto& value : condition.values) {
            if (std::ranges::any_of(known, [&](const auto& other) { return same_value(value, other); })) continue;
            return fmt::format("{} never is {}{} (values: {})", condition.key, value, did_you_mean(value, known),
                               join(known, ", "));
        }
        return {};
    }
    if (sweep.set.contains(condition.key)) return {};  // an axis that words replaced by one value
    return fmt::format("{} is no axis of this sweep{}", condition.key, did_you_mean(condition.key, keys));
}

}  // namespace

std::optional<Exclusion> parse_exclusion(const std::string& name, const std::string& text, const std::string& where,
                                         std::string& problem) {
    Exclusion rule{.name = name, .conditions = {}, .where = where};
    for (const auto& part : split(without_inner_blanks(text), ' ')) {
        if (part.empty()) continue;
        const auto equals = part.find('=');
        if (equals == std::string::npos || equals == 0) {
            problem = fmt::format("{}: '{}' is not understood; write section.key=value,value", name, part);
            return {};
        }
        auto key = part.substr(0, equals);
        auto values = split_values(key, part.substr(equals + 1));
        rule.conditions.push_back({std::move(key), std::move(values)});
    }
    if (!rule.conditions.empty()) return rule;
    problem = fmt::format("{}: the rule has no condition and would leave out every run", name);
    return {};
}

std::vector<std::string> exclusion_problems(const SweepFile& sweep) {
    std::vector<std::string> problems;
    for (const auto& rule : sweep.exclusions) {
        for (const auto& condition : rule.conditions) {
            const auto problem = problem_of(sweep, condition);
            if (!problem.empty()) problems.push_back(fmt::format("{}: {}: {}", rule.where, rule.name, problem));
        }
    }
    return problems;
}

}  // namespace hetlora::sweep
