// See hetlora/sweep/sweep_file.hpp.
#include "hetlora/sweep/sweep_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "exclusion.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/ini_reader.hpp"
#include "hetlora/config/schema.hpp"

namespace hetlora::sweep {
namespace {

/// "zip.low_high" for a line "[zip.low_high]  # comment", "" for a line that is no header.
std::string header_of(std::string_view whole) {
    const auto line = trim(whole.substr(0, whole.find('#')));
    if (line.size() < 3 || line.front() != '[' || line.back() != ']') return {};
    return std::string(trim(line.substr(1, line.size() - 2)));
}

/// The sections of the text that a sweep file may have, in order.
std::vector<std::string> sweep_sections(const std::string& text) {
    std::vector<std::string> names;
    for (std::size_t from = 0; from < text.size();) {
        const auto end = std::min(text.find('\n', from), text.size());
        const auto name = header_of(std::string_view(text).substr(from, end - from));
        from = end + 1;
        const bool fixed = name == "sweep" || name == "set" || name == "axes" || name == "exclude";
        if (fixed || (name.starts_with("zip.") && name.find('.', 4) == std::string::npos && name.size() > 4)) {
            names.push_back(name);
        }
    }
    return names;
}

/// The same name in all sections, else the nearest: as for a wrong key of a config.
std::string suggestion(const std::string& name) {
    const auto dot = name.find('.');
    const auto own = dot == std::string::npos ? name : name.substr(dot + 1);
    std::vector<std::string> all;
    for (const auto& key : config_schema()) {
        if (key.name == own) return fmt::format("; did you mean {}?", key.full_name());
        all.push_back(key.full_name());
    }
    return did_you_mean(name, all);
}

class Reader {
public:
    Reader(const std::string& text, const std::filesystem::path& origin) : text_(text), origin_(origin.string()) {
        sweep_.file = absolute_path(origin);
    }

    void read_file() {
        auto sections = sweep_sections(text_);
        for (const char* name : {"sweep", "set", "axes", "exclude", "zip.NAME"}) {
            if (std::ranges::find(sections, name) == sections.end()) sections.emplace_back(name);
        }
        const auto content = read_ini(text_, sections);
        for (const auto& problem : content.problems) report(problem.line, problem.text);
        std::set<std::string> seen;
        for (const auto& entry : content.entries) {
            if (!seen.insert(entry.full_name).second) {
                report(entry.line, fmt::format("{} is given twice; remove one of the two", entry.full_name));
                continue;
            }
            take(entry);
        }
        finish_groups();
        if (sweep_.name.empty()) sweep_.name = std::filesystem::path(origin_).stem().string();
        if (sweep_.base.empty()) {
            report("", "sweep.base (the config that every run starts from) is missing; set \"base = FILE\" in [sweep]");
        } else {
            read_base();
        }
    }

    void take_base_only() {
        sweep_.base = sweep_.file;
        sweep_.base_text = text_;
        sweep_.name = std::filesystem::path(origin_).stem().string() + "-sweep";
        words_only_ = true;
    }

    void add_words(const std::vector<std::string>& words) {
        where_ = "command line";
        std::set<std::string> seen;
        for (const auto& word : words) {
            const auto equals = word.find('=');
            const std::string key(trim(std::string_view(word).substr(0, equals)));
            if (equals == std::string::npos || key.empty()) {
                report_at("command line", fmt::format("'{}' is not understood; write section.key=value,value", word));
            } else if (!seen.insert(key).second) {
                report_at("command line", fmt::format("{} is given twice; keep one of the two", key));
            } else {
                add_word(key, word.substr(equals + 1));
            }
        }
    }

    SweepFile finish(const std::optional<std::filesystem::path>& output) {
        if (output) sweep_.output = absolute_path(*output);
        if (sweep_.output.empty()) sweep_.output = absolute_path(std::filesystem::path("results") / sweep_.name);
        check_twice();
        for (auto& problem : exclusion_problems(sweep_)) problems_.push_back(std::move(problem));
        if (sweep_.axes.empty() && problems_.empty()) {
            report_at(words_only_ ? "command line" : origin_,
                      words_only_ ? "there is no axis: give at least one section.key=value,value (one run alone: "
                                    "hetlora run)"
                                  : "there is no axis: write at least one \"section.key = value, value\" in [axes]");
        }
        if (!problems_.empty()) throw collected();
        return std::move(sweep_);
    }

private:
    void report_at(std::string_view where, std::string_view text) {
        problems_.push_back(fmt::format("{}: {}", where, text));
    }
    void report(std::string_view, std::string_view text) { report_at(origin_, text); }
    void report(int line, std::string_view text) { report_at(fmt::format("{}:{}", origin_, line), text); }

