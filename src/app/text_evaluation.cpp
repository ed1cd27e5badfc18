// Generated replies against the real ones, and the further columns of /rounds.
#include <algorithm>
#include <array>

#include "global_batches.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/model/generate.hpp"
#include "hetlora/train/label_scores.hpp"
#include "hetlora/train/text_scores.hpp"
#include "ordered_gather.hpp"

namespace hetlora {
namespace {

struct ReplyScores {
    std::int64_t question;
    double rouge1;
    double rouge_l;
    double exact_match;
};

std::vector<ReplyScores> scores_of_replies(Transport& transport, Experiment& experiment, std::span<const double> global,
                                           std::span<const TextQuestion> questions) {
    const Settings& settings = experiment.settings;
    const CorpusFile& file = experiment.corpus->file();
    GenerationOptions options{.max_new_tokens = settings.evaluation.text_tokens,
                              .temperature = 0.0,
                              .seed = 0,
                              .stop_ids = experiment.engine->weights().config.eos_ids};
    if (file.attributes().eos_id >= 0) options.stop_ids.push_back(file.attributes().eos_id);
    // A batch is as large as the cache of keys and values may be: prompts and replies of compute.pack_tokens rows.
    std::vector<WindowRef> shapes;
    for (const TextQuestion& question : questions) {
        shapes.push_back({.sequence = question.sequence,
                          .window = 0,
                          .rows = static_cast<std::int32_t>(std::ssize(question.prompt) + options.max_new_tokens),
                          .n_loss = 0});
    }
    const auto batches = evaluation_batches(shapes, settings.compute.pack_tokens);
    std::vector<ReplyScores> mine;
    const GlobalPass pass{.doing = "generating replies", .global = global, .batches = batches.size()};
    for_own_batches(transport, experiment, pass, [&](AdapterGroup& adapter, std::size_t b) {
        std::vector<std::vector<std::int32_t>> prompts;
        for (const std::size_t i : batches[b]) prompts.push_back(questions[i].prompt);
        const auto replies = generate(*experiment.engine, &adapter, experiment.global_scale, prompts, options);
        for (std::size_t k = 0; k < replies.size(); ++k) {
            const TextQuestion& question = questions[batches[b][k]];
            const std::string text = file.text_of(replies[k]);
            mine.push_back({.question = static_cast<std::int64_t>(batches[b][k]),
                            .rouge1 = rouge1(question.real, text),
                            .rouge_l = rouge_l(question.real, text),
                            .exact_match = exact_match(question.real, text) ? 1.0 : 0.0});
        }
    });
    return gather_in_order(transport, mine, &ReplyScores::question);
}

/// Mean of one score over the replies, added in the order of the questions.
double mean_of(std::span<const ReplyScores> replies, double ReplyScores::*score) {
    double sum = 0.0;
    for (const ReplyScores& reply : replies) sum += reply.*score;
    return sum / static_cast<double>(replies.size());
}

}  // namespace

std::vector<ExtraMetric> extra_metrics(const Settings& settings) {
    std::vector<ExtraMetric> all;
    for (const ExtraMetric& metric : {
             ExtraMetric{"choice_accuracy", "1", "share of questions whose right answer is the most likely one"},
             ExtraMetric{"exact_match", "1", "share of generated replies that equal the real one"},
             ExtraMetric{"macro_f1", "1", "F1 of the most likely answers or labels, unweighted mean over the labels"},
             ExtraMetric{"rouge1", "1", "ROUGE-1 F-measure of generated replies, mean"},
             ExtraMetric{"rougeL", "1", "ROUGE-L F-measure of generated replies, mean"},
         }) {
        if (!wants_metric(settings, metric.name)) continue;
        all.push_back(metric);
        if (settings.evaluation.test == TestEvaluation::none) continue;
        all.push_back({"test_" + metric.name, metric.units,
                       metric.long_name + ", on the test part, where it was measured (evaluation.test)"});
    }
    if (settings.evaluation.test != TestEvaluation::none) {
        all.push_back({"test_loss", "nat", "eval_loss on the test part, where it was measured (evaluation.test)"});
        all.push_back({"test_perplexity", "1", "exp(eval_test_loss)"});
        if (settings.model.task == Task::classification)
            all.push_back({"test_accuracy", "1", "share of the test part's texts judged right, where it was measured"});
    }
    std::ranges::sort(all, {}, &ExtraMetric::name);
    return all;
}

std::vector<double> in_log_order(const Settings& settings, const MetricValues& values) {
    if (values.empty()) return {};
    std::vector<double> ordered;
    for (const ExtraMetric& metric : extra_metrics(settings)) {
        const auto found = values.find(metric.name);
        ordered.push_back(found == values.end() ? not_measured : found->second);
    }
    return ordered;
}

MetricValues measure_tasks(Transport& transport, Experiment& experiment, std::span<const double> global,
                           const TaskQuestions& questions) {
    const Settings& settings = experiment.settings;
    MetricValues values;
    if (!questions.labelled.empty())
        values["macro_f1"] = judged_labels(transport, experiment, global, questions).macro_f1();
    if (!questions.choices.empty()) {
        const auto chosen = chosen_answers(transport, experiment, global, questions.choices);
        LabelScores scores(questions.labels);
        std::int64_t right = 0;
        for (std::size_t q = 0; q < chosen.size(); ++q) {
            if (chosen[q] == questions.choices[q].right) ++right;
            if (questions.labels > 0) scores.add(questions.choices[q].right, chosen[q]);
        }
        if (wants_metric(settings, "choice_accuracy"))
            values["choice_accuracy"] = static_cast<double>(right) / static_cast<double>(chosen.size());
        if (wants_metric(settings, "macro_f1")) values["macro_f1"] = scores.macro_f1();
    }
    if (!questions.texts.empty()) {
        const auto replies = scores_of_replies(transport, experiment, global, questions.texts);
        std::array<double, 3> means{};
        if (transport.is_root()) {
            means = {mean_of(replies, &ReplyScores::rouge1), mean_of(replies, &ReplyScores::rouge_l),
                     mean_of(replies, &ReplyScores::exact_match)};
        }
        transport.broadcast_values(std::span(means));
        if (wants_metric(settings, "rouge1")) values["rouge1"] = means[0];
        if (wants_metric(settings, "rougeL")) values["rougeL"] = means[1];
        if (wants_metric(settings, "exact_match")) values["exact_match"] = means[2];
    }
    return values;
}

}  // namespace hetlora
