#include "hetlora/train/text_scores.hpp"

#include <algorithm>
#include <cstdint>
#include <map>

namespace hetlora {
namespace {

/// The harmonic mean of common / generated and common / real.
double f_measure(std::size_t common, std::size_t real, std::size_t generated) {
    if (common == 0) return 0.0;
    const double precision = static_cast<double>(common) / static_cast<double>(generated);
    const double recall = static_cast<double>(common) / static_cast<double>(real);
    return 2.0 * precision * recall / (precision + recall);
}

std::string_view without_outer_space(std::string_view text) {
    constexpr std::string_view space = " \t\n\v\f\r";
    const std::size_t begin = text.find_first_not_of(space);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

}  // namespace

std::vector<std::string> rouge_words(std::string_view text) {
    std::vector<std::string> words;
    std::string word;
    const auto end_word = [&] {
        if (!word.empty()) words.push_back(std::move(word));
        word.clear();
    };
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
            word.push_back(c);
        } else if (c >= 'A' && c <= 'Z') {
            word.push_back(static_cast<char>(c - 'A' + 'a'));
        } else if (text.substr(i, 3) == "\xE2\x84\xAA") {  // the Kelvin sign: its lower case is an ordinary k
            word.push_back('k');
            i += 2;
        } else if (text.substr(i, 2) == "\xC4\xB0") {  // I with a dot: its lower case is i and a combining dot
            word.push_back('i');
            end_word();
            ++i;
        } else {
            end_word();
        }
    }
    end_word();
    return words;
}

double rouge1(std::string_view real, std::string_view generated) {
    const auto real_words = rouge_words(real);
    const auto words = rouge_words(generated);
    std::map<std::string_view, std::int64_t> left;
    for (const std::string& word : real_words) ++left[word];
    std::size_t common = 0;
    for (const std::string& word : words) {
        const auto found = left.find(word);
        if (found == left.end() || found->second == 0) continue;
        --found->second;
        ++common;
    }
    return f_measure(common, real_words.size(), words.size());
}

double rouge_l(std::string_view real, std::string_view generated) {
    const auto real_words = rouge_words(real);
    const auto words = rouge_words(generated);
    // One row of the table of prefixes at a time: length[j] is for the first j words that were generated.
    std::vector<std::size_t> length(words.size() + 1, 0);
    for (const std::string& word : real_words) {
        std::size_t diagonal = 0;
        for (std::size_t j = 1; j <= words.size(); ++j) {
            const std::size_t above = length[j];
            length[j] = word == words[j - 1] ? diagonal + 1 : std::max(above, length[j - 1]);
            diagonal = above;
        }
    }
    return f_measure(length.back(), real_words.size(), words.size());
}

bool exact_match(std::string_view real, std::string_view generated) {
    return without_outer_space(real) == without_outer_space(generated);
}

}  // namespace hetlora
