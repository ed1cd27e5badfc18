// Clients and evaluation sets of prepared data: who trains on what, and that nobody is evaluated on training data.
#include "hetlora/data/corpus.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "hetlora/base/error.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

using test::RawCorpus;
using test::synthetic_corpus;
using test::TemporaryFolder;

class CorpusTest : public ::testing::Test {
protected:
    Corpus open(const RawCorpus& raw, const CorpusOptions& options) {
        test::write_corpus(folder_ / "x.h5", raw);
        return {folder_ / "x.h5", options};
    }
    std::string error_of(const RawCorpus& raw, const CorpusOptions& options, ExitCode code) {
        try {
            (void)open(raw, options);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), code) << error.what();
            return error.what();
        }
        return "(no error)";
    }
    TemporaryFolder folder_;
};

std::set<std::int32_t> sequences_in(const std::vector<WindowRef>& refs) {
    std::set<std::int32_t> result;
    for (const WindowRef& ref : refs) result.insert(ref.sequence);
    return result;
}

std::int64_t loss_tokens(const std::vector<WindowRef>& refs) {
    std::int64_t sum = 0;
    for (const WindowRef& ref : refs) sum += ref.n_loss;
    return sum;
}

const CorpusOptions small_windows{.sequence_length = 8, .overlap = 2};

TEST_F(CorpusTest, natural_clients_train_on_their_own_sequences) {
    const RawCorpus raw = synthetic_corpus({});
    const Corpus corpus = open(raw, small_windows);
    EXPECT_EQ(corpus.n_clients(), 6);
    EXPECT_EQ(corpus.eligible(), (std::vector<std::int32_t>{0, 1, 2, 3}));
    EXPECT_EQ(corpus.client_name(3), "person 3");
    for (const std::int32_t client : corpus.eligible()) {
        const auto refs = corpus.train_windows(client);
        EXPECT_EQ(corpus.n_train_windows(client), static_cast<std::int64_t>(refs.size()));
        std::int64_t masked = 0;
        std::int64_t tokens = 0;
        for (std::size_t s = 0; s < raw.sequence_client.size(); ++s) {
            if (raw.sequence_client[s] != client || raw.sequence_part[s] != 0) continue;
            tokens += raw.sequence_offset[s + 1] - raw.sequence_offset[s];
            masked +=
                std::count(raw.mask.begin() + raw.sequence_offset[s], raw.mask.begin() + raw.sequence_offset[s + 1], 1);
        }
        EXPECT_EQ(loss_tokens(refs), masked);
        EXPECT_EQ(corpus.client_size(client).n_train_tokens, tokens);
        EXPECT_EQ(corpus.client_size(client).n_train_sequences, 4);
        EXPECT_TRUE(std::ranges::is_sorted(refs, [](const WindowRef& a, const WindowRef& b) {
            return a.sequence != b.sequence ? a.sequence < b.sequence : a.window < b.window;
        }));
    }
}

TEST_F(CorpusTest, a_window_reads_what_its_reference_promises) {
    const RawCorpus raw = synthetic_corpus({});
    const Corpus corpus = open(raw, small_windows);
    for (const WindowRef& ref : corpus.train_windows(2)) {
        const WindowTokens tokens = corpus.read(ref);
        EXPECT_EQ(static_cast<std::int32_t>(tokens.inputs.size()), ref.rows);
        EXPECT_EQ(tokens.n_loss, ref.n_loss);
        const auto first = raw.sequence_offset[static_cast<std::size_t>(ref.sequence)] + ref.window * 6;
        EXPECT_TRUE(std::equal(tokens.inputs.begin(), tokens.inputs.end(), raw.ids.begin() + first));
    }
}

