// Scores of a generated text against the real one: ROUGE as the package `rouge-score` computes it (without stemming),
// and exact match. No tensors.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// Words as rouge-score sees them: lower case, maximal runs of a-z and 0-9; everything else only separates.
[[nodiscard]] std::vector<std::string> rouge_words(std::string_view text);
/// F-measure of common words, each counted as often as both texts have it. 0 where nothing is common.
[[nodiscard]] double rouge1(std::string_view real, std::string_view generated);
/// F-measure of the longest common subsequence of words. 0 where nothing is common.
[[nodiscard]] double rouge_l(std::string_view real, std::string_view generated);
/// True where both are the same but for white space (of ASCII) at their ends.
[[nodiscard]] bool exact_match(std::string_view real, std::string_view generated);

}  // namespace hetlora
