#include "hetlora/config/resolved.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "combinations.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/adapter_hash.hpp"
#include "hetlora/config/schema.hpp"
#include "hetlora/config/strategy_names.hpp"

namespace hetlora {
namespace {

// "key = value", without a blank at the end for an empty value.
std::string assignment(const ConfigKey& key, std::string_view value) {
    return value.empty() ? fmt::format("{} =\n", key.name) : fmt::format("{} = {}\n", key.name, value);
}

// Calls one function at the start of every section and one for every key.
template <typename OnSection, typename OnKey>
void for_each_key(OnSection on_section, OnKey on_key) {
    std::string_view section;
    for (const auto& key : config_schema()) {
        if (key.section != section) on_section(key.section);
        section = key.section;
        on_key(key);
    }
}

bool belongs_to_run(Identity identity, const Settings& settings) {
    const bool rounds_matter = settings.local.lr_schedule != LearningRateSchedule::constant ||
                               settings.local.lr_warmup_rounds > 0 ||
                               settings.strategy.rank_schedule.value_or(RankSchedule::none) != RankSchedule::none ||
                               has_rank_schedule(settings.strategy.preset) ||
                               !settings.strategy.plugin.empty();  // a plugin is told the number of rounds
    return identity == Identity::run || identity == Identity::run_pretrain ||
           (identity == Identity::rounds && rounds_matter);
}

template <typename Belongs>
std::string changed_keys(const Settings& settings, Belongs belongs) {
    std::string text;
    for (const auto& key : config_schema()) {
        if (!belongs(key.identity)) continue;
        const auto value = config_text(key.get(settings));
        if (value == default_config_text(key, settings) || why_unused(key, settings)) continue;
        text += fmt::format("{}={}\n", key.full_name(), value);
    }
    return text;
}

}  // namespace

std::string resolved_ini(const Settings& settings, std::string_view header) {
    std::string text;
    for (const auto& line : split(header, '\n')) text += fmt::format("# {}\n", line);
    for_each_key(
        [&](const std::string& section) { text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", section); },
        [&](const ConfigKey& key) {
            const auto value = config_text(key.get(settings));
            const auto unused = why_unused(key, settings);
            if (unused && !config_detail::is_switched_off(value)) {
                text += fmt::format("# {} = {}   ({})\n", key.name, value, *unused);
            } else {
                text += assignment(key, value);
            }
        });
    return text;
}

std::string resolved_json(const Settings& settings, const std::map<std::string, std::string>& resolved_strategy) {
    nlohmann::ordered_json sections;
    for (const auto& key : config_schema()) {
        std::visit([&](const auto& value) { sections[key.section][key.name] = value; }, key.get(settings));
    }
    for (const auto& [name, value] : resolved_strategy) sections["resolved_strategy"][name] = value;
    // A path need not be UTF-8; JSON must be.
    return sections.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string identity_text(const Settings& settings, std::string_view base_sha256, std::string_view data_sha256) {
    std::string text = "hetlora-run-identity=1\n";
    text += changed_keys(settings, [&](Identity identity) { return belongs_to_run(identity, settings); });
    if (settings.lora.rank_distribution == RankDistribution::file) {
        text += fmt::format("rank_file_sha256={}\n", sha256_file(settings.lora.rank_file));
    }
    if (const auto& plugin = settings.strategy.plugin; !plugin.empty()) {
        if (!std::filesystem::is_regular_file(plugin)) {
            throw input_error("strategy.plugin = {}: there is no such file; check the path", plugin.string());
        }
        text += fmt::format("plugin_sha256={}\n", sha256_file(plugin));
    }
    if (!settings.model.adapter.empty()) {
        text += fmt::format("adapter_sha256={}\n", adapter_sha256(settings.model.adapter));
    }
    return text + fmt::format("base_sha256={}\ndata_sha256={}\n", base_sha256, data_sha256);
}

std::string identity_hash(const Settings& settings, std::string_view base_sha256, std::string_view data_sha256) {
    return sha256_hex(identity_text(settings, base_sha256, data_sha256));
}

std::string pretrain_identity_hash(const Settings& settings, std::string_view data_sha256) {
    const auto keys = changed_keys(settings, [](Identity identity) {
        return identity == Identity::pretrain || identity == Identity::run_pretrain;
    });
    return sha256_hex(fmt::format("hetlora-pretrain-identity=1\n{}data_sha256={}\n", keys, data_sha256));
}

std::string reference_ini() {
    const Settings defaults;
    std::string text =
        "# Every key of hetlora with its default. Written by `hetlora check --reference`: do not edit, copy what you "
        "need.\n"
        "# A value may hold ${VARIABLE} (environment), a path may start with ~ and is relative to the working "
        "directory.\n"
        "# On the command line the same is section.key=value, which wins over the file.\n";
    for_each_key([&](const std::string& section) { text += fmt::format("\n[{}]\n", section); },
                 [&](const ConfigKey& key) {
                     text += fmt::format("# {} ({}", key.help, key.type);
                     if (!key.allowed.empty() && key.allowed != "true | false") text += ": " + key.allowed;
                     if (key.required_for == RequiredFor::run) text += "; required for all but pretraining";
                     if (key.required_for == RequiredFor::pretrain) text += "; required for pretraining";
                     text += ")\n";
                     const bool unused = why_unused(key, defaults) && !config_detail::is_switched_off(key.default_text);
                     text += (unused ? "# " : "") + assignment(key, key.default_text);
                 });
    return text;
}

}  // namespace hetlora
