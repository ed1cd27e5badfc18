#include "run_evaluation.hpp"

#include <cmath>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/run_records.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/comm/agree.hpp"

namespace hetlora {

void RunEvaluation::before_training(RoundRow& row, std::span<const double> global) {
    const Settings& settings = experiment_.settings;
    fill_from_evaluation(row, evaluate(settings.evaluation.part, global));
    row.extra_metrics = in_log_order(settings, measure_tasks(transport_, experiment_, global, experiment_.questions));
    start_loss_ = best_loss_ = row.eval_loss;
    agree(transport_, "checking the evaluation loss", [&] {
        if (std::isfinite(start_loss_)) return;
        throw input_error(
            "the evaluation loss is {} before any training: the weights in {} hold values that are not finite or far "
            "too large; download or convert the model again",
            start_loss_, settings.model.path.string());
    });
}

void RunEvaluation::after_round(RoundRow& row, std::span<const double> global) {
    const Settings& settings = experiment_.settings;
    fill_from_evaluation(row, evaluate(settings.evaluation.part, global));
    MetricValues values = measure_tasks(transport_, experiment_, global, experiment_.questions);
    measure_test(row, global, values);
    row.extra_metrics = in_log_order(settings, values);
}

void RunEvaluation::measure_test(const RoundRow& row, std::span<const double> global, MetricValues& values) {
    const TestEvaluation wanted = experiment_.settings.evaluation.test;
    const bool is_last = row.round == experiment_.settings.experiment.rounds;
    const bool is_best = row.eval_loss < best_loss_;
    if (is_best) best_loss_ = row.eval_loss;
    if (wanted == TestEvaluation::none || !(is_last || (wanted == TestEvaluation::best && is_best))) return;
    const EvaluationSums sums = evaluate(EvaluationPart::test, global);
    const double loss = sums.mean_loss();
    values["test_accuracy"] = sums.accuracy();  // logged where extra_metrics() has it
    values["test_loss"] = loss;
    values["test_perplexity"] = std::exp(loss);
    for (const auto& [name, value] : measure_tasks(transport_, experiment_, global, experiment_.test_questions))
        values["test_" + name] = value;
}

EvaluationSums RunEvaluation::evaluate(EvaluationPart part, std::span<const double> global) {
    const EvaluationSettings& evaluation = experiment_.settings.evaluation;
    if (experiment_.strategy.is_personal()) {
        return evaluate_personal(transport_, experiment_, global,
                                 {.private_factors = private_files_, .part = part, .sequences = evaluation.sequences});
    }
    const bool beside = part != evaluation.part;
    return evaluate_global(transport_, experiment_, global,
                           beside ? experiment_.test_windows : experiment_.evaluation_windows);
}

void RunEvaluation::check_health(const RoundRow& row) {
    agree(transport_, "checking the evaluation loss", [&] {
        const double factor = experiment_.settings.evaluation.divergence_factor;
        // Divergence is often finite: compare with the start.
        if (std::isfinite(row.eval_loss) && (factor <= 0.0 || row.eval_loss <= factor * start_loss_)) return;
        throw training_error(
            "round {}: the evaluation loss is {:.6g}, more than {} times the {:.6g} before training: training has "
            "diverged; lower local.learning_rate, set local.clip_norm, or raise evaluation.divergence_factor (0: never "
            "stop)",
            row.round, row.eval_loss, factor, start_loss_);
    });
}

}  // namespace hetlora
