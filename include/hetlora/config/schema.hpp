// The one table of config keys: everything that reads, writes, checks or documents a configuration goes by it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// The value of a key, typed for JSON.
using ConfigValue = std::variant<bool, std::int64_t, std::uint64_t, double, std::string, std::vector<std::string>,
                                 std::vector<std::int64_t>>;

/// Which identity hash a key belongs to: a key is part of it if and only if it can change the result.
enum class Identity {
    none,          ///< paths (their content counts instead), device, threads, output, names
    run,           ///< can change a run's result
    rounds,        ///< can change a run's result only if the learning rate depends on the number of rounds
    pretrain,      ///< can change a pretrained base
    run_pretrain,  ///< both
};

/// Which task cannot do without a key that has no default.
enum class RequiredFor { nothing, run, pretrain };

/// One key of the config file.
struct ConfigKey {
    std::string section;
    std::string name;
    std::string type;     ///< for people: "integer", "number", "text", "path", "true or false", "one of", "list"
    std::string allowed;  ///< allowed values for people, e.g. "constant | linear | cosine" or ">= 1"; may be empty
    std::vector<std::string> choices;  ///< every word that is accepted, for closed sets
    std::string default_text;          ///< as it would be written in a config file
    std::string help;                  ///< one line
    Identity identity = Identity::none;
    RequiredFor required_for = RequiredFor::nothing;
    /// The key's value in these settings.
    std::function<ConfigValue(const Settings&)> get;
    /// Sets the key from text. Returns what is wrong with the text, or nothing (then the settings are changed).
    std::function<std::optional<std::string>(Settings&, std::string_view)> set;

    /// "section.name"
    [[nodiscard]] std::string full_name() const { return section + "." + name; }
};

/// All keys in the order of configs/reference.ini: sections together, most important first.
[[nodiscard]] const std::vector<ConfigKey>& config_schema();

/// The key of this full name, or nullptr.
[[nodiscard]] const ConfigKey* find_config_key(std::string_view full_name);

/// The value as text for a config file; ConfigKey::set gives the same value back.
[[nodiscard]] std::string config_text(const ConfigValue& value);

/// The default of a key in the company of these settings: as in the table, except for keys whose default is taken
/// from another key (the seeds, output.dir).
[[nodiscard]] std::string default_config_text(const ConfigKey& key, const Settings& settings);

/// Why a key has no effect next to the other settings ("it is used with lora.scale_rule = constant only"), or nothing.
/// Such a key must not be given (unless empty or 0), and is commented out in resolved files.
[[nodiscard]] std::optional<std::string> why_unused(const ConfigKey& key, const Settings& settings);

}  // namespace hetlora
