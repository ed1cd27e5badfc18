// See hetlora/sweep/expansion.hpp.
#include "hetlora/sweep/expansion.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/schema.hpp"

namespace hetlora::sweep {
namespace {

/// More combinations than this are not even looked at.
constexpr std::int64_t most_combinations = 1'000'000;

/// Steps through the product like a counter, last axis fastest.
class Counter {
public:
    explicit Counter(const std::vector<Axis>& axes) : axes_(axes), steps_(axes.size(), 0) {}
    bool next() {
        for (std::size_t a = axes_.size(); a-- > 0;) {
            if (++steps_[a] < axes_[a].size()) return true;
            steps_[a] = 0;
        }
        return false;
    }
    [[nodiscard]] const std::vector<std::string>& values(std::size_t axis) const {
        return axes_[axis].values[steps_[axis]];
    }

private:
    const std::vector<Axis>& axes_;
    std::vector<std::size_t> steps_;
};

/// The value of a key in this combination, or in [set]; "" for neither.
std::string value_in(const SweepFile& sweep, const Counter& at, const std::string& key) {
    for (std::size_t a = 0; a < sweep.axes.size(); ++a) {
        const auto& keys = sweep.axes[a].keys;
        const auto found = std::ranges::find(keys, key);
        if (found != keys.end()) return at.values(a)[static_cast<std::size_t>(found - keys.begin())];
    }
    const auto fixed = sweep.set.find(key);
    return fixed == sweep.set.end() ? "" : fixed->second;
}

bool is_excluded(const SweepFile& sweep, const Counter& at) {
    const auto holds = [&](const Exclusion::Condition& condition) {
        const auto value = value_in(sweep, at, condition.key);
        return std::ranges::any_of(condition.values, [&](const auto& other) { return same_value(value, other); });
    };
    return std::ranges::any_of(sweep.exclusions,
                               [&](const Exclusion& rule) { return std::ranges::all_of(rule.conditions, holds); });
}

std::string label_of_axis(const Axis& axis, const std::vector<std::string>& values) {
    std::string label;
    for (std::size_t k = 0; k < axis.keys.size(); ++k) {
        if (values[k] == left_out && axis.keys.size() > 1) continue;
        label += (label.empty() ? "" : "-") + label_of(axis.keys[k], values[k]);
    }
    return label.empty() ? "default" : label;
}

Combination combination(const SweepFile& sweep, const Counter& at) {
    Combination made;
    auto settings = sweep.set;
    for (std::size_t a = 0; a < sweep.axes.size(); ++a) {
        const Axis& axis = sweep.axes[a];
        const auto& values = at.values(a);
        for (std::size_t k = 0; k < axis.keys.size(); ++k) {
            settings[axis.keys[k]] = values[k];
            if (values[k] == left_out && axis.keys.size() > 1) continue;
            made.text += fmt::format("{}{} = {}", made.text.empty() ? "" : ", ", axis.keys[k], values[k]);
        }
        if (axis.size() > 1) made.label += (made.label.empty() ? "" : "_") + label_of_axis(axis, values);
    }
    for (const auto& [key, value] : settings) {
        if (value == left_out) {
            made.left_out.insert(key);
        } else {
            made.overrides.push_back(fmt::format("{}={}", key, value));
        }
    }
    if (made.label.empty()) made.label = "run";
    if (made.label.size() > longest_label) made.label.resize(longest_label);
    return made;
}

}  // namespace

std::string label_of(const std::string& key, const std::string& value) {
    if (value == left_out) return "default";
    const auto* row = find_config_key(key);
    std::string text = row != nullptr && row->type == "path" ? std::filesystem::path(value).stem().string() : value;
    std::string safe;
    for (const char c : text) {
        const bool fine =
            std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '+' || c == '-' || c == '_';
        safe += c == ',' ? '+' : c == ' ' ? '\0' : fine ? c : '-';
    }
    std::erase(safe, '\0');
    if (key == "experiment.seed") return "s" + safe;
    if (key.starts_with("experiment.seed_")) return key.substr(16) + safe;
    return safe.starts_with('.') ? "0" + safe : safe;  // ".1": no hidden folders
}

Expansion expand(const SweepFile& sweep) {
    double product = 1.0;
    std::string sizes;
    for (const auto& axis : sweep.axes) {
        product *= static_cast<double>(axis.size());
        sizes += fmt::format("{}{} {}", sizes.empty() ? "" : " x ", axis.size(), axis.name);
    }
    if (product > static_cast<double>(most_combinations)) {
        throw usage_error("{}: {:.0f} combinations ({}) are far more than max_runs = {}; take values out of the axes",
                          sweep.file.string(), product, sizes, sweep.max_runs);
    }
    Expansion expansion;
    Counter at(sweep.axes);
    do {
        if (is_excluded(sweep, at)) {
            ++expansion.excluded;
        } else {
            expansion.combinations.push_back(combination(sweep, at));
        }
    } while (at.next());
    if (expansion.combinations.empty()) {
        throw usage_error("{}: all {} combinations ({}) are left out by [exclude]: there is nothing to run",
                          sweep.file.string(), expansion.excluded, sizes);
    }
    if (std::ssize(expansion.combinations) > sweep.max_runs) {
        throw usage_error(
            "{}: {} runs ({}{}) are more than max_runs = {}; take values out of the axes, or raise max_runs in [sweep]",
            sweep.file.string(), expansion.combinations.size(), sizes,
            expansion.excluded > 0 ? fmt::format(", {} of them left out", expansion.excluded) : "", sweep.max_runs);
    }
    return expansion;
}

}  // namespace hetlora::sweep
