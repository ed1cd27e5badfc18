// The answers that a prepared data file offers for its sequences (group /choices, docs/data.md): one list for the whole
// file, by label (" positive" / " negative"), or a list of each sequence's own (questions with several answers).
//
// Read apart from CorpusFile, by those who ask for it: other data never pay for it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace hetlora {

/// The answers of one sequence as tokens, and which one is right.
struct SequenceChoices {
    std::vector<std::vector<std::int32_t>> answers;  ///< each with one token at least
    std::int64_t right = -1;                         ///< -1: the sequence has no answers to choose from
};

class CorpusChoices {
public:
    /// @throws Error (input) where the file has no /choices (naming the flags of `hetlora prepare`) or a damaged one
    explicit CorpusChoices(const std::filesystem::path& path);
    ~CorpusChoices();
    CorpusChoices(CorpusChoices&&) noexcept;
    CorpusChoices& operator=(CorpusChoices&&) noexcept;

    /// True: one list for the whole file, whose answer i is label i.
    [[nodiscard]] bool by_label() const noexcept;
    /// Answers of the file's one list; 0 where every sequence has its own.
    [[nodiscard]] std::int64_t labels() const noexcept;
    /// @param label of the sequence, which is the right answer of the file's one list
    [[nodiscard]] SequenceChoices of(std::int64_t sequence, std::int32_t label) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace hetlora
