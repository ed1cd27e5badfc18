#include "hetlora/train/label_scores.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

LabelScores scores_of(std::int64_t labels, std::initializer_list<std::array<std::int64_t, 2>> judged) {
    LabelScores scores(labels);
    for (const auto& [truth, prediction] : judged) scores.add(truth, prediction);
    return scores;
}

TEST(LabelScores, accuracy_is_the_share_on_the_diagonal) {
    const LabelScores scores = scores_of(3, {{0, 0}, {0, 1}, {1, 1}, {2, 0}, {2, 2}});
    EXPECT_EQ(scores.count(), 5);
    EXPECT_DOUBLE_EQ(scores.accuracy(), 3.0 / 5.0);
}

TEST(LabelScores, macro_f1_is_the_mean_over_classes_that_occur) {
    // class 0: tp 1, fp 1, fn 1; class 1: tp 1, fp 1, fn 0; class 2: tp 1, fp 0, fn 1; class 3 does not occur.
    const LabelScores scores = scores_of(4, {{0, 0}, {0, 1}, {1, 1}, {2, 0}, {2, 2}});
    EXPECT_DOUBLE_EQ(scores.macro_f1(), (2.0 / 4.0 + 2.0 / 3.0 + 2.0 / 3.0) / 3.0);
}

TEST(LabelScores, a_class_that_is_only_predicted_counts_with_zero) {
    const LabelScores scores = scores_of(3, {{0, 0}, {0, 2}});
    EXPECT_DOUBLE_EQ(scores.macro_f1(), (2.0 / 3.0 + 0.0) / 2.0);
}

TEST(LabelScores, sums_of_parts_equal_the_whole) {
    LabelScores sum;
    sum += scores_of(2, {{0, 1}, {1, 1}});
    sum += scores_of(2, {{0, 0}});
    EXPECT_EQ(sum.confusion, scores_of(2, {{0, 1}, {1, 1}, {0, 0}}).confusion);
    EXPECT_THROW(sum += scores_of(3, {{2, 2}}), Error);
}

TEST(LabelScores, nothing_judged_is_not_a_number) {
    EXPECT_TRUE(std::isnan(LabelScores(3).accuracy()));
    EXPECT_TRUE(std::isnan(LabelScores(3).macro_f1()));
}

TEST(LabelScores, a_class_that_is_none_is_refused) {
    LabelScores scores(2);
    EXPECT_THROW(scores.add(0, 2), Error);
    EXPECT_THROW(scores.add(-1, 0), Error);
}

}  // namespace
}  // namespace hetlora