    void take(const IniEntry& entry) {
        where_ = fmt::format("{}:{}", origin_, entry.line);
        const auto& full = entry.full_name;
        if (full.starts_with("sweep.")) return take_option(full.substr(6), entry.value);
        if (full.starts_with("set.")) return take_setting(full.substr(4), entry.value);
        if (full.starts_with("axes.")) return take_axis(full.substr(5), entry.value);
        if (full.starts_with("exclude.")) return take_exclusion(full.substr(8), entry.value);
        if (full.starts_with("zip.")) {
            const auto dot = full.find('.', 4);
            return take_zip(full.substr(0, dot), full.substr(dot + 1), entry.value);
        }
        report_at(where_, fmt::format("{} = {}: the line stands before the first section", full, entry.value));
    }

    void take_option(const std::string& name, const std::string& value) {
        static const std::vector<std::string> names = {"name", "base", "output", "max_runs"};
        if (name == "name") {
            sweep_.name = value;
            if (value.empty() || value.find('/') != std::string::npos || value.starts_with('.')) {
                report_at(where_, fmt::format("name = {}: it names a folder; use letters, digits, '-' and '_'", value));
            }
        } else if (name == "base") {
            sweep_.base = expanded(value);
        } else if (name == "output") {
            if (!value.empty()) sweep_.output = expanded(value);
        } else if (name == "max_runs") {
            const auto number = parse_integer(value);
            if (!number || *number < 1) {
                report_at(where_, fmt::format("max_runs = {}: expected a whole number >= 1", value));
            } else {
                sweep_.max_runs = *number;
            }
        } else {
            report_at(where_, fmt::format("{} = {}: there is no such key in [sweep]{} (keys: {})", name, value,
                                          did_you_mean(name, names), join(names, ", ")));
        }
    }

    std::filesystem::path expanded(const std::string& value) {
        try {
            return absolute_path(expand_path(value));
        } catch (const Error& error) {
            report_at(where_, error.what());
            return {};
        }
    }

    bool is_sweepable(const std::string& key) {
        if (find_config_key(key) == nullptr) {
            report_at(where_, fmt::format("there is no key {}{}", key, suggestion(key)));
            return false;
        }
        if (key == "output.dir") {
            report_at(where_,
                      "output.dir: every run of a sweep has a folder of its own below the sweep's "
                      "(sweep.output, or --output)");
            return false;
        }
        return true;
    }

    void take_setting(const std::string& key, const std::string& value) {
        if (is_sweepable(key)) sweep_.set[key] = value;
    }

    /// The values of one line, checked one by one against the key; empty with a problem reported.
    std::vector<std::string> values_of(const std::string& key, const std::string& text) {
        if (!is_sweepable(key)) return {};
        auto values = split_values(key, text);
        if (values.empty()) {
            report_at(where_,
                      fmt::format("{} has no values, so that there would be no run at all; give at least one", key));
        }
        for (const auto& value : values) {
            if (value.empty()) {
                report_at(where_, fmt::format("{} = {}: a value is empty; remove the separator, or write \"{}\" where "
                                              "a run shall not set the key",
                                              key, text, left_out));
                return {};
            }
        }
        return values;
    }

    void take_axis(const std::string& key, const std::string& text) {
        Axis axis{.name = key, .keys = {key}, .values = {}, .where = where_};
        for (auto& value : values_of(key, text)) axis.values.push_back({std::move(value)});
        if (axis.size() > 0) sweep_.axes.push_back(std::move(axis));
    }

