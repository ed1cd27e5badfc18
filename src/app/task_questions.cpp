#include "hetlora/app/task_questions.hpp"

#include <algorithm>
#include <optional>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/store/corpus_choices.hpp"

namespace hetlora {
namespace {

std::vector<std::int32_t> sequences_of(std::span<const WindowRef> windows) {
    std::vector<std::int32_t> sequences;
    for (const WindowRef& window : windows) sequences.push_back(window.sequence);
    std::ranges::sort(sequences);
    sequences.erase(std::ranges::unique(sequences).begin(), sequences.end());
    return sequences;
}

/// The last `room` tokens of a sequence before its last reply.
std::vector<std::int32_t> prompt_of(const SequenceTokens& tokens, std::int64_t prompt_length, std::int64_t room) {
    const std::int64_t begin = std::max<std::int64_t>(0, prompt_length - room);
    return {tokens.ids.begin() + begin, tokens.ids.begin() + prompt_length};
}

std::vector<ChoiceQuestion> choice_questions(const Settings& settings, const Corpus& corpus,
                                             const CorpusChoices& choices, std::span<const std::int32_t> sequences) {
    std::vector<ChoiceQuestion> questions;
    for (const std::int32_t sequence : sequences) {
        const SequenceInfo info = corpus.file().sequence(sequence);
        SequenceChoices found = choices.of(sequence, info.label);
        if (found.right < 0 || info.prompt_length < 1 || info.prompt_length >= info.length) continue;
        std::int64_t longest = 0;
        for (const auto& answer : found.answers) longest = std::max(longest, std::ssize(answer));
        // The rows of a question are the prompt and all of an answer but its last token.
        const std::int64_t room = settings.data.sequence_length - (longest - 1);
        if (room < 1) {
            throw usage_error(
                "sequence {} has an answer of {} tokens, which leaves no row for its prompt - data.sequence_length = "
                "{} "
                "- raise it, or leave choice_accuracy and macro_f1 out of evaluation.metrics",
                sequence, longest, settings.data.sequence_length);
        }
        questions.push_back({.sequence = sequence,
                             .prompt = prompt_of(corpus.file().read(sequence), info.prompt_length, room),
                             .answers = std::move(found.answers),
                             .right = found.right});
    }
    return questions;
}

std::vector<TextQuestion> text_questions(const Settings& settings, const Corpus& corpus, const QuestionLimits& limits,
                                         std::vector<std::int32_t> sequences) {
    const EvaluationSettings& evaluation = settings.evaluation;
    const std::int64_t room = std::min(settings.data.sequence_length, limits.positions - evaluation.text_tokens);
    if (room < 1) {
        throw usage_error(
            "evaluation.text_tokens = {} leaves none of the model's {} positions for the prompt: lower it",
            evaluation.text_tokens, limits.positions);
    }
    // Not by a seed of the run: runs of different seeds answer the same conversations.
    std::ranges::stable_sort(sequences, {}, [](std::int32_t s) { return hash_seed(0, Purpose::generation, s); });
    std::vector<TextQuestion> questions;
    for (const std::int32_t sequence : sequences) {
        if (evaluation.text_sequences > 0 && std::ssize(questions) == evaluation.text_sequences) break;
        const SequenceInfo info = corpus.file().sequence(sequence);
        if (info.prompt_length < 1 || info.prompt_length >= info.length) continue;
        const SequenceTokens tokens = corpus.file().read(sequence);
        std::vector<std::int32_t> real;
        for (auto i = static_cast<std::size_t>(info.prompt_length); i < tokens.ids.size() && tokens.mask[i] == 1; ++i) {
            if (std::ranges::find(limits.stop_ids, tokens.ids[i]) == limits.stop_ids.end())
                real.push_back(tokens.ids[i]);
        }
        questions.push_back({.sequence = sequence,
                             .prompt = prompt_of(tokens, info.prompt_length, room),
                             .real = corpus.file().text_of(real)});
    }
    return questions;
}

}  // namespace

bool wants_metric(const Settings& settings, std::string_view metric) {
    return std::ranges::find(settings.evaluation.metrics, metric) != settings.evaluation.metrics.end();
}

bool wants_choices(const Settings& settings) {
    return wants_metric(settings, "choice_accuracy") || wants_metric(settings, "macro_f1");
}

bool wants_texts(const Settings& settings) {
    return wants_metric(settings, "rouge1") || wants_metric(settings, "rougeL") ||
           wants_metric(settings, "exact_match");
}

TaskQuestions task_questions(const Settings& settings, const Corpus& corpus, const QuestionLimits& limits,
                             std::span<const WindowRef> windows) {
    TaskQuestions questions;
    if (settings.model.task == Task::classification) {
        if (!wants_metric(settings, "macro_f1")) return questions;
        questions.labelled.assign(windows.begin(), windows.end());
        questions.labels = std::ssize(corpus.file().label_names());
        return questions;
    }
    const auto sequences = sequences_of(windows);
    if (wants_choices(settings)) {
        const CorpusChoices choices(settings.data.path);
        if (wants_metric(settings, "macro_f1") && !choices.by_label()) {
            throw usage_error(
                "evaluation.metrics has macro_f1, but in {} every sequence has answers of its own, which are no "
                "classes: take choice_accuracy, or prepare the data with --label-choices",
                settings.data.path.string());
        }
        questions.labels = choices.labels();
        questions.choices = choice_questions(settings, corpus, choices, sequences);
        if (questions.choices.empty()) {
            throw input_error(
                "{}: none of the {} evaluated sequences has a right answer to choose: take the other "
                "evaluation.part, or leave choice_accuracy and macro_f1 out of evaluation.metrics",
                settings.data.path.string(), sequences.size());
        }
    }
    if (wants_texts(settings)) {
        questions.texts = text_questions(settings, corpus, limits, sequences);
        if (questions.texts.empty()) {
            throw input_error(
                "{}: none of the {} evaluated sequences has a reply behind a prompt (plain text has not): leave "
                "rouge1, rougeL and exact_match out of evaluation.metrics",
                settings.data.path.string(), sequences.size());
        }
    }
    return questions;
}

}  // namespace hetlora
