// Prepared data as a federated experiment sees it: clients, their training windows, the evaluation windows.
//
// What is read when:
//   opening     the index of sequences, in blocks (13 bytes a sequence, not kept). The masks of the training sequences
//               too, once and in blocks, if min_windows > 1: that is what counting windows takes.
//   a client    the masks of its own sequences when its windows are first asked for; the last clients are cached.
//   a window    its own tokens.
// With min_windows <= 1 a client is eligible if it has a training sequence with a loss token, which the index tells:
// prompt_length points at the start of the last masked stretch. The claim is checked when the mask is read.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "hetlora/data/partition.hpp"
#include "hetlora/data/windows.hpp"
#include "hetlora/store/corpus_file.hpp"

namespace hetlora {

struct CorpusOptions {
    std::int64_t sequence_length = 128;
    std::int64_t overlap = 32;
    PartitionKind partition = PartitionKind::natural;
    std::int64_t partition_clients = 0;  ///< clients of all kinds but natural
    double dirichlet_alpha = 0.5;
    bool dirichlet_by_group = false;  ///< share out by group instead of by label
    double quantity_sigma = 1.0;
    std::uint64_t seed_partition = 0;
    bool classification = false;              ///< a sequence is one window, and its target the sequence's label
    std::int64_t min_windows = 1;             ///< clients with fewer training windows never take part
    std::int64_t max_windows_per_client = 0;  ///< 0: all; else the first so many, by sequence, then window
};

/// A window, by its identity (sequence, window), with the sizes that planning needs.
struct WindowRef {
    std::int32_t sequence = 0;
    std::int32_t window = 0;
    std::int32_t rows = 0;    ///< input rows
    std::int32_t n_loss = 0;  ///< loss tokens
    friend bool operator==(const WindowRef&, const WindowRef&) = default;
};

/// How much one client has to train on.
struct ClientSize {
    std::int64_t n_train_sequences = 0;
    std::int64_t n_train_tokens = 0;  ///< all tokens of those sequences, context included
};

/// How many training sequences of each class (label, or group) every client has.
struct ClassCounts {
    bool by_group = false;
    std::vector<std::string> names;    ///< of the classes; the last one is "(none)" where a sequence has no class
    std::vector<std::int32_t> counts;  ///< [n_clients, names], row by row; empty where the data has no classes
};

/// The data of one experiment. Not for several threads at once (see CorpusFile); copies nothing of the file.
class Corpus {
public:
    /// @throws Error (usage) for impossible options, Error (input) for a bad file or data without classes for dirichlet
    Corpus(const std::filesystem::path& path, const CorpusOptions& options);

    [[nodiscard]] const CorpusFile& file() const noexcept { return file_; }
    [[nodiscard]] const CorpusOptions& options() const noexcept { return options_; }

    /// Registered clients: of the file (held-out ones included) or data.partition_clients. Ids are 0..n_clients-1.
    [[nodiscard]] std::int64_t n_clients() const noexcept;
    /// Clients that may take part in training, rising.
    [[nodiscard]] const std::vector<std::int32_t>& eligible() const noexcept { return eligible_; }
    /// The name in the file, or e.g. "iid-000012".
    [[nodiscard]] std::string client_name(std::int64_t client) const;
    [[nodiscard]] ClientSize client_size(std::int64_t client) const;
    /// [n_clients] sizes of all clients in one pass over the index.
    [[nodiscard]] std::vector<ClientSize> client_sizes() const;
    /// [n_clients] loss tokens in the training windows of the clients that may take part, 0 for others. From the index
    /// where the file has them there (and max_windows_per_client cuts nothing), else in one pass over the masks.
    [[nodiscard]] std::vector<std::int64_t> client_loss_tokens() const;
    /// Names of a range of clients, as client_name.
    [[nodiscard]] std::vector<std::string> client_names(IndexRange clients) const;

