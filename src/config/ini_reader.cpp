#include "hetlora/config/ini_reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options/parsers.hpp>
#include <sstream>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

// Boost stops at the first line that it does not understand and does not say where it was. So this pass goes first:
// it notes the line of every key, reports what Boost would stumble over, and hands the rest on.
struct Survey {
    std::vector<IniEntry> keys;  // without values
    std::vector<IniProblem> problems;
    std::string readable;  // the understood lines
};

// What is wrong with a section's header, or nothing.
std::string section_problem(std::string_view name, const std::vector<std::string>& sections) {
    if (std::find(sections.begin(), sections.end(), name) != sections.end()) return {};
    return fmt::format("there is no section [{}]{} (sections: {}); its keys were not read", name,
                       did_you_mean(name, sections), join(sections, ", "));
}

Survey survey(std::string_view text, const std::vector<std::string>& sections) {
    Survey found;
    std::string section;
    bool section_exists = true;
    int line_number = 0;
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a byte order mark, as some editors write it
    std::istringstream lines{std::string(text)};
    for (std::string whole; std::getline(lines, whole);) {
        ++line_number;
        const auto line = trim(std::string_view(whole).substr(0, whole.find('#')));
        if (line.empty()) continue;
        const auto report = [&](std::string problem) { found.problems.push_back({line_number, std::move(problem)}); };
        if (line.starts_with('[') && line.ends_with(']')) {
            section = trim(line.substr(1, line.size() - 2));
            auto problem = section_problem(section, sections);
            section_exists = problem.empty();
            if (section_exists) found.readable += fmt::format("[{}]\n", section);
            if (!section_exists) report(std::move(problem));
            continue;
        }
        const auto equals = line.find('=');
        const auto name = trim(line.substr(0, equals));
        if (line.starts_with(';')) {
            report(fmt::format("'{}' is not understood; a comment starts with '#'", line));
        } else if (equals == std::string_view::npos || name.empty() || line.starts_with('[')) {
            report(
                fmt::format("'{}' is not understood; expected \"[section]\", \"key = value\" or \"# comment\"", line));
        } else if (section_exists) {
            found.keys.push_back(
                {section.empty() ? std::string(name) : fmt::format("{}.{}", section, name), "", line_number});
            found.readable += fmt::format("{}\n", line);
        }
    }
    return found;
}

}  // namespace

IniContent read_ini(std::string_view text, const std::vector<std::string>& sections) {
    auto found = survey(text, sections);
    namespace po = boost::program_options;
    std::istringstream readable(found.readable);
    const po::options_description none_registered;
    const auto parsed = po::parse_config_file(readable, none_registered, /*allow_unregistered=*/true);
    if (parsed.options.size() != found.keys.size()) {
        throw bug_error("the config text has {} keys, but Boost.Program_options found {}", found.keys.size(),
                        parsed.options.size());
    }
    IniContent content{std::move(found.keys), std::move(found.problems)};
    for (std::size_t i = 0; i < content.entries.size(); ++i) {
        const auto& option = parsed.options[i];
        auto& entry = content.entries[i];
        if (option.string_key != entry.full_name || option.value.size() != 1) {
            throw bug_error("config line {}: Boost.Program_options found key {} instead of {}", entry.line,
                            option.string_key, entry.full_name);
        }
        entry.value = option.value.front();
    }
    return content;
}

}  // namespace hetlora