TEST_F(CorpusTest, held_out_people_never_train_in_any_partition) {
    const RawCorpus raw = synthetic_corpus({.n_clients = 12, .n_held_out = 4, .n_labels = 3});
    for (const PartitionKind kind :
         {PartitionKind::natural, PartitionKind::iid, PartitionKind::dirichlet, PartitionKind::quantity}) {
        CorpusOptions options = small_windows;
        options.partition = kind;
        options.partition_clients = 5;
        const Corpus corpus = open(raw, options);
        EXPECT_NO_THROW(corpus.check_no_leakage());
        std::vector<WindowRef> train;
        for (std::int64_t client = 0; client < corpus.n_clients(); ++client) {
            for (const WindowRef& ref : corpus.train_windows(client)) {
                train.push_back(ref);
                EXPECT_LT(raw.sequence_client[static_cast<std::size_t>(ref.sequence)], 8);
                EXPECT_EQ(raw.sequence_part[static_cast<std::size_t>(ref.sequence)], 0);
            }
        }
        EXPECT_EQ(sequences_in(train).size(), 32U) << "every training sequence is used";
        for (const Part part : {Part::valid, Part::test}) {
            const auto global = corpus.evaluation_windows(part);
            EXPECT_NO_THROW(check_disjoint(train, global));
            EXPECT_EQ(sequences_in(global).size(), 4U);
            for (const WindowRef& ref : global) {
                EXPECT_GE(raw.sequence_client[static_cast<std::size_t>(ref.sequence)], 8);
                EXPECT_EQ(raw.sequence_part[static_cast<std::size_t>(ref.sequence)], static_cast<int>(part));
            }
            for (std::int64_t client = 0; client < corpus.n_clients(); ++client) {
                EXPECT_NO_THROW(check_disjoint(train, corpus.client_evaluation_windows(client, part)));
            }
        }
    }
}

/// The synthetic corpus with groups: sequence s is of group s % n, and every seventh of none.
RawCorpus grouped_corpus(int n) {
    RawCorpus raw = synthetic_corpus({.n_clients = 12, .n_held_out = 2, .n_train = 9});
    for (int g = 0; g < n; ++g) raw.group_name.push_back("task " + std::to_string(g));
    for (std::size_t s = 0; s < raw.sequence_client.size(); ++s)
        raw.sequence_group.push_back(s % 7 == 0 ? -1 : static_cast<std::int32_t>(s) % n);
    return raw;
}

TEST_F(CorpusTest, dirichlet_goes_by_group_where_asked) {
    const RawCorpus raw = grouped_corpus(3);
    CorpusOptions options = small_windows;
    options.partition = PartitionKind::dirichlet;
    options.partition_clients = 40;
    options.dirichlet_alpha = 1e-5;  // each group sits with one client
    EXPECT_NE(error_of(raw, options, ExitCode::input).find("no sequence has a label"), std::string::npos);
    options.dirichlet_by_group = true;
    const Corpus corpus = open(raw, options);
    EXPECT_LE(corpus.eligible().size(), 4U);
    const ClassCounts counts = corpus.class_counts(1000);
    EXPECT_TRUE(counts.by_group);
    EXPECT_EQ(counts.names, (std::vector<std::string>{"task 0", "task 1", "task 2", "(none)"}));
    ASSERT_EQ(counts.counts.size(), 160U);
    for (std::size_t column = 0; column < 4; ++column) {
        int holders = 0;
        for (std::size_t client = 0; client < 40; ++client) holders += counts.counts[client * 4 + column] > 0 ? 1 : 0;
        EXPECT_EQ(holders, 1);
    }
    EXPECT_TRUE(corpus.class_counts(100).counts.empty()) << "too many to be looked at";
    const RawCorpus without = synthetic_corpus({});
    EXPECT_NE(error_of(without, options, ExitCode::input).find("--group-field"), std::string::npos);
}

TEST_F(CorpusTest, class_counts_are_of_the_training_sequences) {
    const RawCorpus raw = synthetic_corpus({.n_clients = 5, .n_held_out = 1, .n_train = 6, .n_labels = 3});
    const ClassCounts counts = open(raw, small_windows).class_counts(1000);
    EXPECT_FALSE(counts.by_group);
    ASSERT_EQ(counts.names, raw.label_name);
    std::vector<std::int32_t> expected(15, 0);
    for (std::size_t s = 0; s < raw.sequence_client.size(); ++s) {
        if (raw.sequence_part[s] != 0) continue;
        ++expected[static_cast<std::size_t>(raw.sequence_client[s] * 3 + raw.sequence_label[s])];
    }
    EXPECT_EQ(counts.counts, expected);
    EXPECT_TRUE(open(synthetic_corpus({}), small_windows).class_counts(1000).names.empty());
}

