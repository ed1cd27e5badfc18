#include "hetlora/config/load.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "combinations.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/ini_reader.hpp"

namespace hetlora {
namespace {

using config_detail::Origins;

constexpr std::string_view command_line = "command line";

// "; did you mean lora.rank_max?": the same name in another section, else the nearest of this section; of all
// keys if there is no such section.
std::string suggestion(std::string_view full_name) {
    const auto dot = full_name.find('.');
    const auto section = dot == std::string_view::npos ? std::string_view{} : full_name.substr(0, dot);
    const auto name = full_name.substr(dot == std::string_view::npos ? 0 : dot + 1);
    std::vector<std::string> same_name;
    std::vector<std::string> same_section;
    std::vector<std::string> all;
    for (const auto& key : config_schema()) {
        all.push_back(key.full_name());
        if (key.name == name) same_name.push_back(key.full_name());
        if (key.section == section) same_section.push_back(key.name);
    }
    if (!same_name.empty()) return fmt::format("; did you mean {}?", join(same_name, " or "));
    if (same_section.empty()) return did_you_mean(full_name, all);
    const auto nearest = nearest_name(name, same_section);
    return nearest ? fmt::format("; did you mean {}.{}?", section, *nearest) : std::string{};
}

std::vector<std::string> section_names() {
    std::vector<std::string> names;
    for (const auto& key : config_schema()) {
        if (names.empty() || names.back() != key.section) names.push_back(key.section);
    }
    return names;
}

std::string_view without_quotes(std::string_view text) {
    const bool quoted = text.size() >= 2 && text.starts_with('"') && text.ends_with('"');
    return quoted ? text.substr(1, text.size() - 2) : text;
}

// Gathers values from all sources, then makes Settings of them or one error.
class Loader {
public:
    void add_file(std::string_view text, std::string_view origin) {
        origin_ = origin;
        const auto content = read_ini(text, section_names());
        for (const auto& problem : content.problems) report(fmt::format("{}:{}", origin, problem.line), problem.text);
        std::map<std::string, int> line_of;
        for (const auto& entry : content.entries) {
            const auto where = fmt::format("{}:{}", origin, entry.line);
            const auto [first, is_new] = line_of.try_emplace(entry.full_name, entry.line);
            if (!is_new) {
                report(where, fmt::format("{} = {}: the key is already set in line {}; remove one of the two",
                                          entry.full_name, entry.value, first->second));
                continue;
            }
            add_value(entry.full_name, entry.value, where);
        }
    }

    void add_overrides(const std::vector<std::string>& overrides, std::string_view origin) {
        const std::string where(origin);
        std::map<std::string, std::string> seen;
        for (const auto& word : overrides) {
            const auto equals = word.find('=');
            const std::string name(trim(word.substr(0, equals)));
            if (equals == std::string::npos || name.empty()) {
                report(where, fmt::format("'{}' is not understood; write section.key=value", word));
                continue;
            }
            const auto [first, is_new] = seen.try_emplace(name, word);
            if (is_new) {
                add_value(name, std::string(trim(word.substr(equals + 1))), where);
            } else {
                report(where, fmt::format("{} and {} set the same key; keep one of the two", first->second, word));
            }
        }
    }

    Settings finish(RequiredFor task) {
        for (const auto& key : config_schema()) set_value(key);
        fill_defaults();
        for (auto& problem : config_detail::combination_problems(settings_, origins_))
            problems_.push_back(std::move(problem));
        for (const auto& key : config_schema()) require(key, task);
        if (!problems_.empty()) throw collected();
        return std::move(settings_);
    }

private:
    void report(std::string_view where, std::string_view text) {
        problems_.push_back(fmt::format("{}: {}", where, text));
    }

    void add_value(const std::string& name, const std::string& value, const std::string& where) {
        if (find_config_key(name) != nullptr) {
            values_[name] = value;
            origins_.where[name] = where;
        } else if (name.find('.') == std::string::npos) {
            report(where, fmt::format("{} = {}: the key has no section{}", name, value, suggestion(name)));
        } else {
            report(where, fmt::format("{} = {}: there is no key {}{}", name, value, name, suggestion(name)));
        }
    }

    void set_value(const ConfigKey& key) {
        const auto name = key.full_name();
        const auto found = values_.find(name);
        if (found == values_.end()) return;
        settings_.given.insert(name);
        std::optional<std::string> problem;
        try {
            problem = key.set(settings_, trim(expand_variables(without_quotes(found->second))));
        } catch (const Error& error) {
            problem = error.what();
        }
        if (!problem) return;
        report(origins_.where[name], fmt::format("{} = {}: {}", name, found->second, *problem));
        origins_.unreadable.insert(name);
    }

    // Defaults that are taken from other keys.
    void fill_defaults() {
        auto& experiment = settings_.experiment;
        for (const auto& key : config_schema()) {
            if (key.default_text != "seed") continue;
            const auto found = values_.find(key.full_name());
            if (found != values_.end() && without_quotes(found->second) != "seed") continue;
            (void)key.set(settings_, fmt::format("{}", experiment.seed));
        }
        if (settings_.output.dir.empty())
            settings_.output.dir = absolute_path(std::filesystem::path("results") / experiment.name);
        if (!values_.contains("local.steps") && settings_.local.epochs > 0) settings_.local.steps = 0;
    }

    void require(const ConfigKey& key, RequiredFor task) {
        const auto name = key.full_name();
        if (key.required_for != task || task == RequiredFor::nothing || origins_.unreadable.contains(name)) return;
        if (!config_text(key.get(settings_)).empty()) return;
        const auto found = origins_.where.find(name);
        report(found != origins_.where.end() ? found->second
               : origin_.empty()             ? std::string(command_line)
                                             : origin_,
               fmt::format("{} ({}) is missing; set \"{} = ...\" in section [{}] or give {}=... on the command line",
                           name, key.help, key.name, key.section, name));
    }

    [[nodiscard]] Error collected() const {
        std::string text = problems_.size() == 1 ? std::string("1 problem in the configuration:")
                                                 : fmt::format("{} problems in the configuration:", problems_.size());
        for (const auto& problem : problems_) text += "\n  " + problem;
        text += "\nEvery key with its default and help: configs/reference.ini, or `hetlora check --reference`.";
        return {ExitCode::usage, text};
    }

    std::string origin_;
    Settings settings_;
    Origins origins_;
    std::map<std::string, std::string> values_;
    std::vector<std::string> problems_;
};

}  // namespace

Settings load_settings(const std::optional<std::filesystem::path>& file, const std::vector<std::string>& overrides,
                       RequiredFor task) {
    if (file) return load_settings_text(read_text_file(*file, ExitCode::usage), file->string(), overrides, task);
    Loader loader;
    loader.add_overrides(overrides, command_line);
    return loader.finish(task);
}

Settings load_settings_text(std::string_view text, std::string_view origin, const std::vector<std::string>& overrides,
                            RequiredFor task, std::string_view overrides_origin) {
    Loader loader;
    loader.add_file(text, origin);
    loader.add_overrides(overrides, overrides_origin.empty() ? command_line : overrides_origin);
    return loader.finish(task);
}

}  // namespace hetlora
