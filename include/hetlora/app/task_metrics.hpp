// The metrics beyond the loss, measured over all mpi_ranks: answers chosen by their likelihood, and generated replies.
// The same bits for any number of mpi_ranks: the batches are made from the questions alone.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"
#include "hetlora/app/task_questions.hpp"
#include "hetlora/store/run_log.hpp"
#include "hetlora/train/label_scores.hpp"

namespace hetlora {

/// name (as in evaluation.metrics) -> value.
using MetricValues = std::map<std::string, double>;

/// The further columns of /rounds that these settings ask for, by name (the order in which a log is opened again).
[[nodiscard]] std::vector<ExtraMetric> extra_metrics(const Settings& settings);
/// The values in that order, NaN where none was measured. Empty where nothing was.
[[nodiscard]] std::vector<double> in_log_order(const Settings& settings, const MetricValues& values);

/// Everything beyond the loss of an adapter (canonical form at rank_max; the same on all mpi_ranks); known to all.
/// Empty where nothing is asked for. @throws AgreedError
[[nodiscard]] MetricValues measure_tasks(Transport& transport, Experiment& experiment, std::span<const double> global,
                                         const TaskQuestions& questions);

/// Which labels the head finds most likely for questions.labelled, against the true ones: known to all mpi_ranks.
/// @throws AgreedError
[[nodiscard]] LabelScores judged_labels(Transport& transport, Experiment& experiment, std::span<const double> global,
                                        const TaskQuestions& questions);

/// The answer that each question's likelihoods (natural logarithm, by evaluation.choice_score) are largest for, the
/// first of equals: known to all mpi_ranks. @throws AgreedError
[[nodiscard]] std::vector<std::int64_t> chosen_answers(Transport& transport, Experiment& experiment,
                                                       std::span<const double> global,
                                                       std::span<const ChoiceQuestion> questions);

}  // namespace hetlora
