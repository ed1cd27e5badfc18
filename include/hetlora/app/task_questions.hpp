// What the metrics beyond the loss ask the model: questions with answers to choose from, and conversations whose last
// reply is generated. Taken from the data before the run, so that data or a model that do not fit are told at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hetlora/config/settings.hpp"
#include "hetlora/data/corpus.hpp"

namespace hetlora {

/// One sequence up to its last reply, and what that reply may be.
struct ChoiceQuestion {
    std::int32_t sequence = 0;
    std::vector<std::int32_t> prompt;
    std::vector<std::vector<std::int32_t>> answers;
    std::int64_t right = 0;
};

/// One conversation up to its last reply, and what the person really wrote.
struct TextQuestion {
    std::int32_t sequence = 0;
    std::vector<std::int32_t> prompt;
    std::string real;
};

/// The questions of one part (valid or test).
struct TaskQuestions {
    std::vector<ChoiceQuestion> choices;
    std::vector<TextQuestion> texts;
    std::vector<WindowRef> labelled;  ///< classification: what the head judges for macro_f1
    std::int64_t labels = 0;          ///< classes of the answers; 0: every question has its own
};

/// True where evaluation.metrics has this one.
[[nodiscard]] bool wants_metric(const Settings& settings, std::string_view metric);
[[nodiscard]] bool wants_choices(const Settings& settings);
[[nodiscard]] bool wants_texts(const Settings& settings);

/// What the questions need to know of the model.
struct QuestionLimits {
    std::int64_t positions = 0;          ///< of the model
    std::vector<std::int64_t> stop_ids;  ///< tokens that end a reply; no part of its text
};

/// The questions of the sequences that these windows are of, each sequence once. Prompts are cut from the left.
/// @throws Error (input) for data without answers, or without any sequence to ask about; Error (usage) for metrics
///         that do not fit the data, and for answers or replies that leave no position for the prompt
[[nodiscard]] TaskQuestions task_questions(const Settings& settings, const Corpus& corpus, const QuestionLimits& limits,
                                           std::span<const WindowRef> windows);

}  // namespace hetlora