    void take_zip(const std::string& group, const std::string& key, const std::string& text) {
        const auto values = values_of(key, text);
        if (values.empty()) return;
        auto found = std::ranges::find(sweep_.axes, group, &Axis::name);
        if (found == sweep_.axes.end()) {
            sweep_.axes.push_back({.name = group, .keys = {}, .values = {}, .where = where_});
            sweep_.axes.back().values.resize(values.size());
            found = sweep_.axes.end() - 1;
        }
        if (values.size() != found->size()) {
            report_at(where_, fmt::format("{} has {} values, but {} in the same [{}] has {}; keys that step together "
                                          "need equally many",
                                          key, values.size(), found->keys.front(), group, found->size()));
            return;
        }
        found->keys.push_back(key);
        for (std::size_t i = 0; i < values.size(); ++i) found->values[i].push_back(values[i]);
    }

    void finish_groups() {
        std::erase_if(sweep_.axes, [](const Axis& axis) { return axis.keys.empty(); });
    }

    void take_exclusion(const std::string& name, const std::string& text) {
        std::string problem;
        auto rule = parse_exclusion(name, text, where_, problem);
        if (rule) {
            sweep_.exclusions.push_back(std::move(*rule));
        } else {
            report_at(where_, problem);
        }
    }

    void read_base() {
        try {
            sweep_.base_text = read_text_file(sweep_.base, ExitCode::usage);
        } catch (const Error& error) {
            report_at(origin_, fmt::format("base: {}", error.what()));
        }
    }

    void add_word(const std::string& key, const std::string& text) {
        if (!is_sweepable(key)) return;
        const auto group = std::ranges::find_if(sweep_.axes, [&](const Axis& axis) {
            return axis.keys.size() > 1 && std::ranges::find(axis.keys, key) != axis.keys.end();
        });
        if (group != sweep_.axes.end()) {
            report_at("command line", fmt::format("{} steps together with others in [{}] ({}); change it there", key,
                                                  group->name, group->where));
            return;
        }
        const auto values = values_of(key, text);
        if (values.empty()) return;
        sweep_.set.erase(key);
        const auto axis = std::ranges::find(sweep_.axes, key, &Axis::name);
        if (axis == sweep_.axes.end() && values.size() == 1 && values.front() != left_out) {
            sweep_.set[key] = values.front();
            return;
        }
        Axis made{.name = key, .keys = {key}, .values = {}, .where = "command line"};
        for (const auto& value : values) made.values.push_back({value});
        if (axis == sweep_.axes.end()) {
            sweep_.axes.push_back(std::move(made));
        } else {
            *axis = std::move(made);
        }
    }

    void check_twice() {
        std::map<std::string, std::string> place;
        for (const auto& axis : sweep_.axes) {
            for (const auto& key : axis.keys) {
                const auto [first, is_new] = place.try_emplace(key, axis.where);
                if (!is_new) report_at(axis.where, fmt::format("{} is an axis already ({})", key, first->second));
                if (sweep_.set.contains(key)) {
                    report_at(axis.where, fmt::format("{} is an axis and in [set]; remove one of the two", key));
                }
            }
        }
    }

    [[nodiscard]] Error collected() const {
        std::string text = problems_.size() == 1 ? std::string("1 problem in the sweep:")
                                                 : fmt::format("{} problems in the sweep:", problems_.size());
        for (const auto& problem : problems_) text += "\n  " + problem;
        text += "\nWhat a sweep file looks like: docs/sweeps.md, configs/sweeps/.";
        return {ExitCode::usage, text};
    }

    const std::string& text_;
    std::string origin_;
    std::string where_;
    bool words_only_ = false;
    SweepFile sweep_;
    std::vector<std::string> problems_;
};

}  // namespace

SweepFile read_sweep_text(const std::string& text, const std::filesystem::path& origin,
                          const std::vector<std::string>& words, const std::optional<std::filesystem::path>& output) {
    Reader reader(text, origin);
    if (sweep_sections(text).empty()) {
        reader.take_base_only();
    } else {
        reader.read_file();
    }
    reader.add_words(words);
    return reader.finish(output);
}

SweepFile read_sweep(const std::filesystem::path& file, const std::vector<std::string>& words,
                     const std::optional<std::filesystem::path>& output) {
    return read_sweep_text(read_text_file(file, ExitCode::usage), file, words, output);
}

}  // namespace hetlora::sweep
