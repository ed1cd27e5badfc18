// Small prepared data files for tests: a plain struct of the file's arrays, a generator and a writer. Change the
// struct before writing it to get a broken file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace hetlora::test {

/// The content of a prepared data file (docs/data.md), data set by data set.
struct RawCorpus {
    std::string schema_name = "hetlora-data";
    std::int64_t schema_version = 1;
    std::int64_t vocab_size = 0;
    std::int64_t bos_id = -1;
    std::int64_t eos_id = -1;
    std::map<std::string, std::string> texts;  ///< further text attributes

    std::vector<std::int32_t> ids;
    std::vector<std::uint8_t> mask;
    std::vector<std::int64_t> sequence_offset{0};
    std::vector<std::int32_t> sequence_client;
    std::vector<std::uint8_t> sequence_part;
    std::vector<std::int32_t> sequence_label;
    std::vector<std::int32_t> sequence_prompt_length;
    std::vector<std::int64_t> client_offset{0};
    std::vector<std::string> client_name;
    std::vector<std::uint8_t> client_held_out;
    std::vector<std::string> label_name;
    std::vector<std::int32_t> sequence_group;   ///< not written where it is empty
    std::vector<std::int32_t> sequence_n_loss;  ///< not written where it is empty
    std::vector<std::string> group_name;        ///< not written where it is empty
    std::vector<std::uint8_t> vocab_bytes;
    std::vector<std::int64_t> vocab_offset{0};

    /// Starts a client; add_sequence adds to the last one.
    void add_client(const std::string& name, bool held_out = false);
    /// Adds a sequence; prompt_length follows from the mask (the start of its last stretch; the length if there is
    /// none).
    /// @pre ids and mask have the same length > 0
    void add_sequence(int part, const std::vector<std::int32_t>& token_ids, const std::vector<std::uint8_t>& loss_mask,
                      int label = -1);
    /// Fills sequence_n_loss from the masks.
    void count_losses();
    /// Gives token i the bytes "<i>".
    void set_vocabulary(std::int64_t size);
};

/// What synthetic_corpus makes; token ids are uniform in [token_begin, token_end).
struct SyntheticOptions {
    int n_clients = 6;   ///< held-out ones included
    int n_held_out = 2;  ///< the last clients; they have valid and test sequences only
    int n_train = 4;     ///< training sequences of each other client
    int n_valid = 1;     ///< valid sequences of each client
    int n_test = 1;      ///< test sequences of each client
    int min_length = 8;  ///< tokens of a sequence, uniform in [min_length, max_length]
    int max_length = 40;
    int token_begin = 3;
    int token_end = 64;
    int vocab_size = 64;
    int n_labels = 0;  ///< 0: no labels; else uniform labels
    std::uint64_t seed = 0;
};

/// Sequences of alternating unmasked and masked stretches of 1 to 6 tokens (turns), the last one masked.
[[nodiscard]] RawCorpus synthetic_corpus(const SyntheticOptions& options);

/// Writes the file (replacing one that exists), leaving out the named data sets ("/tokens/mask").
void write_corpus(const std::filesystem::path& path, const RawCorpus& corpus,
                  const std::vector<std::string>& leave_out = {});

/// A fresh folder for a test's files, removed with the object.
class TemporaryFolder {
public:
    TemporaryFolder();
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

private:
    std::filesystem::path path_;
};

}  // namespace hetlora::test
