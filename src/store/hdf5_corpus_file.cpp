// Prepared data in HDF5: the implementation of store/corpus_file.hpp.
#include <algorithm>

#include "hdf5_corpus_pieces.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/stored_hash.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora {

namespace fs = std::filesystem;
using namespace corpus_pieces;

namespace {

constexpr std::int64_t block_rows = 1 << 18;  // rows of an index array in memory at once while checking

}  // namespace

const char* part_name(Part part) noexcept {
    switch (part) {
        case Part::train:
            return "train";
        case Part::valid:
            return "valid";
        case Part::test:
            return "test";
    }
    return "unknown";
}

struct CorpusFile::Impl {
    fs::path path;
    hdf5::File file;
    CorpusAttributes attributes;
    std::int64_t n_sequences = 0;
    std::int64_t n_tokens = 0;
    hdf5::Dataset ids, mask;
    hdf5::Dataset offset, client, part, label, prompt_length;
    hdf5::PlainRows plain_ids, plain_mask, plain_offset;  ///< of the data sets that every window is read from
    hdf5::Dataset group;                                  ///< empty where the data has no groups
    hdf5::Dataset n_loss;                                 ///< empty where the file was written before there was one
    hdf5::Dataset client_name;
    std::vector<std::int64_t> client_offset;  ///< [n_clients + 1]
    std::vector<std::uint8_t> held_out;       ///< [n_clients]
    std::vector<std::string> label_names;
    std::vector<std::string> group_names;
    std::vector<std::uint8_t> vocab_bytes;
    std::vector<std::int64_t> vocab_offset;  ///< [vocab_size + 1]

    explicit Impl(const fs::path& path_) : path(path_), file(open_prepared(path_)), attributes(read_attributes(file)) {
        open_datasets();
        read_vocabulary();
        check_clients();
        for (std::int64_t begin = 0; begin < n_sequences; begin += block_rows) {
            check_sequences({begin, std::min(begin + block_rows, n_sequences)});
        }
    }

    void open_datasets() {
        using enum hdf5::ElementType;
        const hdf5::Group tokens = file.open_group("tokens");
        ids = open_array(tokens, "ids", i32, -1);
        n_tokens = ids.rows();
        mask = open_array(tokens, "mask", u8, n_tokens);
        const hdf5::Group sequences = file.open_group("sequences");
        client = open_array(sequences, "client", i32, -1);
        n_sequences = client.rows();
        if (n_sequences > INT32_MAX)
            throw broken(client.where(), fmt::format("{} sequences are more than 2^31 - 1", n_sequences));
        offset = open_array(sequences, "offset", i64, n_sequences + 1);
        part = open_array(sequences, "part", u8, n_sequences);
        label = open_array(sequences, "label", i32, n_sequences);
        prompt_length = open_array(sequences, "prompt_length", i32, n_sequences);
        if (sequences.has("group")) group = open_array(sequences, "group", i32, n_sequences);
        if (sequences.has("n_loss")) n_loss = open_array(sequences, "n_loss", i32, n_sequences);
        plain_ids = hdf5::PlainRows(ids, i32);
        plain_mask = hdf5::PlainRows(mask, u8);
        plain_offset = hdf5::PlainRows(offset, i64);
        const hdf5::Group clients = file.open_group("clients");
        const hdf5::Dataset held = open_array(clients, "held_out", u8, -1);
        held_out = held.read_all<std::uint8_t>();
        client_offset = open_array(clients, "offset", i64, held.rows() + 1).read_all<std::int64_t>();
        client_name = open_array(clients, "name", text, held.rows());
        if (file.has("labels")) label_names = file.open_group("labels").open_dataset("name").read_strings();
        if (file.has("groups")) group_names = file.open_group("groups").open_dataset("name").read_strings();
    }

    void read_vocabulary() {
        using enum hdf5::ElementType;
        const hdf5::Group vocab = file.open_group("vocab");
        const hdf5::Dataset bytes = open_array(vocab, "bytes", u8, -1);
        const hdf5::Dataset offsets = open_array(vocab, "offset", i64, attributes.vocab_size + 1);
        vocab_bytes = bytes.read_all<std::uint8_t>();
        vocab_offset = offsets.read_all<std::int64_t>();
        check_ends(vocab_offset.front(), vocab_offset.back(), bytes.rows(), offsets.where());
        check_offsets(vocab_offset, 0, false, offsets.where());
    }

    void check_clients() const {
        const std::string where = path.string() + ":/clients/offset";
        check_ends(client_offset.front(), client_offset.back(), n_sequences, where);
        check_offsets(client_offset, 0, false, where);
        const auto wrong = std::ranges::find_if(held_out, [](std::uint8_t flag) { return flag > 1; });
        if (wrong != held_out.end()) {
            throw broken(path.string() + ":/clients/held_out",
                         fmt::format("client {} has the value {} instead of 0 or 1", wrong - held_out.begin(), *wrong));
        }
    }

