// See hetlora/sweep/site_profile.hpp.
#include "hetlora/sweep/site_profile.hpp"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/ini_reader.hpp"

namespace hetlora::sweep {
namespace {

/// Where the value of a key goes.
struct Places {
    std::map<std::string, std::string*> texts;
    std::map<std::string, std::int64_t*> numbers;
    std::map<std::string, std::vector<std::string>*> lists;  ///< separated by ";", and the key may be repeated
    [[nodiscard]] std::vector<std::string> names() const {
        std::vector<std::string> all;
        for (const auto& [name, place] : texts) all.push_back(name);
        for (const auto& [name, place] : numbers) all.push_back(name);
        for (const auto& [name, place] : lists) all.push_back(name);
        return all;
    }
};

Places places_in(SiteProfile& profile) {
    return {.texts = {{"name", &profile.name},
                      {"partition", &profile.partition},
                      {"account", &profile.account},
                      {"qos", &profile.qos},
                      {"time", &profile.time},
                      {"nodes", &profile.nodes},
                      {"mem", &profile.mem},
                      {"gpus_per_node", &profile.gpus_per_node},
                      {"gpu_bind", &profile.gpu_bind},
                      {"constraint", &profile.constraint},
                      {"launcher", &profile.launcher},
                      {"scratch", &profile.scratch}},
            .numbers = {{"cpus_per_task", &profile.cpus_per_task},
                        {"signal_lead_s", &profile.signal_lead_s},
                        {"max_requeues", &profile.max_requeues}},
            .lists = {{"setup", &profile.setup}, {"extra", &profile.extra}}};
}

/// Puts one entry in its place. @return what is wrong with it, or nothing
std::optional<std::string> take(const Places& places, const std::string& name, const std::string& value) {
    if (const auto text = places.texts.find(name); text != places.texts.end()) {
        if (!value.empty()) *text->second = value;
        const bool launcher_exists = value.empty() || value == "srun-pmix" || value == "mpirun";
        if (name == "launcher" && !launcher_exists) return "a launcher is one of srun-pmix | mpirun";
        return {};
    }
    if (const auto number = places.numbers.find(name); number != places.numbers.end()) {
        const auto parsed = parse_integer(value);
        const std::int64_t least = name == "max_requeues" ? 0 : 1;
        if (value.empty()) return {};
        if (!parsed || *parsed < least) return fmt::format("expected a whole number >= {}", least);
        *number->second = *parsed;
        return {};
    }
    if (const auto list = places.lists.find(name); list != places.lists.end()) {
        for (const auto& part : split(value, ';')) {
            if (!part.empty()) list->second->push_back(part);
        }
        return {};
    }
    const auto names = places.names();
    return fmt::format("there is no such key{} (keys: {})", did_you_mean(name, names), join(names, ", "));
}

}  // namespace

SiteProfile read_site_profile_text(const std::string& text, const std::string& origin) {
    SiteProfile profile;
    const auto places = places_in(profile);
    const auto content = read_ini(text, {"site"});
    std::vector<std::string> problems;
    for (const auto& problem : content.problems) {
        problems.push_back(fmt::format("{}:{}: {}", origin, problem.line, problem.text));
    }
    std::set<std::string> seen;
    for (const auto& entry : content.entries) {
        const auto name = entry.full_name.substr(entry.full_name.find('.') + 1);
        auto problem = take(places, name, entry.value);
        if (!entry.full_name.starts_with("site.")) problem = "the key has no section; write [site] above it";
        if (!problem && !seen.insert(name).second && !places.lists.contains(name)) {
            problem = "the key is given twice; remove one of the two";
        }
        if (problem)
            problems.push_back(fmt::format("{}:{}: {} = {}: {}", origin, entry.line, name, entry.value, *problem));
    }
    if (problems.empty()) return profile;
    std::string all =
        fmt::format("{} problem{} in the site profile:", problems.size(), problems.size() == 1 ? "" : "s");
    for (const auto& problem : problems) all += "\n  " + problem;
    throw Error(ExitCode::usage, all);
}

SiteProfile read_site_profile(const std::filesystem::path& file) {
    return read_site_profile_text(read_text_file(file, ExitCode::usage), file.string());
}

}  // namespace hetlora::sweep
