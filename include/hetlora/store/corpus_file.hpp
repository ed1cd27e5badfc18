// Prepared data ("hetlora-data" version 1, docs/data.md): sequences of tokens with a loss mask, by client.
//
// The file is read in place. What stays in memory is the index of clients (9 bytes each) and the vocabulary; tokens,
// masks, names and the index of sequences are read by hyperslab when they are asked for. Opening passes once over the
// index of sequences, in blocks, to check it; tokens are checked when they are read.
//
// Nothing here knows HDF5. One thread at a time may use a CorpusFile (the HDF5 library is not thread-safe).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace hetlora {

/// What a sequence may be used for.
enum class Part : std::uint8_t {
    train = 0,
    valid = 1,  ///< for choosing
    test = 2,   ///< read by nothing but the final evaluation
};

/// "train", "valid" or "test".
[[nodiscard]] const char* part_name(Part part) noexcept;

/// Root attributes of the file.
struct CorpusAttributes {
    std::string name;
    std::string creator;
    std::string created_utc;
    std::string source;
    std::string source_sha256;
    std::string license;
    std::string tokenizer_sha256;
    std::string tokenizer_name;
    std::string recipe;  ///< JSON: the options of the preparation
    std::string task;    ///< "classification": texts whose labels are learnt; else next tokens
    std::int64_t vocab_size = 0;
    std::int64_t bos_id = -1;  ///< -1: none
    std::int64_t eos_id = -1;  ///< -1: none
};

/// Half-open range of indices.
struct IndexRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    [[nodiscard]] std::int64_t size() const noexcept { return end - begin; }
    friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

/// The index entry of one sequence.
struct SequenceInfo {
    std::int64_t offset = 0;  ///< of its first token in the file
    std::int64_t length = 0;  ///< tokens
    std::int32_t client = 0;
    Part part = Part::train;
    std::int32_t label = -1;         ///< -1: none
    std::int32_t group = -1;         ///< task, topic, source ...; -1: none
    std::int32_t prompt_length = 0;  ///< tokens before the last masked stretch
    std::int32_t n_loss = -1;        ///< loss tokens; -1: the file does not say
    friend bool operator==(const SequenceInfo&, const SequenceInfo&) = default;
};

/// Tokens of a sequence or of a stretch of it, in two arrays of equal length.
struct SequenceTokens {
    std::vector<std::int32_t> ids;
    std::vector<std::uint8_t> mask;  ///< 1: this token is a loss target
};

/// A prepared data file, opened for reading and checked.
class CorpusFile {
public:
    /// @throws Error (input) naming the file, the data set and a mend: missing, foreign or truncated file, another
    ///         schema or version, a missing data set, index arrays that contradict each other.
    explicit CorpusFile(const std::filesystem::path& path);
    ~CorpusFile();
    CorpusFile(CorpusFile&&) noexcept;
    CorpusFile& operator=(CorpusFile&&) noexcept;

    [[nodiscard]] const std::filesystem::path& path() const noexcept;
    [[nodiscard]] const CorpusAttributes& attributes() const noexcept;
    [[nodiscard]] std::int64_t n_clients() const noexcept;
    [[nodiscard]] std::int64_t n_sequences() const noexcept;
    [[nodiscard]] std::int64_t n_tokens() const noexcept;
    /// Names of the class labels; empty where the task has none.
    [[nodiscard]] const std::vector<std::string>& label_names() const noexcept;
    /// Names of the groups; empty where the data has none.
    [[nodiscard]] const std::vector<std::string>& group_names() const noexcept;

    [[nodiscard]] std::string client_name(std::int64_t client) const;
    /// Names of a range of clients, with one read.
    [[nodiscard]] std::vector<std::string> client_names(IndexRange clients) const;
    /// Whether SequenceInfo::n_loss is known.
    [[nodiscard]] bool has_loss_counts() const noexcept;
    /// True for a client that never trains: its sequences are the global evaluation set.
    [[nodiscard]] bool held_out(std::int64_t client) const;
    /// The client's sequences, sorted by part, then time.
    [[nodiscard]] IndexRange sequences_of(std::int64_t client) const;

    [[nodiscard]] SequenceInfo sequence(std::int64_t sequence) const;
    /// Index entries of a range of sequences, with one read per data set.
    [[nodiscard]] std::vector<SequenceInfo> sequences(IndexRange range) const;

    /// All tokens of a sequence.
    /// @throws Error (input) for an id outside the vocabulary, a mask other than 0 or 1, or one that is 1 at token 0.
    [[nodiscard]] SequenceTokens read(std::int64_t sequence) const;
    /// Where a sequence's tokens lie among the tokens of the file: one read instead of all of sequence()'s.
    [[nodiscard]] IndexRange place(std::int64_t sequence) const;
    /// Tokens [stretch.begin, stretch.end) of the sequence that lies at `place`, counted from its start.
    /// @throws as read()
    [[nodiscard]] SequenceTokens read(std::int64_t sequence, IndexRange place, IndexRange stretch) const;
    /// Masks of the tokens [tokens.begin, tokens.end) of the whole file, unchecked (for counting in big blocks).
    [[nodiscard]] std::vector<std::uint8_t> read_mask(IndexRange tokens) const;

    /// The raw bytes of some tokens, one after another: UTF-8 only where the tokens end on whole characters.
    /// @throws Error (input) for an id outside the vocabulary
    [[nodiscard]] std::string text_of(std::span<const std::int32_t> ids) const;

    /// SHA-256 (64 hex digits) of the file's bytes, as `sha256sum` prints it. Reads the whole file, unless it is a
    /// large one whose hash lies beside it (base/stored_hash.hpp).
    [[nodiscard]] std::string sha256() const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace hetlora
