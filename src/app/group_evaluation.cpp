#include "hetlora/app/group_evaluation.hpp"

#include <cmath>
#include <map>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/task_metrics.hpp"

namespace hetlora {

std::vector<GroupRow> evaluate_groups(Transport& transport, Experiment& experiment, std::span<const double> global) {
    const CorpusFile& file = experiment.corpus->file();
    const auto n_groups = static_cast<std::int32_t>(file.group_names().size());
    const auto group_of = [&](std::int32_t sequence) {
        const std::int32_t group = file.sequence(sequence).group;
        return group < 0 ? n_groups : group;  // those without a group come last
    };
    std::map<std::int32_t, std::vector<WindowRef>> windows;
    for (const WindowRef& window : experiment.evaluation_windows) windows[group_of(window.sequence)].push_back(window);
    struct Answered {
        std::int64_t right = 0;
        std::int64_t all = 0;
    };
    std::map<std::int32_t, Answered> answered;
    const auto& questions = experiment.questions.choices;
    if (!questions.empty()) {
        const auto chosen = chosen_answers(transport, experiment, global, questions);
        for (std::size_t q = 0; q < questions.size(); ++q) {
            Answered& group = answered[group_of(questions[q].sequence)];
            ++group.all;
            if (chosen[q] == questions[q].right) ++group.right;
        }
    }
    std::vector<GroupRow> rows;
    for (const auto& [group, own] : windows) {
        const EvaluationSums sums = evaluate_global(transport, experiment, global, own);
        const Answered& asked = answered[group];
        rows.push_back(
            {.name = group == n_groups ? "(none)" : file.group_names()[static_cast<std::size_t>(group)],
             .eval_loss = sums.mean_loss(),
             .tokens = sums.tokens,
             .eval_accuracy = sums.accuracy(),
             .eval_choice_accuracy =
                 asked.all == 0 ? not_measured : static_cast<double>(asked.right) / static_cast<double>(asked.all)});
    }
    return rows;
}

std::string group_table(std::span<const GroupRow> rows) {
    if (rows.empty()) return "";
    bool choices = false;
    for (const GroupRow& row : rows) choices = choices || std::isfinite(row.eval_choice_accuracy);
    std::string text = fmt::format("\n  {:<24} {:>10} {:>10} {:>10}{}", "group", "tokens", "loss", "accuracy",
                                   choices ? "    choices" : "");
    for (const GroupRow& row : rows) {
        text += fmt::format("\n  {:<24} {:>10} {:>10.4f} {:>10.4f}", row.name, row.tokens, row.eval_loss,
                            row.eval_accuracy);
        if (choices) text += fmt::format(" {:>10.4f}", row.eval_choice_accuracy);
    }
    return text;
}

}  // namespace hetlora
