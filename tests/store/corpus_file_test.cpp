// Prepared data files: what is read, and every kind of contradiction as a clear error.
#include "hetlora/store/corpus_file.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <span>

#include "hetlora/base/error.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/store/hdf5_handle.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;
using test::RawCorpus;
using test::synthetic_corpus;
using test::TemporaryFolder;

/// The error of opening the synthetic file after a change; it must be an input error.
std::string error_after(const std::function<void(RawCorpus&)>& change, const std::vector<std::string>& leave_out = {}) {
    const TemporaryFolder folder;
    RawCorpus raw = synthetic_corpus({.n_labels = 2});
    change(raw);
    test::write_corpus(folder / "x.h5", raw, leave_out);
    try {
        const CorpusFile file(folder / "x.h5");
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::input) << error.what();
        EXPECT_NE(std::string(error.what()).find("x.h5"), std::string::npos) << error.what();
        return error.what();
    }
    return "(no error)";
}

void expect_word(const std::string& text, const std::string& word) {
    EXPECT_NE(text.find(word), std::string::npos) << "\"" << word << "\" is not in: " << text;
}

TEST(CorpusFile, everything_written_is_read_back) {
    const TemporaryFolder folder;
    const RawCorpus raw = synthetic_corpus({.n_labels = 3});
    test::write_corpus(folder / "x.h5", raw);

    const CorpusFile file(folder / "x.h5");

    EXPECT_EQ(file.attributes().name, "synthetic");
    EXPECT_EQ(file.attributes().vocab_size, 64);
    EXPECT_EQ(file.attributes().eos_id, 2);
    EXPECT_EQ(file.attributes().source, "");
    EXPECT_EQ(file.n_clients(), 6);
    EXPECT_EQ(file.n_sequences(), static_cast<std::int64_t>(raw.sequence_client.size()));
    EXPECT_EQ(file.n_tokens(), static_cast<std::int64_t>(raw.ids.size()));
    EXPECT_EQ(file.label_names(), raw.label_name);
    for (std::int64_t c = 0; c < file.n_clients(); ++c) {
        EXPECT_EQ(file.client_name(c), raw.client_name[static_cast<std::size_t>(c)]);
        EXPECT_EQ(file.held_out(c), raw.client_held_out[static_cast<std::size_t>(c)] == 1);
        EXPECT_EQ(file.sequences_of(c).begin, raw.client_offset[static_cast<std::size_t>(c)]);
    }
    for (std::int64_t s = 0; s < file.n_sequences(); ++s) {
        const auto i = static_cast<std::size_t>(s);
        const SequenceInfo info = file.sequence(s);
        EXPECT_EQ(info.offset, raw.sequence_offset[i]);
        EXPECT_EQ(info.length, raw.sequence_offset[i + 1] - raw.sequence_offset[i]);
        EXPECT_EQ(info.client, raw.sequence_client[i]);
        EXPECT_EQ(static_cast<int>(info.part), raw.sequence_part[i]);
        EXPECT_EQ(info.label, raw.sequence_label[i]);
        EXPECT_EQ(info.prompt_length, raw.sequence_prompt_length[i]);
        const SequenceTokens tokens = file.read(s);
        EXPECT_TRUE(std::equal(tokens.ids.begin(), tokens.ids.end(), raw.ids.begin() + info.offset));
        EXPECT_TRUE(std::equal(tokens.mask.begin(), tokens.mask.end(), raw.mask.begin() + info.offset));
    }
    EXPECT_EQ(file.sequences({0, file.n_sequences()})[2], file.sequence(2));
}

TEST(CorpusFile, stretches_and_mask_blocks) {
    const TemporaryFolder folder;
    const RawCorpus raw = synthetic_corpus({});
    test::write_corpus(folder / "x.h5", raw);
    const CorpusFile file(folder / "x.h5");
    const SequenceTokens whole = file.read(1);
    const SequenceTokens part = file.read(1, file.place(1), {2, 5});
    EXPECT_EQ(part.ids, std::vector<std::int32_t>(whole.ids.begin() + 2, whole.ids.begin() + 5));
    EXPECT_EQ(part.mask, std::vector<std::uint8_t>(whole.mask.begin() + 2, whole.mask.begin() + 5));
    EXPECT_TRUE(file.read(1, file.place(1), {3, 3}).ids.empty());
    EXPECT_EQ(file.read_mask({0, file.n_tokens()}), raw.mask);
    EXPECT_THROW((void)file.read(1, file.place(1), {0, 1000}), Error);
    EXPECT_EQ(file.place(1).size(), std::ssize(whole.ids));
    EXPECT_THROW((void)file.read(-1), Error);
    EXPECT_THROW((void)file.place(file.n_sequences()), Error);
    EXPECT_THROW((void)file.sequence(file.n_sequences()), Error);
    EXPECT_THROW((void)file.client_name(6), Error);
}