    /// Checks index entries against each other, against the clients and (at a block's edges) against the neighbours.
    void check_sequences(IndexRange range) const {
        const auto offsets = read_rows<std::int64_t>(offset, {range.begin, range.end + 1});
        check_offsets(offsets, range.begin, true, offset.where());
        if (range.begin == 0 && offsets.front() != 0) check_ends(offsets.front(), n_tokens, n_tokens, offset.where());
        if (range.end == n_sequences) check_ends(0, offsets.back(), n_tokens, offset.where());
        const std::int64_t before = std::max<std::int64_t>(range.begin - 1, 0);
        const auto entries = sequences({before, range.end});
        for (std::size_t i = 0; i < entries.size(); ++i) {
            check_entry(entries[i], i == 0 ? nullptr : &entries[i - 1], before + static_cast<std::int64_t>(i));
        }
    }

    void check_entry(const SequenceInfo& entry, const SequenceInfo* previous, std::int64_t s) const {
        const auto wrong = [&](const std::string& what) {
            return broken(fmt::format("{}:/sequences, sequence {}", path.string(), s), what);
        };
        const auto clients = static_cast<std::int64_t>(held_out.size());
        if (entry.client < 0 || entry.client >= clients)
            throw wrong(fmt::format("client {} of {} clients", entry.client, clients));
        const auto c = static_cast<std::size_t>(entry.client);
        if (s < client_offset[c] || s >= client_offset[c + 1]) {
            throw wrong(fmt::format(
                "client {} does not own it according to /clients/offset (are the sequences sorted by client?)", c));
        }
        if (static_cast<int>(entry.part) > 2)
            throw wrong(fmt::format("part {} is none of 0, 1, 2", static_cast<int>(entry.part)));
        if (held_out[c] == 1 && entry.part == Part::train)
            throw wrong(fmt::format("client {} is held out and has a training sequence", c));
        if (previous != nullptr && previous->client == entry.client && previous->part > entry.part) {
            throw wrong(fmt::format("part {} follows part {} (sequences of a client are sorted by part)",
                                    part_name(entry.part), part_name(previous->part)));
        }
        const auto n_labels = static_cast<std::int64_t>(label_names.size());
        if (entry.label < -1 || (n_labels > 0 && entry.label >= n_labels))
            throw wrong(fmt::format("label {} of {} labels", entry.label, n_labels));
        if (entry.group < -1 || entry.group >= std::ssize(group_names))
            throw wrong(fmt::format("group {} of {} groups", entry.group, group_names.size()));
        if (entry.prompt_length < 0 || entry.prompt_length > entry.length) {
            throw wrong(fmt::format("prompt_length {} of a sequence of {} tokens", entry.prompt_length, entry.length));
        }
        if (n_loss && (entry.n_loss < 0 || entry.n_loss >= entry.length))
            throw wrong(fmt::format("{} loss tokens of {} tokens", entry.n_loss, entry.length));
    }

    void check_range(IndexRange range, std::int64_t size, const char* what) const {
        if (range.begin < 0 || range.begin > range.end || range.end > size) {
            throw bug_error("{} [{}, {}) of {} asked for - file {} - report this", what, range.begin, range.end, size,
                            path.string());
        }
    }

    [[nodiscard]] std::vector<SequenceInfo> sequences(IndexRange range) const {
        check_range(range, n_sequences, "sequences");
        std::vector<SequenceInfo> result(static_cast<std::size_t>(range.size()));
        if (result.empty()) return result;
        const auto offsets = read_rows<std::int64_t>(offset, {range.begin, range.end + 1});
        const auto clients = read_rows<std::int32_t>(client, range);
        const auto parts = read_rows<std::uint8_t>(part, range);
        const auto labels = read_rows<std::int32_t>(label, range);
        const auto prompts = read_rows<std::int32_t>(prompt_length, range);
        const auto groups =
            group ? read_rows<std::int32_t>(group, range) : std::vector<std::int32_t>(result.size(), -1);
        const auto losses =
            n_loss ? read_rows<std::int32_t>(n_loss, range) : std::vector<std::int32_t>(result.size(), -1);
        for (std::size_t i = 0; i < result.size(); ++i) {
            result[i] = {.offset = offsets[i],
                         .length = offsets[i + 1] - offsets[i],
                         .client = clients[i],
                         .part = static_cast<Part>(parts[i]),
                         .label = labels[i],
                         .group = groups[i],
                         .prompt_length = prompts[i],
                         .n_loss = losses[i]};
        }
        return result;
    }