    /// Of the groups where the partition goes by group or the data has groups only, else of the labels.
    /// Empty where that is more than `most_cells` numbers: a table for people to look at.
    [[nodiscard]] ClassCounts class_counts(std::int64_t most_cells) const;
    /// SHA-256 (64 hex digits) of who owns every sequence in every part: equal for equal partitions of equal data.
    [[nodiscard]] std::string partition_sha256() const;

    /// A client's training windows by sequence, then window. Empty for held-out clients.
    [[nodiscard]] std::vector<WindowRef> train_windows(std::int64_t client) const;
    [[nodiscard]] std::int64_t n_train_windows(std::int64_t client) const;

    /// Windows of the held-out clients in one part, by sequence, then window. With 0 < n < all, the n with the smallest
    /// hash_seed(seed, Purpose::evaluation_subset, sequence, window), in the same order: a larger n contains a smaller.
    /// Leave the seed alone to compare experiments of different seeds on the same windows.
    [[nodiscard]] std::vector<WindowRef> evaluation_windows(Part part, std::int64_t n = 0,
                                                            std::uint64_t seed = 0) const;
    /// A client's own windows of a part that it does not train on. (Partitions deal these parts too.)
    [[nodiscard]] std::vector<WindowRef> client_evaluation_windows(std::int64_t client, Part part) const;

    /// The tokens of a window.
    /// With options().classification the one target is the sequence's label.
    [[nodiscard]] WindowTokens read(const WindowRef& ref) const;

    /// Goes through every client and part: training uses training sequences of people who are not held out, each once;
    /// the global evaluation uses only held-out people's sequences; no sequence is in both. @throws Error (bug)
    /// One pass over the index; no mask is read.
    void check_no_leakage() const;

private:
    struct IndexedSequence {
        std::int32_t sequence = 0;
        SequenceInfo info;
    };

    void deal();
    void find_eligible();
    [[nodiscard]] std::vector<std::int64_t> count_train_windows() const;
    [[nodiscard]] std::vector<std::uint8_t> clients_with_loss() const;
    [[nodiscard]] std::vector<std::int32_t> owners(Part part = Part::train) const;
    [[nodiscard]] bool by_group() const noexcept;
    [[nodiscard]] bool has_loss(const SequenceInfo& info) const;
    [[nodiscard]] std::vector<IndexedSequence> sequences_of(std::int64_t client, Part part) const;
    [[nodiscard]] std::vector<WindowRef> windows_of(const std::vector<IndexedSequence>& sequences) const;
    /// @throws Error (input) unless the sequence is one window with one loss token and a label
    void check_labelled(const IndexedSequence& s, std::span<const Window> windows) const;
    [[nodiscard]] const std::vector<WindowRef>& cached_train_windows(std::int64_t client) const;
    /// Calls visit(IndexedSequence, mask) for sequences in file order, reading masks in blocks of bounded size.
    template <typename Visit>
    void for_each_mask(const std::vector<IndexedSequence>& sequences, Visit visit) const;
    /// Calls visit(sequence, info) for all sequences of the file.
    template <typename Visit>
    void for_each_sequence(Visit visit) const;
    /// Calls visit(sequence, info) for what held-out clients have in a part: the global evaluation set.
    template <typename Visit>
    void for_each_evaluation_sequence(Part part, Visit visit) const;
    void check_client(std::int64_t client) const;

    CorpusOptions options_;
    WindowShape shape_;
    CorpusFile file_;
    std::vector<Deal> deals_;  ///< by part; empty for the natural partition
    std::vector<std::int32_t> eligible_;
    std::vector<std::int64_t> counts_;  ///< train windows by client where they were counted, else empty

    mutable std::unordered_map<std::int64_t, std::vector<WindowRef>> cache_;
    mutable std::deque<std::int64_t> cache_order_;  ///< oldest first
    mutable std::size_t cached_windows_ = 0;
};

/// @throws Error (bug) naming the sequence if a sequence is in both sets: nobody may be evaluated on what was trained
/// on.
void check_disjoint(std::span<const WindowRef> train, std::span<const WindowRef> evaluation);

}  // namespace hetlora