/// Elsewhere the bytes come straight from the file; what other programs store in chunks, HDF5 reads.
TEST(CorpusFile, tokens_in_chunks_are_read_like_those_in_one_stretch) {
    const TemporaryFolder folder;
    const RawCorpus raw = synthetic_corpus({});
    test::write_corpus(folder / "whole.h5", raw);
    test::write_corpus(folder / "chunks.h5", raw, {"/tokens/ids"});
    {
        const hdf5::File file = hdf5::File::open_write(folder / "chunks.h5");
        hdf5::Group tokens = file.open_group("tokens");
        const hdf5::DatasetShape shape{.extent = {std::ssize(raw.ids)}, .unlimited = true, .chunk_rows = 7};
        hdf5::Dataset ids = tokens.create_dataset("ids", hdf5::ElementType::i32, shape);
        ids.write<std::int32_t>(0, raw.ids);
    }

    const CorpusFile whole(folder / "whole.h5");
    const CorpusFile chunks(folder / "chunks.h5");

    for (std::int64_t s = 0; s < whole.n_sequences(); ++s) {
        EXPECT_EQ(whole.read(s).ids, chunks.read(s).ids);
        EXPECT_EQ(whole.read(s).mask, chunks.read(s).mask);
        const auto first = raw.ids.begin() + raw.sequence_offset[static_cast<std::size_t>(s)];
        EXPECT_TRUE(std::ranges::equal(whole.read(s).ids, std::span(first, whole.read(s).ids.size())));
    }
}

TEST(CorpusFile, text_of_concatenates_the_tokens_bytes) {
    const TemporaryFolder folder;
    test::write_corpus(folder / "x.h5", synthetic_corpus({}));
    const CorpusFile file(folder / "x.h5");
    EXPECT_EQ(file.text_of(std::vector<std::int32_t>{3, 63, 3}), "<3><63><3>");
    EXPECT_EQ(file.text_of({}), "");
    EXPECT_THROW((void)file.text_of(std::vector<std::int32_t>{64}), Error);
    EXPECT_THROW((void)file.text_of(std::vector<std::int32_t>{-1}), Error);
}

TEST(CorpusFile, the_hash_is_that_of_the_files_bytes) {
    const TemporaryFolder folder;
    test::write_corpus(folder / "x.h5", synthetic_corpus({}));
    EXPECT_EQ(CorpusFile(folder / "x.h5").sha256(), sha256_file(folder / "x.h5"));
}

TEST(CorpusFile, labels_are_optional) {
    const TemporaryFolder folder;
    test::write_corpus(folder / "x.h5", synthetic_corpus({.n_labels = 0}));
    EXPECT_TRUE(CorpusFile(folder / "x.h5").label_names().empty());
}

TEST(CorpusFile, missing_foreign_and_truncated_files) {
    const TemporaryFolder folder;
    const auto error_of = [](const fs::path& path) -> std::string {
        try {
            const CorpusFile file(path);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            return error.what();
        }
        return "(no error)";
    };
    expect_word(error_of(folder / "none.h5"), "no such file");
    expect_word(error_of(folder.path()), "not a regular file");
    std::ofstream(folder / "text.h5") << "hello, this is text";
    expect_word(error_of(folder / "text.h5"), "not an HDF5 file");
    std::ofstream(folder / "empty.h5").flush();
    expect_word(error_of(folder / "empty.h5"), "not an HDF5 file");
    test::write_corpus(folder / "cut.h5", synthetic_corpus({}));
    const auto size = fs::file_size(folder / "cut.h5");
    for (const auto kept : {size - 1, size / 2, size / 10, std::uintmax_t{600}, std::uintmax_t{100}}) {
        fs::resize_file(folder / "cut.h5", kept);
        expect_word(error_of(folder / "cut.h5"), "cut.h5");
    }
}

