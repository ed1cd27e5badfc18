// The answers of prepared data: what is read, and what is refused of damaged files.
#include "hetlora/store/corpus_choices.hpp"

#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "hetlora/store/hdf5_handle.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

using Ids = std::vector<std::int32_t>;
using Offsets = std::vector<std::int64_t>;

/// Five sequences of the labels 0, 1, and (in the second file) with answers of their own.
class CorpusChoicesTest : public ::testing::Test {
protected:
    std::filesystem::path write(const Ids& ids, const Offsets& offset, const Offsets& first = {},
                                const Ids& answer = {}) {
        const auto path = folder_ / "data.h5";
        test::write_corpus(
            path, test::synthetic_corpus(
                      {.n_clients = 2, .n_held_out = 1, .n_train = 1, .n_valid = 1, .n_test = 1, .n_labels = 2}));
        hdf5::File file = hdf5::File::open_write(path);
        hdf5::Group group = file.create_group("choices");
        group.create_array<std::int32_t>("ids", ids);
        group.create_array<std::int64_t>("offset", offset);
        if (!first.empty()) group.create_array<std::int64_t>("sequence_offset", first);
        if (!answer.empty()) group.create_array<std::int32_t>("answer", answer);
        return path;
    }
    static std::string refusal(const std::filesystem::path& path, std::int64_t sequence = -1) {
        try {
            const CorpusChoices choices(path);
            if (sequence >= 0) (void)choices.of(sequence, 0);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            return error.what();
        }
        return "";
    }

    test::TemporaryFolder folder_;
};

TEST_F(CorpusChoicesTest, one_list_serves_all_sequences_by_label) {
    const CorpusChoices choices(write({7, 8, 9}, {0, 1, 3}));
    EXPECT_TRUE(choices.by_label());
    EXPECT_EQ(choices.labels(), 2);
    const SequenceChoices found = choices.of(3, 1);
    EXPECT_EQ(found.answers, (std::vector<Ids>{{7}, {8, 9}}));
    EXPECT_EQ(found.right, 1);
    EXPECT_EQ(choices.of(3, -1).right, -1);
}

TEST_F(CorpusChoicesTest, sequences_have_lists_of_their_own) {
    const CorpusChoices choices(write({7, 8, 9, 5}, {0, 1, 3, 4}, {0, 0, 2, 2, 2, 3}, {-1, 1, -1, -1, 0}));
    EXPECT_FALSE(choices.by_label());
    EXPECT_EQ(choices.labels(), 0);
    EXPECT_EQ(choices.of(0, 0).right, -1);
    EXPECT_EQ(choices.of(1, 0).answers, (std::vector<Ids>{{7}, {8, 9}}));
    EXPECT_EQ(choices.of(1, 0).right, 1);
    EXPECT_EQ(choices.of(4, 0).answers, (std::vector<Ids>{{5}}));
}

TEST_F(CorpusChoicesTest, data_without_answers_name_the_flags) {
    const auto path = folder_ / "none.h5";
    test::write_corpus(path, test::synthetic_corpus({.n_clients = 2, .n_held_out = 1}));
    EXPECT_NE(refusal(path).find("--label-choices"), std::string::npos);
}

TEST_F(CorpusChoicesTest, what_contradicts_itself_is_refused) {
    EXPECT_NE(refusal(write({7, 8}, {0, 1, 1})).find("offset"), std::string::npos) << "an answer without a token";
    EXPECT_NE(refusal(write({7, 8}, {0, 1, 3})).find("last offset"), std::string::npos);
    EXPECT_NE(refusal(write({7, 8, 9}, {0, 1, 2, 3})).find("3 answers for 2 labels"), std::string::npos);
    EXPECT_NE(refusal(write({7}, {0, 1}, {0, 1, 1}, {0, -1})).find("rows"), std::string::npos);
    EXPECT_NE(refusal(write({7}, {0, 1}, {0, 1, 1, 1, 1, 1}, {1, -1, -1, -1, -1}), 0).find("answer 1 of 1"),
              std::string::npos);
    EXPECT_NE(refusal(write({7, 64}, {0, 1, 2}), 0).find("outside the vocabulary"), std::string::npos);
}

}  // namespace
}  // namespace hetlora
