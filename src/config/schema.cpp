#include "hetlora/config/schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "hetlora/base/text.hpp"
#include "schema_rows.hpp"

namespace hetlora {
namespace {

struct ToText {
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(std::int64_t value) const { return fmt::format("{}", value); }
    std::string operator()(std::uint64_t value) const { return fmt::format("{}", value); }
    std::string operator()(double value) const { return shortest_text(value); }
    std::string operator()(const std::string& value) const { return value; }
    std::string operator()(const std::vector<std::string>& values) const { return join(values, ","); }
    std::string operator()(const std::vector<std::int64_t>& values) const {
        return fmt::format("{}", fmt::join(values, ","));
    }
};

bool is_any_of(std::string_view name, std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

bool falls_back_to_seed(const ConfigKey& key) { return key.section == "experiment" && key.name.starts_with("seed_"); }

}  // namespace

const std::vector<ConfigKey>& config_schema() {
    static const std::vector<ConfigKey> rows = [] {
        std::vector<ConfigKey> made;
        config_detail::add_experiment_rows(made);
        config_detail::add_environment_rows(made);
        for (auto& key : made) {
            if (falls_back_to_seed(key)) key.default_text = "seed";
        }
        return made;
    }();
    return rows;
}

const ConfigKey* find_config_key(std::string_view full_name) {
    const auto& rows = config_schema();
    const auto found =
        std::find_if(rows.begin(), rows.end(), [&](const ConfigKey& key) { return key.full_name() == full_name; });
    return found == rows.end() ? nullptr : &*found;
}

std::string config_text(const ConfigValue& value) { return std::visit(ToText{}, value); }

std::string default_config_text(const ConfigKey& key, const Settings& settings) {
    if (falls_back_to_seed(key)) return fmt::format("{}", settings.experiment.seed);
    if (key.section == "output" && key.name == "dir") return "results/" + settings.experiment.name;
    return key.default_text;
}

std::optional<std::string> why_unused(const ConfigKey& key, const Settings& settings) {
    const auto unless = [](bool used, std::string_view reason) {
        return used ? std::nullopt : std::optional<std::string>(reason);
    };
    if (key.section == "lora") {
        const auto law = settings.lora.rank_distribution;
        const bool constant = settings.lora.scale_rule == ScaleRule::constant;
        if (key.name == "scale") return unless(constant, "it is used with lora.scale_rule = constant only");
        if (key.name == "lora_alpha") {
            return unless(!constant, "it is used with lora.scale_rule = alpha_over_rank or rslora only");
        }
        if (key.name == "rank_list") {
            return unless(law == RankDistribution::list, "it is used with lora.rank_distribution = list only");
        }
        if (key.name == "rank_file") {
            return unless(law == RankDistribution::file, "it is used with lora.rank_distribution = file only");
        }
    }
    if (key.section == "evaluation") {
        const auto has = [&](std::initializer_list<std::string_view> metrics) {
            return std::ranges::any_of(settings.evaluation.metrics,
                                       [&](const std::string& metric) { return is_any_of(metric, metrics); });
        };
        if (key.name == "choice_score") {
            return unless(settings.model.task == Task::causal && has({"choice_accuracy", "macro_f1"}),
                          "it is used with choice_accuracy or macro_f1 in evaluation.metrics only");
        }
        if (key.name == "text_sequences" || key.name == "text_tokens") {
            return unless(has({"rouge1", "rougeL", "exact_match"}),
                          "it is used with rouge1, rougeL or exact_match in evaluation.metrics only");
        }
    }
    if (key.full_name() == "local.head_learning_rate") {
        return unless(settings.model.task == Task::classification, "it is used with model.task = classification only");
    }
    if (key.section == "data" && key.name == "partition_clients") {
        return unless(settings.data.partition != Partition::natural,
                      "it is used with data.partition = iid, dirichlet or quantity only");
    }
    if (key.section == "data" && key.name == "dirichlet_by") {
        return unless(settings.data.partition == Partition::dirichlet,
                      "it is used with data.partition = dirichlet only");
    }
    if (key.section == "data" && key.name == "quantity_sigma") {
        return unless(settings.data.partition == Partition::quantity, "it is used with data.partition = quantity only");
    }
    if (key.section == "strategy") {
        // Only explicit policies count: what a preset's row says is not known here.
        const auto& strategy = settings.strategy;
        if (key.name.starts_with("prune_") || key.name == "tail_norm_epsilon") {
            return unless(!strategy.local_extra || strategy.local_extra == LocalExtra::tail_prune,
                          "it is used with strategy.local_extra = tail_prune only");
        }
        if (key.name == "prox_mu") {
            return unless(!strategy.local_extra || strategy.local_extra == LocalExtra::proximal,
                          "it is used with strategy.local_extra = proximal only");
        }
        if (key.name == "factor_split") {
            return unless(!strategy.merge || strategy.merge == Merge::product,
                          "it is used with strategy.merge = product only");
        }
        if (key.name == "keep_energy") {
            return unless(!strategy.base_update || strategy.base_update == BaseUpdate::truncated,
                          "it is used with strategy.base_update = truncated only");
        }
        if (key.name == "rank_levels") {
            return unless(!strategy.slot_norm || strategy.slot_norm == SlotNorm::levels,
                          "it is used with strategy.slot_norm = levels only");
        }
        if (key.name == "server_beta2" || key.name == "server_epsilon") {
            return unless(strategy.server_optimizer == ServerOptimizer::adam,
                          "it is used with strategy.server_optimizer = adam only");
        }
        if (key.name == "server_learning_rate" || key.name == "server_beta1") {
            return unless(strategy.server_optimizer.value_or(ServerOptimizer::none) != ServerOptimizer::none,
                          "it is used with strategy.server_optimizer = momentum or adam only");
        }
        if (is_any_of(key.name, {"weight_scope", "weight_norm", "weight_includes_scale"})) {
            return unless(!strategy.client_weight || strategy.client_weight == ClientWeight::sparsity,
                          "it is used with strategy.client_weight = sparsity only");
        }
    }
    return std::nullopt;
}

}  // namespace hetlora
