#include "combinations.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "hetlora/config/schema.hpp"

namespace hetlora::config_detail {
namespace {

std::string value_text(const Settings& settings, std::string_view full_name) {
    const auto* key = find_config_key(full_name);
    const auto text = config_text(key->get(settings));
    return text.empty() ? std::string("(empty)") : text;
}

// Collects problems; a rule that involves a key whose value was refused is left out.
class Rules {
public:
    Rules(const Settings& settings, const Origins& origins) : settings_(settings), origins_(origins) {}

    template <typename Text>
    void forbid(bool broken, std::initializer_list<std::string_view> keys, Text text) {
        const bool readable = std::none_of(keys.begin(), keys.end(),
                                           [&](std::string_view key) { return origins_.unreadable.contains(key); });
        if (broken && readable) problems_.push_back(text());
    }

    // "a.ini:5: x.a = 9 is above x.b = 4 (a.ini:6); mend"
    void forbid_pair(bool broken, std::string_view first, std::string_view relation, std::string_view second,
                     std::string_view mend) {
        forbid(broken, {first, second}, [&] {
            return fmt::format("{} {} {}; {}", origins_.describe(settings_, first), relation,
                               origins_.mention(settings_, second), mend);
        });
    }

    [[nodiscard]] std::vector<std::string> take() { return std::move(problems_); }

private:
    const Settings& settings_;
    const Origins& origins_;
    std::vector<std::string> problems_;
};

void check_compute(const Settings& settings, Rules& rules) {
    const ComputeSettings& compute = settings.compute;
    rules.forbid_pair(compute.gemm == GemmChoice::widened && settings.model.precision != Precision::bf16,
                      "compute.gemm", "is for bfloat16 only, but here is", "model.precision",
                      "take compute.gemm = auto");
    rules.forbid_pair(compute.gemm == GemmChoice::onednn && settings.model.precision == Precision::fp64, "compute.gemm",
                      "has no float64, but here is", "model.precision", "take compute.gemm = auto");
    rules.forbid_pair(compute.gemm == GemmChoice::tiles && settings.model.precision == Precision::bf16, "compute.gemm",
                      "has no bfloat16, but here is", "model.precision", "take compute.gemm = auto");
    rules.forbid_pair(compute.pack_tokens > 0 && compute.pack_tokens < settings.data.sequence_length,
                      "compute.pack_tokens", "is smaller than one sequence of", "data.sequence_length",
                      "raise it, or take compute.pack_tokens = auto");
}

void check_lora(const Settings& settings, const Origins& origins, Rules& rules) {
    const auto& lora = settings.lora;
    rules.forbid_pair(lora.rank_min > lora.rank_max, "lora.rank_min", "is above", "lora.rank_max",
                      "the smallest lora_rank cannot exceed the largest");
    rules.forbid_pair(lora.rank_distribution == RankDistribution::list && lora.rank_list.empty(),
                      "lora.rank_distribution", "needs lora_ranks, but here is", "lora.rank_list",
                      "write them as lora.rank_list = 4,8,16");
    rules.forbid_pair(lora.rank_distribution == RankDistribution::file && lora.rank_file.empty(),
                      "lora.rank_distribution", "needs a file, but here is", "lora.rank_file",
                      "name it as lora.rank_file = PATH");
    if (lora.rank_distribution != RankDistribution::list) return;
    for (const auto lora_rank : lora.rank_list) {
        rules.forbid(lora_rank < lora.rank_min || lora_rank > lora.rank_max,
                     {"lora.rank_list", "lora.rank_min", "lora.rank_max"}, [&] {
                         return fmt::format("{}: {} is outside of {} .. {}; change the list or the limits",
                                            origins.describe(settings, "lora.rank_list"), lora_rank,
                                            origins.mention(settings, "lora.rank_min"),
                                            origins.mention(settings, "lora.rank_max"));
                     });
    }
}

void check_data_and_local(const Settings& settings, const Origins& origins, Rules& rules) {
    const auto& data = settings.data;
    const auto& local = settings.local;
    rules.forbid_pair(data.overlap >= data.sequence_length, "data.overlap", "is not below", "data.sequence_length",
                      "windows would not move on; choose a smaller overlap");
    rules.forbid_pair(data.partition != Partition::natural && data.partition_clients == 0, "data.partition",
                      "makes clients up, but here is", "data.partition_clients",
                      "say how many clients there should be");
    rules.forbid_pair(local.steps > 0 && local.epochs > 0, "local.steps", "and", "local.epochs",
                      "both are set: keep one of the two");
    rules.forbid_pair(local.steps == 0 && local.epochs == 0, "local.steps", "and", "local.epochs",
                      "clients would not train: set one of the two");
    rules.forbid_pair(
        settings.evaluation.test != TestEvaluation::none && settings.evaluation.part == EvaluationPart::test,
        "evaluation.test", "has nothing to add where all rounds are evaluated on test:", "evaluation.part",
        "take evaluation.part = valid");
    const double factor = settings.evaluation.divergence_factor;
    rules.forbid(factor > 0 && factor <= 1, {"evaluation.divergence_factor"}, [&] {
        return origins.describe(settings, "evaluation.divergence_factor") +
               " would stop every run at its start; choose one above 1, or 0 = never";
    });
}

/// What a classification run has no answer to.
void check_task(const Settings& settings, Rules& rules) {
    if (settings.model.task != Task::classification) return;
    for (const char* metric : {"choice_accuracy", "rouge1", "rougeL", "exact_match"}) {
        rules.forbid_pair(std::ranges::find(settings.evaluation.metrics, metric) != settings.evaluation.metrics.end(),
                          "evaluation.metrics", fmt::format("has {}, which needs next tokens, but here is", metric),
                          "model.task", "take accuracy and macro_f1");
    }
    rules.forbid_pair(settings.evaluation.samples > 0, "evaluation.samples", "needs next tokens, but here is",
                      "model.task", "take evaluation.samples = 0");
    rules.forbid_pair(!settings.model.adapter.empty(), "model.adapter", "is not implemented together with",
                      "model.task", "start from a fresh adapter");
    rules.forbid_pair(!settings.strategy.plugin.empty(), "strategy.plugin", "is not implemented together with",
                      "model.task", "take a preset");
    rules.forbid_pair(settings.compute.device == DeviceChoice::cuda, "compute.device",
                      "is not implemented together with", "model.task", "take compute.device = cpu");
}

void check_pretrain(const Settings& settings, Rules& rules) {
    const auto& model = settings.pretrain;
    rules.forbid_pair(model.hidden_size % model.heads != 0, "pretrain.hidden_size", "is not a multiple of",
                      "pretrain.heads", "every head has the same width");
    rules.forbid_pair(model.hidden_size % model.heads == 0 && model.hidden_size / model.heads % 2 != 0,
                      "pretrain.hidden_size", "gives heads of an odd width with", "pretrain.heads",
                      "rotary positions need an even one");
    rules.forbid_pair(model.heads % model.kv_heads != 0, "pretrain.heads", "is not a multiple of", "pretrain.kv_heads",
                      "every key and value head serves the same number of heads");
    rules.forbid_pair(model.batch_tokens < model.sequence_length, "pretrain.batch_tokens", "is below",
                      "pretrain.sequence_length", "a step needs one sequence at least");
}

}  // namespace

std::string Origins::describe(const Settings& settings, std::string_view full_name) const {
    const auto found = where.find(full_name);
    const auto value = value_text(settings, full_name);
    if (found == where.end()) return fmt::format("{} = {} (default)", full_name, value);
    return fmt::format("{}: {} = {}", found->second, full_name, value);
}

std::string Origins::mention(const Settings& settings, std::string_view full_name) const {
    const auto found = where.find(full_name);
    return fmt::format("{} = {} ({})", full_name, value_text(settings, full_name),
                       found == where.end() ? "default" : found->second);
}

bool is_switched_off(std::string_view value_text) {
    return value_text.empty() || value_text == "0" || value_text == "false";
}

std::vector<std::string> combination_problems(const Settings& settings, const Origins& origins) {
    Rules rules(settings, origins);
    check_compute(settings, rules);
    check_lora(settings, origins, rules);
    check_data_and_local(settings, origins, rules);
    check_task(settings, rules);
    check_pretrain(settings, rules);
    for (const auto& key : config_schema()) {
        const auto name = key.full_name();
        if (!origins.where.contains(name) || is_switched_off(config_text(key.get(settings)))) continue;
        const auto reason = why_unused(key, settings);
        rules.forbid(reason.has_value(), {name}, [&] {
            return fmt::format("{} has no effect: {}; remove one of the two", origins.describe(settings, name),
                               *reason);
        });
    }
    return rules.take();
}

}  // namespace hetlora::config_detail