    void check_tokens(const SequenceTokens& tokens, std::int64_t sequence, IndexRange stretch) const {
        for (std::size_t i = 0; i < tokens.ids.size(); ++i) {
            const auto position = stretch.begin + static_cast<std::int64_t>(i);
            if (tokens.ids[i] < 0 || tokens.ids[i] >= attributes.vocab_size) {
                throw broken(
                    fmt::format("{}:/tokens/ids, sequence {}, token {}", path.string(), sequence, position),
                    fmt::format("token id {} is outside the vocabulary of {}", tokens.ids[i], attributes.vocab_size));
            }
            if (tokens.mask[i] > 1 || (position == 0 && tokens.mask[i] != 0)) {
                throw broken(fmt::format("{}:/tokens/mask, sequence {}, token {}", path.string(), sequence, position),
                             fmt::format("the mask is {} (0 or 1, and 0 at the first token)", tokens.mask[i]));
            }
        }
    }
};

CorpusFile::CorpusFile(const fs::path& path) : impl_(std::make_unique<Impl>(path)) {}
CorpusFile::~CorpusFile() = default;
CorpusFile::CorpusFile(CorpusFile&&) noexcept = default;
CorpusFile& CorpusFile::operator=(CorpusFile&&) noexcept = default;

const fs::path& CorpusFile::path() const noexcept { return impl_->path; }
const CorpusAttributes& CorpusFile::attributes() const noexcept { return impl_->attributes; }
std::int64_t CorpusFile::n_clients() const noexcept { return static_cast<std::int64_t>(impl_->held_out.size()); }
std::int64_t CorpusFile::n_sequences() const noexcept { return impl_->n_sequences; }
std::int64_t CorpusFile::n_tokens() const noexcept { return impl_->n_tokens; }
const std::vector<std::string>& CorpusFile::label_names() const noexcept { return impl_->label_names; }
const std::vector<std::string>& CorpusFile::group_names() const noexcept { return impl_->group_names; }

std::string CorpusFile::client_name(std::int64_t client) const {
    impl_->check_range({client, client + 1}, n_clients(), "clients");
    return read_strings(impl_->client_name, {client, client + 1}).front();
}

std::vector<std::string> CorpusFile::client_names(IndexRange clients) const {
    impl_->check_range(clients, n_clients(), "clients");
    return read_strings(impl_->client_name, clients);
}

bool CorpusFile::has_loss_counts() const noexcept { return static_cast<bool>(impl_->n_loss); }

bool CorpusFile::held_out(std::int64_t client) const {
    impl_->check_range({client, client + 1}, n_clients(), "clients");
    return impl_->held_out[static_cast<std::size_t>(client)] == 1;
}

IndexRange CorpusFile::sequences_of(std::int64_t client) const {
    impl_->check_range({client, client + 1}, n_clients(), "clients");
    const auto c = static_cast<std::size_t>(client);
    return {impl_->client_offset[c], impl_->client_offset[c + 1]};
}

SequenceInfo CorpusFile::sequence(std::int64_t sequence) const {
    return impl_->sequences({sequence, sequence + 1}).front();
}

std::vector<SequenceInfo> CorpusFile::sequences(IndexRange range) const { return impl_->sequences(range); }

IndexRange CorpusFile::place(std::int64_t sequence) const {
    impl_->check_range({sequence, sequence + 1}, n_sequences(), "sequences");
    const auto offsets = read_rows<std::int64_t>(impl_->plain_offset, impl_->offset, {sequence, sequence + 2});
    return {offsets[0], offsets[1]};
}

SequenceTokens CorpusFile::read(std::int64_t sequence) const {
    const IndexRange all = place(sequence);
    return read(sequence, all, {0, all.size()});
}

SequenceTokens CorpusFile::read(std::int64_t sequence, IndexRange place, IndexRange stretch) const {
    impl_->check_range(stretch, place.size(), "tokens of a sequence");
    const IndexRange rows{place.begin + stretch.begin, place.begin + stretch.end};
    SequenceTokens tokens{.ids = read_rows<std::int32_t>(impl_->plain_ids, impl_->ids, rows),
                          .mask = read_rows<std::uint8_t>(impl_->plain_mask, impl_->mask, rows)};
    impl_->check_tokens(tokens, sequence, stretch);
    return tokens;
}

std::vector<std::uint8_t> CorpusFile::read_mask(IndexRange tokens) const {
    impl_->check_range(tokens, n_tokens(), "tokens");
    return read_rows<std::uint8_t>(impl_->plain_mask, impl_->mask, tokens);
}

std::string CorpusFile::text_of(std::span<const std::int32_t> ids) const {
    std::string text;
    for (const std::int32_t id : ids) {
        if (id < 0 || id >= impl_->attributes.vocab_size) {
            throw input_error(
                "token id {} is outside the vocabulary of {} - file {} - do model and data have the same tokenizer?",
                id, impl_->attributes.vocab_size, impl_->path.string());
        }
        const auto begin = impl_->vocab_offset[static_cast<std::size_t>(id)];
        const auto end = impl_->vocab_offset[static_cast<std::size_t>(id) + 1];
        text.append(reinterpret_cast<const char*>(impl_->vocab_bytes.data()) + begin,
                    static_cast<std::size_t>(end - begin));
    }
    return text;
}

std::string CorpusFile::sha256() const { return stored_sha256(impl_->path); }

}  // namespace hetlora