TEST_F(CorpusTest, the_hash_of_a_partition_follows_its_rule_and_seed) {
    const RawCorpus raw = synthetic_corpus({.n_clients = 12, .n_held_out = 4, .n_labels = 3});
    std::set<std::string> hashes;
    for (const PartitionKind kind :
         {PartitionKind::natural, PartitionKind::iid, PartitionKind::dirichlet, PartitionKind::quantity}) {
        for (const std::uint64_t seed : {1U, 2U}) {
            CorpusOptions options = small_windows;
            options.partition = kind;
            options.partition_clients = 5;
            options.seed_partition = seed;
            const std::string hash = open(raw, options).partition_sha256();
            EXPECT_EQ(hash.size(), 64U);
            EXPECT_EQ(hash, open(raw, options).partition_sha256());
            hashes.insert(hash);
        }
    }
    EXPECT_EQ(hashes.size(), 7U) << "the seed plays no part in the natural one";
}

TEST_F(CorpusTest, evaluating_on_training_data_is_caught) {
    const Corpus corpus = open(synthetic_corpus({}), small_windows);
    EXPECT_THROW((void)corpus.evaluation_windows(Part::train), Error);
    EXPECT_THROW((void)corpus.client_evaluation_windows(0, Part::train), Error);
    const auto train = corpus.train_windows(0);
    auto evaluation = corpus.evaluation_windows(Part::valid);
    EXPECT_NO_THROW(check_disjoint(train, evaluation));
    // Another window of the same sequence leaks too: it shows the same conversation.
    evaluation.push_back({.sequence = train.front().sequence, .window = 999, .rows = 1, .n_loss = 1});
    EXPECT_THROW(check_disjoint(train, evaluation), Error);
}

TEST_F(CorpusTest, the_evaluation_subset_is_nested_and_fixed) {
    const Corpus corpus = open(synthetic_corpus({.n_clients = 10, .n_held_out = 8, .n_valid = 5}), small_windows);
    const auto all = corpus.evaluation_windows(Part::valid);
    const auto ten = corpus.evaluation_windows(Part::valid, 10);
    const auto twenty = corpus.evaluation_windows(Part::valid, 20);
    ASSERT_GT(all.size(), 20U);
    EXPECT_EQ(ten.size(), 10U);
    EXPECT_EQ(ten, corpus.evaluation_windows(Part::valid, 10));
    EXPECT_NE(ten, corpus.evaluation_windows(Part::valid, 10, 1));
    EXPECT_EQ(all, corpus.evaluation_windows(Part::valid, 100000));
    const auto position = [&](const WindowRef& ref) { return std::ranges::find(all, ref) - all.begin(); };
    EXPECT_TRUE(std::ranges::is_sorted(ten, {}, position));
    for (const WindowRef& ref : ten) EXPECT_NE(std::ranges::find(twenty, ref), twenty.end());
}

TEST_F(CorpusTest, min_windows_counts_by_the_masks) {
    const RawCorpus raw = synthetic_corpus({.n_clients = 40, .n_held_out = 5, .n_train = 3});
    const Corpus all = open(raw, small_windows);
    for (const PartitionKind kind : {PartitionKind::natural, PartitionKind::iid}) {
        CorpusOptions options = small_windows;
        options.partition = kind;
        options.partition_clients = 33;
        const Corpus reference = open(raw, options);
        options.min_windows = 9;
        const Corpus corpus = open(raw, options);
        std::vector<std::int32_t> expected;
        for (std::int64_t c = 0; c < reference.n_clients(); ++c) {
            EXPECT_EQ(corpus.n_train_windows(c), static_cast<std::int64_t>(reference.train_windows(c).size()));
            if (reference.n_train_windows(c) >= 9) expected.push_back(static_cast<std::int32_t>(c));
        }
        EXPECT_EQ(corpus.eligible(), expected);
        EXPECT_GT(expected.size(), 2U);
        EXPECT_LT(expected.size(), reference.eligible().size());
    }
}

TEST_F(CorpusTest, max_windows_keeps_the_first) {
    CorpusOptions options = small_windows;
    const RawCorpus raw = synthetic_corpus({});
    const auto all = open(raw, options).train_windows(1);
    options.max_windows_per_client = 3;
    const auto few = open(raw, options).train_windows(1);
    options.min_windows = 4;  // counted before the cut
    const Corpus both = open(raw, options);
    EXPECT_EQ(few, std::vector<WindowRef>(all.begin(), all.begin() + 3));
    EXPECT_EQ(both.n_train_windows(1), 3);
    EXPECT_EQ(both.eligible().size(), 4U);
}

