#include "hetlora/train/text_scores.hpp"

#include <gtest/gtest.h>

namespace hetlora {
namespace {

using Words = std::vector<std::string>;

TEST(TextScores, words_are_lower_case_runs_of_letters_and_digits) {
    EXPECT_EQ(rouge_words("The cat's 2 mats_are\tNICE."), (Words{"the", "cat", "s", "2", "mats", "are", "nice"}));
    EXPECT_EQ(rouge_words("caf\xC3\xA9 na\xC3\xAFve"), (Words{"caf", "na", "ve"}));
    EXPECT_EQ(rouge_words(" ... "), Words{});
}

TEST(TextScores, the_two_letters_whose_lower_case_is_ascii) {
    EXPECT_EQ(rouge_words("5\xE2\x84\xAA"), (Words{"5k"}));
    EXPECT_EQ(rouge_words("\xC4\xB0z"), (Words{"i", "z"}));
}

TEST(TextScores, rouge1_counts_common_words_as_often_as_both_have_them) {
    // common: a, a, b = 3 of 4 generated and of 5 real
    const double p = 3.0 / 4.0;
    const double r = 3.0 / 5.0;
    EXPECT_DOUBLE_EQ(rouge1("a b a c d", "a a b b"), 2 * p * r / (p + r));
}

TEST(TextScores, rouge_l_needs_the_order) {
    EXPECT_DOUBLE_EQ(rouge1("one two three", "three two one"), 1.0);
    EXPECT_DOUBLE_EQ(rouge_l("one two three", "three two one"), 1.0 / 3.0);
    const double p = 3.0 / 3.0;
    const double r = 3.0 / 5.0;
    EXPECT_DOUBLE_EQ(rouge_l("one x two y three", "one two three"), 2 * p * r / (p + r));
}

TEST(TextScores, blank_texts_score_zero) {
    for (const char* text : {"", " ", "?!"}) {
        EXPECT_EQ(rouge1("word", text), 0.0);
        EXPECT_EQ(rouge_l(text, "word"), 0.0);
        EXPECT_EQ(rouge_l(text, text), 0.0);
    }
}

TEST(TextScores, exact_match_is_blind_to_outer_white_space_only) {
    EXPECT_TRUE(exact_match(" yes\n", "yes"));
    EXPECT_TRUE(exact_match("", " \t"));
    EXPECT_FALSE(exact_match("yes", "Yes"));
    EXPECT_FALSE(exact_match("y es", "yes"));
}

}  // namespace
}  // namespace hetlora
