// A run's two copies of its rounds: either one makes the other anew.
#include "hetlora/store/run_recovery.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "hetlora/base/file_io.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "make_corpus.hpp"
#include "run_log_sample.hpp"

namespace hetlora {
namespace {

using test::sample_header;
using test::sample_round;
using test::TemporaryFolder;

/// A folder with `n` committed rounds in both copies.
RunFolder folder_with(const TemporaryFolder& where, std::int64_t n) {
    RunFolder folder = RunFolder::create(where / "run");
    const RunLogHeader header = sample_header();
    RunLog log = RunLog::create(folder.run_log(), header);
    ProgressFile progress = ProgressFile::create(folder.progress(), header.extra_metrics);
    for (std::int64_t round = 0; round < n; ++round) {
        const RoundRecord record = sample_round(round);
        log.append_round(record.round, record.participation, record.slots);
        progress.append(record);
    }
    log.close();
    return folder;
}

/// Appends the rounds from `from` to `n` and compares with an uninterrupted log.
void go_on_and_compare(const TemporaryFolder& where, const RunFolder& folder, std::int64_t from, std::int64_t n) {
    const CommittedRounds committed = read_committed_rounds(folder, sample_header().extra_metrics);
    ReopenedLog reopened = reopen_log(folder, committed, from, sample_header());
    for (std::int64_t round = from; round < n; ++round) {
        const RoundRecord record = sample_round(round);
        reopened.log.append_round(record.round, record.participation, record.slots);
        reopened.progress.append(record);
    }
    reopened.log.close();
    const TemporaryFolder other;
    const RunFolder whole = folder_with(other, n);
    EXPECT_EQ(compare_run_logs(RunLogReader::open(folder.run_log()), RunLogReader::open(whole.run_log()), true),
              std::vector<std::string>{});
    EXPECT_EQ(read_text_file(folder.progress()), read_text_file(whole.progress()));
    (void)where;
}

TEST(RunRecovery, both_copies_are_cut_and_gone_on_with) {
    const TemporaryFolder where;
    const RunFolder folder = folder_with(where, 6);
    EXPECT_EQ(read_committed_rounds(folder, sample_header().extra_metrics).records.size(), 6U);
    go_on_and_compare(where, folder, 4, 7);
    EXPECT_FALSE(std::filesystem::exists(folder.run_log().string() + ".damaged"));
}

TEST(RunRecovery, a_damaged_log_is_made_anew) {
    for (const std::uintmax_t bytes : {std::uintmax_t{0}, std::uintmax_t{100}, std::uintmax_t{9000}}) {
        const TemporaryFolder where;
        const RunFolder folder = folder_with(where, 6);
        std::filesystem::resize_file(folder.run_log(), bytes);
        const CommittedRounds committed = read_committed_rounds(folder, sample_header().extra_metrics);
        EXPECT_NE(committed.log_damage, "") << bytes;
        EXPECT_EQ(committed.records.size(), 6U) << bytes;
        go_on_and_compare(where, folder, 5, 7);
        EXPECT_TRUE(std::filesystem::exists(folder.run_log().string() + ".damaged"));
    }
}

TEST(RunRecovery, a_log_that_lost_rounds_is_made_anew) {
    const TemporaryFolder where;
    const RunFolder folder = folder_with(where, 6);
    { const RunLog shorter = RunLog::reopen(folder.run_log(), 3); }
    EXPECT_NE(read_committed_rounds(folder, sample_header().extra_metrics).log_damage, "");
    go_on_and_compare(where, folder, 6, 7);
}

TEST(RunRecovery, a_missing_or_torn_second_copy_is_made_anew) {
    for (const bool missing : {true, false}) {
        const TemporaryFolder where;
        const RunFolder folder = folder_with(where, 6);
        if (missing) {
            std::filesystem::remove(folder.progress());
        } else {
            std::filesystem::resize_file(folder.progress(), std::filesystem::file_size(folder.progress()) / 2);
        }
        EXPECT_LT(read_committed_rounds(folder, sample_header().extra_metrics).rounds_in_progress, 6);
        go_on_and_compare(where, folder, 6, 8);
    }
}

TEST(RunRecovery, garbage_in_the_second_copy_counts_up_to_there) {
    const TemporaryFolder where;
    const RunFolder folder = folder_with(where, 3);
    std::ofstream(folder.progress(), std::ios::app) << "{\"round\": nonsense}\n";
    EXPECT_EQ(read_committed_rounds(folder, sample_header().extra_metrics).rounds_in_progress, 3);
    go_on_and_compare(where, folder, 3, 5);
}

}  // namespace
}  // namespace hetlora