TEST_F(CorpusTest, loss_tokens_of_clients_are_those_of_their_windows_with_and_without_counts_in_the_file) {
    RawCorpus raw = synthetic_corpus({.n_clients = 20, .n_held_out = 3});
    for (const bool counted : {false, true}) {
        if (counted) raw.count_losses();
        for (const PartitionKind kind : {PartitionKind::natural, PartitionKind::iid}) {
            for (const std::int64_t most : {0, 3}) {
                CorpusOptions options = small_windows;
                options.partition = kind;
                options.partition_clients = 50;
                options.min_windows = 2;
                options.max_windows_per_client = most;
                const Corpus corpus = open(raw, options);
                std::vector<std::int64_t> expected(static_cast<std::size_t>(corpus.n_clients()), 0);
                for (const std::int32_t c : corpus.eligible())
                    expected[static_cast<std::size_t>(c)] = loss_tokens(corpus.train_windows(c));
                EXPECT_EQ(corpus.client_loss_tokens(), expected);
                EXPECT_LT(corpus.eligible().size(), expected.size());
                EXPECT_EQ(corpus.client_names({1, 3}),
                          (std::vector<std::string>{corpus.client_name(1), corpus.client_name(2)}));
            }
        }
    }
}

TEST_F(CorpusTest, a_wrong_count_of_loss_tokens_is_noticed) {
    RawCorpus raw = synthetic_corpus({});
    raw.count_losses();
    ++raw.sequence_n_loss[0];
    const Corpus corpus = open(raw, small_windows);
    EXPECT_THROW((void)corpus.train_windows(0), Error);
    raw.sequence_n_loss[0] = 1000;
    EXPECT_NE(error_of(raw, small_windows, ExitCode::input).find("1000 loss tokens"), std::string::npos);
}

TEST_F(CorpusTest, clients_without_a_loss_token_never_take_part) {
    RawCorpus raw;
    raw.set_vocabulary(10);
    raw.add_client("speaks");
    raw.add_sequence(0, {1, 2, 3}, {0, 0, 1});
    raw.add_client("listens");
    raw.add_sequence(0, {1, 2, 3}, {0, 0, 0});
    raw.add_client("only evaluates");
    raw.add_sequence(1, {1, 2, 3}, {0, 0, 1});
    raw.add_client("nothing");
    raw.add_client("held out", true);
    raw.add_sequence(1, {1, 2}, {0, 1});
    raw.add_client("prompt unknown");
    raw.add_sequence(0, {1, 2, 3}, {0, 1, 1});
    raw.sequence_prompt_length.back() = 0;
    for (const std::int64_t min_windows : {0, 1}) {
        const Corpus corpus = open(raw, {.min_windows = min_windows});
        EXPECT_EQ(corpus.eligible(), (std::vector<std::int32_t>{0, 5}));
        EXPECT_EQ(corpus.n_train_windows(1), 0);
        EXPECT_EQ(corpus.n_train_windows(3), 0);
        EXPECT_NO_THROW(corpus.check_no_leakage());
    }
}

TEST_F(CorpusTest, a_wrong_prompt_length_is_noticed) {
    RawCorpus raw = synthetic_corpus({});
    const auto unmasked = std::find(raw.mask.begin() + 1, raw.mask.end(), 0) - raw.mask.begin();
    raw.sequence_prompt_length[0] = static_cast<std::int32_t>(std::max<std::ptrdiff_t>(unmasked, 1));
    ASSERT_LT(raw.sequence_prompt_length[0], raw.sequence_offset[1]);
    const Corpus corpus = open(raw, small_windows);
    EXPECT_THROW((void)corpus.train_windows(0), Error);
}

