#include "hetlora/app/strategies_json.hpp"

#include <nlohmann/json.hpp>

#include "hetlora/fed/strategy.hpp"
#include "hetlora/fed/true_bytes.hpp"

namespace hetlora {
namespace {

nlohmann::ordered_json json_of(const StrategyPreset& preset) {
    nlohmann::ordered_json policies;
    for (const auto& [key, value] : policy_values(preset.policies)) policies[std::string(key)] = value;
    return {{"name", preset.name},
            {"aliases", preset.aliases},
            {"policies", policies},
            {"requires_equal_lora_ranks", preset.requires_equal_lora_ranks},
            {"up", symbols_up(preset.policies)},
            {"down", symbols_down(preset.policies)},
            {"paper", preset.paper},
            {"description", preset.description},
            {"notes", preset.notes}};
}

}  // namespace

std::string strategies_json(std::string_view name) {
    auto list = nlohmann::ordered_json::array();
    if (!name.empty()) {
        list.push_back(json_of(find_strategy_preset(name)));
    } else {
        for (const StrategyPreset& preset : strategy_presets()) list.push_back(json_of(preset));
    }
    return list.dump(2) + "\n";
}

}  // namespace hetlora
