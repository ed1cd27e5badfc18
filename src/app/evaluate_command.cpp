#include "hetlora/app/evaluate_command.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/group_evaluation.hpp"
#include "hetlora/app/judged_adapter.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {
namespace {

/// What was measured on one part of the data.
struct PartScores {
    std::string part;
    std::size_t windows = 0;
    EvaluationSums sums;
    MetricValues further;
};

/// The windows and questions of one part.
struct EvaluatedPart {
    std::string_view part;
    const std::vector<WindowRef>& windows;
    const TaskQuestions& questions;
};

PartScores scores_of(Transport& transport, Experiment& experiment, std::span<const double> values,
                     const EvaluatedPart& wanted) {
    return {.part = std::string(wanted.part),
            .windows = wanted.windows.size(),
            .sums = evaluate_global(transport, experiment, values, wanted.windows),
            .further = measure_tasks(transport, experiment, values, wanted.questions)};
}

std::string scores_text(const PartScores& scores, bool labels, const std::string& whose) {
    const EvaluationSums& sums = scores.sums;
    std::string text =
        labels ? fmt::format("{}: loss {:.6f}  accuracy {:.4f}  over {} texts ({})", scores.part, sums.mean_loss(),
                             sums.accuracy(), sums.tokens, whose)
               : fmt::format(
                     "{}: loss {:.6f}  perplexity {:.4f}  accuracy {:.4f}  over {} loss tokens in {} windows "
                     "({})",
                     scores.part, sums.mean_loss(), std::exp(sums.mean_loss()), sums.accuracy(), sums.tokens,
                     scores.windows, whose);
    for (const auto& [name, value] : scores.further) text += fmt::format("\n{:<16}{:.6f}", name, value);
    return text;
}

std::string scores_json(std::span<const PartScores> parts, bool labels) {
    nlohmann::ordered_json all;
    for (const PartScores& scores : parts) {
        nlohmann::ordered_json& one = all[scores.part];
        one["loss"] = scores.sums.mean_loss();
        if (!labels) one["perplexity"] = std::exp(scores.sums.mean_loss());
        one["accuracy"] = scores.sums.accuracy();
        for (const auto& [name, value] : scores.further) one[name] = value;
        one[labels ? "texts" : "loss_tokens"] = scores.sums.tokens;
    }
    return all.dump(2) + "\n";
}

}  // namespace

int run_evaluate(Transport& transport, Settings settings, const CommandLine& command, Terminal& terminal) {
    settings.strategy.plugin.clear();  // nothing is trained or merged
    const bool labels = settings.model.task == Task::classification;
    const bool one_model =
        agree(transport, "reading the config", [&] { return !resolve_strategy(settings).is_personal(); });
    if (labels && one_model && !wants_metric(settings, "macro_f1"))
        settings.evaluation.metrics.emplace_back("macro_f1");
    Experiment experiment = build_experiment(transport, settings);
    const JudgedAdapter judged =
        agree(transport, "reading the adapter", [&] { return judged_adapter(command.adapter, experiment); });
    if (experiment.head) experiment.head->set(0, judged.head);
    std::vector<PartScores> parts{scores_of(transport, experiment, judged.values,
                                            {.part = name_of(settings.evaluation.part),
                                             .windows = experiment.evaluation_windows,
                                             .questions = experiment.questions})};
    if (!experiment.test_windows.empty() && settings.evaluation.part != EvaluationPart::test) {
        parts.push_back(
            scores_of(transport, experiment, judged.values,
                      {.part = "test", .windows = experiment.test_windows, .questions = experiment.test_questions}));
    }
    const std::string whose = command.adapter ? command.adapter->string() : std::string("base");
    for (const PartScores& scores : parts) terminal.info(scores_text(scores, labels, whose));
    if (settings.evaluation.groups == EvaluationClients::final)
        terminal.info(group_table(evaluate_groups(transport, experiment, judged.values)));
    agree(transport, "writing --json", [&] {
        if (command.json && transport.is_root()) write_file_atomically(*command.json, scores_json(parts, labels));
    });
    return 0;
}

}  // namespace hetlora