TEST_F(CorpusTest, iid_and_dirichlet_deal_every_part) {
    const RawCorpus raw = synthetic_corpus({.n_clients = 30, .n_held_out = 5, .n_labels = 3});
    for (const PartitionKind kind : {PartitionKind::iid, PartitionKind::dirichlet}) {
        CorpusOptions options = small_windows;
        options.partition = kind;
        options.partition_clients = 4;
        const Corpus corpus = open(raw, options);
        EXPECT_EQ(corpus.n_clients(), 4);
        EXPECT_EQ(corpus.client_name(2), std::string(partition_name(kind)) + "-000002");
        std::size_t train = 0;
        std::size_t valid = 0;
        for (std::int64_t c = 0; c < 4; ++c) {
            train += sequences_in(corpus.train_windows(c)).size();
            valid += sequences_in(corpus.client_evaluation_windows(c, Part::valid)).size();
        }
        const auto sizes = corpus.client_sizes();
        for (std::int64_t c = 0; c < 4; ++c) {
            EXPECT_EQ(sizes[static_cast<std::size_t>(c)].n_train_sequences, corpus.client_size(c).n_train_sequences);
            EXPECT_EQ(sizes[static_cast<std::size_t>(c)].n_train_tokens, corpus.client_size(c).n_train_tokens);
        }
        EXPECT_EQ(train, 100U);
        EXPECT_EQ(valid, 25U);
    }
}

TEST_F(CorpusTest, classification_puts_the_label_in_place_of_the_last_token) {
    RawCorpus raw;
    raw.set_vocabulary(9);
    raw.label_name = {"no", "yes"};
    raw.add_client("a");
    raw.add_sequence(0, {3, 4, 5, 2}, {0, 0, 0, 1}, 1);
    raw.add_sequence(0, {6, 2}, {0, 1}, 0);
    raw.add_client("b", /*held_out=*/true);
    raw.add_sequence(1, {7, 8, 2}, {0, 0, 1}, 1);
    const CorpusOptions options{.sequence_length = 3, .overlap = 0, .classification = true};
    const Corpus corpus = open(raw, options);
    const auto windows = corpus.train_windows(0);
    ASSERT_EQ(windows.size(), 2U);
    const WindowTokens first = corpus.read(windows[0]);
    EXPECT_EQ(first.inputs, (std::vector<std::int32_t>{3, 4, 5}));
    EXPECT_EQ(first.targets, (std::vector<std::int32_t>{-1, -1, 1}));
    EXPECT_EQ(corpus.read(windows[1]).targets, std::vector<std::int32_t>{0});
    EXPECT_EQ(corpus.read(corpus.evaluation_windows(Part::valid).front()).targets, (std::vector<std::int32_t>{-1, 1}));

    const auto refused = [&](RawCorpus broken, const char* text) {
        const Corpus other = open(broken, options);
        try {
            (void)other.train_windows(0);
            ADD_FAILURE() << "not refused: " << text;
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
        }
    };
    RawCorpus unlabelled = raw;
    unlabelled.sequence_label[1] = -1;
    refused(unlabelled, "sequence 1 has no label");
    RawCorpus elsewhere = raw;
    elsewhere.mask[1] = 1;
    elsewhere.sequence_prompt_length[0] = 3;
    refused(elsewhere, "sequence 0 carries loss on other tokens");
    RawCorpus longer;
    longer.set_vocabulary(9);
    longer.label_name = raw.label_name;
    longer.add_client("a");
    longer.add_sequence(0, {3, 4, 5, 6, 2}, {0, 0, 0, 0, 1}, 1);
    refused(longer, "sequence 0 has 4 tokens, more than data.sequence_length = 3");
}

TEST_F(CorpusTest, bad_options_name_their_key) {
    const RawCorpus raw = synthetic_corpus({});
    const auto names = [](const std::string& text, const char* word) {
        EXPECT_NE(text.find(word), std::string::npos) << text;
    };
    names(error_of(raw, {.partition = PartitionKind::iid}, ExitCode::usage), "data.partition_clients");
    names(error_of(raw, {.partition = PartitionKind::dirichlet, .partition_clients = 3}, ExitCode::input),
          "no sequence has a label");
    names(error_of(raw, {.overlap = 128}, ExitCode::usage), "data.overlap");
    names(error_of(raw, {.min_windows = -1}, ExitCode::usage), "data.min_windows");
    names(error_of(raw, {.max_windows_per_client = -1}, ExitCode::usage), "data.max_windows_per_client");
    names(error_of(synthetic_corpus({.n_labels = 2}),
                   {.partition = PartitionKind::dirichlet, .partition_clients = 3, .dirichlet_alpha = 0},
                   ExitCode::usage),
          "data.dirichlet_alpha");
    EXPECT_THROW((void)open(raw, {}).train_windows(6), Error);
}

}  // namespace
}  // namespace hetlora
