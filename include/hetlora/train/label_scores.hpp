// Scores of predicted classes, whoever predicted them: the likelihood of answers, or a head.
#pragma once

#include <cstdint>
#include <vector>

namespace hetlora {

/// How often each class was taken for each: counts add up over batches and MPI ranks, the scores follow from them.
struct LabelScores {
    std::int64_t labels = 0;              ///< L
    std::vector<std::int64_t> confusion;  ///< [truth * L + prediction]

    LabelScores() = default;
    explicit LabelScores(std::int64_t labels_)
        : labels(labels_), confusion(static_cast<std::size_t>(labels_ * labels_)) {}

    /// One more judged sequence. @throws Error (bug) for a class outside 0..L-1
    void add(std::int64_t truth, std::int64_t prediction);
    /// @throws Error (bug) if the other one is of another number of classes (one without any is taken over)
    LabelScores& operator+=(const LabelScores& other);
    /// Judged sequences.
    [[nodiscard]] std::int64_t count() const;
    /// Share predicted right; NaN where nothing was judged.
    [[nodiscard]] double accuracy() const;
    /// Unweighted mean of F1 = 2 tp / (2 tp + fp + fn) over the classes that occur in truth or prediction; NaN where
    /// nothing was judged. Equals scikit-learn's f1_score(average="macro").
    [[nodiscard]] double macro_f1() const;
};

}  // namespace hetlora
