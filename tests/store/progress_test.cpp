// progress.jsonl carries every value of a round; status.json is replaced as a whole.
#include "hetlora/store/progress.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "make_corpus.hpp"
#include "run_log_sample.hpp"

namespace hetlora {
namespace {

using test::sample_header;
using test::sample_round;
using test::TemporaryFolder;

TEST(Progress, a_line_gives_every_value_back) {
    RoundRecord record = sample_round(3);
    record.round.eval_loss = 0.1 + 0.2;  // needs all 17 digits
    record.round.train_loss = std::numeric_limits<double>::infinity();
    const auto metrics = sample_header().extra_metrics;

    const std::string line = progress_line(record, metrics);
    const RoundRecord back = parse_progress_line(line, metrics, "test");

    EXPECT_EQ(line.find('\n'), std::string::npos);
    EXPECT_NE(line.find(R"("train_loss":null)"), std::string::npos) << line;
    EXPECT_NE(line.find(R"("loss_last":null)"), std::string::npos) << "participation of the dropped client: " << line;
    EXPECT_EQ(back.round.eval_loss, 0.1 + 0.2);
    EXPECT_TRUE(std::isnan(back.round.train_loss));
    EXPECT_EQ(progress_line(back, metrics), line);
    EXPECT_EQ(back.participation.size(), 3U);
    EXPECT_EQ(back.participation[2].round, 3);
    EXPECT_TRUE(back.participation[2].dropped);
}

TEST(Progress, the_log_can_be_made_anew_from_it) {
    const TemporaryFolder folder;
    const RunLogHeader header = sample_header();
    RunLog log = RunLog::create(folder / "run.h5", header);
    ProgressFile progress = ProgressFile::create(folder / "progress.jsonl", header.extra_metrics);
    for (std::int64_t round = 0; round <= 4; ++round) {
        test::append(log, sample_round(round));
        progress.append(sample_round(round));
    }
    log.close();

    RunLog anew = RunLog::create(folder / "anew.h5", header);
    for (const RoundRecord& record : read_progress(folder / "progress.jsonl", header.extra_metrics)) {
        test::append(anew, record);
    }
    anew.close();

    EXPECT_EQ(compare_run_logs(RunLogReader::open(folder / "run.h5"), RunLogReader::open(folder / "anew.h5"), true),
              std::vector<std::string>{});
}

TEST(Progress, reopening_cuts_lines_and_an_unfinished_line_is_left_out) {
    const TemporaryFolder folder;
    const std::filesystem::path path = folder / "progress.jsonl";
    {
        ProgressFile progress = ProgressFile::create(path);
        for (std::int64_t round = 0; round <= 4; ++round) progress.append(sample_round(round));
    }
    std::ofstream(path, std::ios::app) << R"({"round":5,"train)";
    EXPECT_EQ(read_progress(path, {}).size(), 5U);

    ProgressFile progress = ProgressFile::reopen(path, 3);
    progress.append(sample_round(3));

    const std::vector<RoundRecord> records = read_progress(path, {});
    ASSERT_EQ(records.size(), 4U);
    EXPECT_EQ(records[3].round.round, 3);
    EXPECT_THROW((void)ProgressFile::reopen(path, 9), Error);
    EXPECT_THROW((void)ProgressFile::create(path), Error);
}

TEST(Progress, a_bad_line_is_an_input_error_with_its_number) {
    const TemporaryFolder folder;
    std::ofstream(folder / "progress.jsonl") << progress_line(sample_round(0), {}) << "\n{\"round\": 1}\n";

    try {
        (void)read_progress(folder / "progress.jsonl", {});
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::input);
        EXPECT_NE(std::string(error.what()).find("progress.jsonl, line 2"), std::string::npos) << error.what();
    }
}

TEST(Progress, status_survives_and_is_replaced) {
    const TemporaryFolder folder;
    ::setenv("SLURM_ARRAY_JOB_ID", "77", 1);
    ::setenv("SLURM_ARRAY_TASK_ID", "3", 1);
    RunStatus status = status_of_this_process();
    ::unsetenv("SLURM_ARRAY_JOB_ID");
    ::unsetenv("SLURM_ARRAY_TASK_ID");
    status.run_id = "demo";
    status.round = 3;
    status.rounds = 10;
    write_status(folder / "status.json", status);
    status.state = RunState::failed;
    status.message = "client 3: \"non-finite\" \xff";
    status.eval_loss = not_measured;
    write_status(folder / "status.json", status);

    const RunStatus back = read_status(folder / "status.json");

    EXPECT_EQ(back.state, RunState::failed);
    EXPECT_EQ(back.round, 3);
    EXPECT_EQ(back.rounds, 10);
    EXPECT_EQ(back.job_id, "77_3");
    EXPECT_GT(back.pid, 0);
    EXPECT_FALSE(back.host.empty());
    EXPECT_TRUE(std::isnan(back.eval_loss));
    EXPECT_EQ(back.updated_utc.size(), 20U);
    EXPECT_NE(read_text_file(folder / "status.json").find("\"eval_loss\": null"), std::string::npos);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "no temporary file stays";
}

TEST(Progress, a_foreign_status_is_an_input_error) {
    const TemporaryFolder folder;
    std::ofstream(folder / "status.json") << "{}";

    EXPECT_THROW((void)read_status(folder / "status.json"), Error);
    EXPECT_THROW(write_status(folder / "no/status.json", {}), Error);
}

}  // namespace
}  // namespace hetlora
