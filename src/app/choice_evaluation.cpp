// Which answer the model finds most likely: every answer of every question is one sequence of a forward pass.
#include <algorithm>

#include "global_batches.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/model/batch.hpp"
#include "ordered_gather.hpp"

namespace hetlora {
namespace {

/// One answer of one question, ready for the model.
struct AskedAnswer {
    std::vector<std::int32_t> inputs;
    std::vector<std::int32_t> targets;  ///< -1 but for the answer's own tokens
};

AskedAnswer asked_answer(const ChoiceQuestion& question, const std::vector<std::int32_t>& answer) {
    AskedAnswer asked;
    asked.inputs = question.prompt;
    asked.inputs.insert(asked.inputs.end(), answer.begin(), answer.end() - 1);
    asked.targets.assign(question.prompt.size() - 1, -1);
    asked.targets.insert(asked.targets.end(), answer.begin(), answer.end());
    return asked;
}

/// Log-likelihood of one answer, to be put where it belongs by whoever has all of them.
struct AnswerScore {
    std::int64_t answer;  ///< running number over all questions
    double score;
};

}  // namespace

LabelScores judged_labels(Transport& transport, Experiment& experiment, std::span<const double> global,
                          const TaskQuestions& questions) {
    const auto batches = evaluation_batches(questions.labelled, experiment.settings.compute.pack_tokens);
    LabelScores scores(questions.labels);
    const GlobalPass pass{.doing = "judging labels", .global = global, .batches = batches.size()};
    for_own_batches(transport, experiment, pass, [&](AdapterGroup& adapter, std::size_t b) {
        const auto predicted =
            predicted_labels(*experiment.engine, *experiment.corpus, questions.labelled, batches[b],
                             {.adapter = &adapter, .scale = experiment.global_scale, .head = experiment.head.get()});
        for (std::size_t i = 0; i < predicted.size(); ++i) {
            const WindowRef& window = questions.labelled[batches[b][i]];
            scores.add(experiment.corpus->file().sequence(window.sequence).label, predicted[i]);
        }
    });
    transport.all_sum(scores.confusion);  // counts: any order gives the same
    return scores;
}

std::vector<std::int64_t> chosen_answers(Transport& transport, Experiment& experiment, std::span<const double> global,
                                         std::span<const ChoiceQuestion> questions) {
    struct Place {
        std::size_t question;
        std::size_t answer;
    };
    std::vector<Place> places;
    std::vector<WindowRef> shapes;  // only their rows count here: the rule that batches windows batches answers, too
    for (std::size_t q = 0; q < questions.size(); ++q) {
        for (std::size_t a = 0; a < questions[q].answers.size(); ++a) {
            places.push_back({q, a});
            shapes.push_back(
                {.sequence = questions[q].sequence,
                 .window = 0,
                 .rows = static_cast<std::int32_t>(questions[q].prompt.size() + questions[q].answers[a].size() - 1),
                 .n_loss = 0});
        }
    }
    const auto batches = evaluation_batches(shapes, experiment.settings.compute.pack_tokens);
    const bool mean = experiment.settings.evaluation.choice_score == ChoiceScore::mean;
    std::vector<AnswerScore> mine;
    const GlobalPass pass{.doing = "weighing answers", .global = global, .batches = batches.size()};
    for_own_batches(transport, experiment, pass, [&](AdapterGroup& adapter, std::size_t b) {
        std::vector<AskedAnswer> asked;
        BatchClient client{.group = &adapter,
                           .client_in_group = 0,
                           .scale = experiment.global_scale,
                           .dropout_seed = 0,
                           .sequences = {}};
        for (const std::size_t i : batches[b])
            asked.push_back(
                asked_answer(questions[places[i].question], questions[places[i].question].answers[places[i].answer]));
        for (const AskedAnswer& one : asked) client.sequences.push_back({.inputs = one.inputs, .targets = one.targets});
        const RowLosses losses =
            experiment.engine->evaluate(make_batch(experiment.engine->weights(), std::span(&client, 1)));
        std::size_t row = 0;
        for (const std::size_t i : batches[b]) {
            const std::size_t tokens = questions[places[i].question].answers[places[i].answer].size();
            double sum = 0.0;
            for (std::size_t t = 0; t < tokens; ++t) sum -= losses.loss_L[row++];
            mine.push_back(
                {.answer = static_cast<std::int64_t>(i), .score = mean ? sum / static_cast<double>(tokens) : sum});
        }
    });
    std::vector<std::int64_t> chosen(questions.size(), 0);
    std::vector<double> best(questions.size(), 0.0);
    for (const AnswerScore& one : gather_in_order(transport, mine, &AnswerScore::answer)) {
        const Place place = places[static_cast<std::size_t>(one.answer)];
        if (place.answer != 0 && !(one.score > best[place.question])) continue;
        best[place.question] = one.score;
        chosen[place.question] = static_cast<std::int64_t>(place.answer);
    }
    transport.broadcast_values(std::span(chosen));
    return chosen;
}

}  // namespace hetlora
