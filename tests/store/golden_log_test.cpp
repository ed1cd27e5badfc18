// Logs of every released schema are read for ever: tests/data/golden/, made by the writers of their time.
#include <gtest/gtest.h>

#include <cstdlib>

#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "run_log_sample.hpp"

namespace hetlora {
namespace {

struct Golden {
    const char* name;
    bool metrics;
    bool layers;
};

class GoldenLog : public testing::TestWithParam<Golden> {
protected:
    [[nodiscard]] static std::filesystem::path folder() {
        return std::filesystem::path(std::getenv("HETLORA_SOURCE_DIR")) / "tests/data/golden/schema1" / GetParam().name;
    }
    [[nodiscard]] static std::vector<ExtraMetric> metrics() {
        return GetParam().metrics ? test::sample_header().extra_metrics : std::vector<ExtraMetric>();
    }
    /// What the writer of schema 1 was given, as a line of text.
    [[nodiscard]] static std::string expected(std::int64_t round) {
        RoundRecord record = test::sample_round(round);
        if (GetParam().layers && round > 0 && round % 2 == 0) record.layers = test::sample_layers(round);
        return progress_line(record, metrics());
    }
};

TEST_P(GoldenLog, is_read_as_it_was_written) {
    if (std::getenv("HETLORA_SOURCE_DIR") == nullptr) GTEST_SKIP() << "HETLORA_SOURCE_DIR is not set";
    const RunLogReader log = RunLogReader::open(folder() / "run.h5");
    EXPECT_EQ(log.run_id(), "sample");
    ASSERT_EQ(log.committed_rounds(), 5);
    EXPECT_EQ(log.rank_max(), 4);
    std::vector<RoundRecord> records(5);
    const auto rounds = log.rounds();
    const auto slots = log.slots();
    for (std::size_t i = 0; i < 5; ++i) {
        records[i].round = rounds[i];
        records[i].slots = slots[i];
    }
    for (const ParticipationRow& row : log.participation()) {
        records[static_cast<std::size_t>(row.round)].participation.push_back(row);
    }
    for (const LayerRound& one : log.layers()) records[static_cast<std::size_t>(one.round)].layers = one.layers;
    for (std::int64_t round = 0; round < 5; ++round) {
        EXPECT_EQ(progress_line(records[static_cast<std::size_t>(round)], metrics()), expected(round));
    }
    EXPECT_EQ(log.extra_metrics().size(), metrics().size());
    EXPECT_EQ(log.layer_names().size(), GetParam().layers ? 2u : 0u);
    ASSERT_EQ(log.clients().size(), 3u);
    EXPECT_EQ(log.clients()[1].name, "client 1 ü");
    EXPECT_EQ(log.clients()[1].n_train_tokens, 1001);
    EXPECT_EQ(log.provenance().texts.at("git_commit"), "0123abcd");
    EXPECT_EQ(log.provenance().integers.at("threads"), 2);
}

TEST_P(GoldenLog, has_a_second_copy_that_is_read) {
    if (std::getenv("HETLORA_SOURCE_DIR") == nullptr) GTEST_SKIP() << "HETLORA_SOURCE_DIR is not set";
    const auto records = read_progress(folder() / "progress.jsonl", metrics());
    ASSERT_EQ(records.size(), 5u);
    for (std::int64_t round = 0; round < 5; ++round) {
        EXPECT_EQ(progress_line(records[static_cast<std::size_t>(round)], metrics()), expected(round));
    }
}

INSTANTIATE_TEST_SUITE_P(Schema1, GoldenLog,
                         testing::Values(Golden{"plain", false, false}, Golden{"metric", true, false},
                                         Golden{"layers", false, true}),
                         [](const auto& golden) { return std::string(golden.param.name); });

}  // namespace
}  // namespace hetlora