TEST(CorpusFile, other_schemas_are_refused) {
    expect_word(error_after([](RawCorpus& c) { c.schema_name = "hetlora-run"; }), "hetlora-run");
    expect_word(error_after([](RawCorpus& c) { c.schema_version = 2; }), "schema version 2");
}

TEST(CorpusFile, every_data_set_is_needed) {
    for (const char* name : {"/tokens/ids", "/tokens/mask", "/sequences/offset", "/sequences/client", "/sequences/part",
                             "/sequences/label", "/sequences/prompt_length", "/clients/offset", "/clients/name",
                             "/clients/held_out", "/vocab/bytes", "/vocab/offset"}) {
        expect_word(error_after([](RawCorpus&) {}, {name}), std::string(name).substr(std::string(name).rfind('/') + 1));
    }
}

TEST(CorpusFile, contradictions_in_the_index_are_refused) {
    expect_word(error_after([](RawCorpus& c) { c.mask.pop_back(); }), "/tokens/mask");
    expect_word(error_after([](RawCorpus& c) { c.sequence_part.pop_back(); }), "/sequences/part");
    expect_word(error_after([](RawCorpus& c) { c.sequence_offset.pop_back(); }), "/sequences/offset");
    expect_word(error_after([](RawCorpus& c) { c.sequence_offset.front() = 1; }), "/sequences/offset");
    expect_word(error_after([](RawCorpus& c) { ++c.sequence_offset.back(); }), "/sequences/offset");
    expect_word(error_after([](RawCorpus& c) { std::swap(c.sequence_offset[1], c.sequence_offset[2]); }),
                "/sequences/offset");
    expect_word(error_after([](RawCorpus& c) { c.sequence_offset[2] = c.sequence_offset[1]; }), "/sequences/offset");
    expect_word(error_after([](RawCorpus& c) { ++c.client_offset[1]; }), "does not own it");
    expect_word(error_after([](RawCorpus& c) { ++c.client_offset.back(); }), "/clients/offset");
    expect_word(error_after([](RawCorpus& c) { c.client_name.pop_back(); }), "/clients/name");
    expect_word(error_after([](RawCorpus& c) { c.client_held_out[0] = 2; }), "/clients/held_out");
    expect_word(error_after([](RawCorpus& c) { c.sequence_client[0] = 77; }), "client 77");
    expect_word(error_after([](RawCorpus& c) { std::swap(c.sequence_client.front(), c.sequence_client.back()); }),
                "does not own it");
    expect_word(error_after([](RawCorpus& c) { c.sequence_part[0] = 3; }), "part 3");
    expect_word(error_after([](RawCorpus& c) { c.sequence_part[0] = 2; }), "sorted by part");
    expect_word(error_after([](RawCorpus& c) { c.sequence_label[0] = 2; }), "label 2 of 2");
    expect_word(error_after([](RawCorpus& c) { c.sequence_prompt_length[0] = 5000; }), "prompt_length 5000");
    expect_word(error_after([](RawCorpus& c) { c.vocab_size = 63; }), "/vocab/offset");
    expect_word(error_after([](RawCorpus& c) { c.vocab_offset[3] = 9999; }), "/vocab/offset");
    expect_word(error_after([](RawCorpus& c) { c.eos_id = 64; }), "eos_id");
}

TEST(CorpusFile, a_held_out_person_with_training_data_is_refused) {
    expect_word(error_after([](RawCorpus& c) { c.client_held_out[0] = 1; }), "held out and has a training sequence");
}

TEST(CorpusFile, tokens_are_checked_when_they_are_read) {
    const TemporaryFolder folder;
    const auto error_of = [&](const std::function<void(RawCorpus&)>& change) -> std::string {
        RawCorpus raw = synthetic_corpus({});
        change(raw);
        test::write_corpus(folder / "x.h5", raw);
        const CorpusFile file(folder / "x.h5");
        try {
            (void)file.read(0);
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    };
    expect_word(error_of([](RawCorpus& c) { c.ids[2] = 64; }), "sequence 0, token 2");
    expect_word(error_of([](RawCorpus& c) { c.ids[2] = -1; }), "token id -1");
    expect_word(error_of([](RawCorpus& c) { c.mask[2] = 7; }), "mask is 7");
    expect_word(error_of([](RawCorpus& c) { c.mask[0] = 1; }), "first token");
}

}  // namespace
}  // namespace hetlora
