#include "hetlora/train/label_scores.hpp"

#include <limits>
#include <numeric>

#include "hetlora/base/error.hpp"

namespace hetlora {

void LabelScores::add(std::int64_t truth, std::int64_t prediction) {
    if (truth < 0 || truth >= labels || prediction < 0 || prediction >= labels) {
        throw bug_error("class {} predicted as {} of {} classes - label scores - report this", truth, prediction,
                        labels);
    }
    ++confusion[static_cast<std::size_t>(truth * labels + prediction)];
}

LabelScores& LabelScores::operator+=(const LabelScores& other) {
    if (other.labels == 0) return *this;
    if (labels == 0) *this = LabelScores(other.labels);
    if (labels != other.labels)
        throw bug_error("scores of {} and of {} classes added - label scores - report this", labels, other.labels);
    for (std::size_t i = 0; i < confusion.size(); ++i) confusion[i] += other.confusion[i];
    return *this;
}

std::int64_t LabelScores::count() const { return std::accumulate(confusion.begin(), confusion.end(), std::int64_t{0}); }

double LabelScores::accuracy() const {
    const std::int64_t all = count();
    if (all == 0) return std::numeric_limits<double>::quiet_NaN();
    std::int64_t right = 0;
    for (std::int64_t label = 0; label < labels; ++label)
        right += confusion[static_cast<std::size_t>(label * (labels + 1))];
    return static_cast<double>(right) / static_cast<double>(all);
}

double LabelScores::macro_f1() const {
    double sum = 0.0;
    std::int64_t occurring = 0;
    for (std::int64_t label = 0; label < labels; ++label) {
        std::int64_t truths = 0;
        std::int64_t predictions = 0;
        for (std::int64_t other = 0; other < labels; ++other) {
            truths += confusion[static_cast<std::size_t>(label * labels + other)];
            predictions += confusion[static_cast<std::size_t>(other * labels + label)];
        }
        if (truths + predictions == 0) continue;
        ++occurring;
        const std::int64_t both = confusion[static_cast<std::size_t>(label * (labels + 1))];
        sum += 2.0 * static_cast<double>(both) / static_cast<double>(truths + predictions);  // 2 tp + fp + fn
    }
    return occurring == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(occurring);
}

}  // namespace hetlora
