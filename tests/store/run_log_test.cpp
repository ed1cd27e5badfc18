// run.h5: values survive, rounds are committed as a whole, later rows can be cut off, wrong use is refused.
#include "hetlora/store/run_log.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/hdf5_handle.hpp"
#include "hetlora/store/run_log_columns.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "make_corpus.hpp"
#include "run_log_sample.hpp"
#include "thrown.hpp"

namespace hetlora {
namespace {

using test::append;
using test::code_of;
using test::sample_header;
using test::sample_round;
using test::TemporaryFolder;

void write_log(const std::filesystem::path& path, std::int64_t rounds) {
    RunLog log = RunLog::create(path, sample_header());
    for (std::int64_t round = 0; round <= rounds; ++round) append(log, sample_round(round));
    log.close();
}

TEST(RunLog, every_value_survives) {
    const TemporaryFolder folder;
    write_log(folder / "run.h5", 4);

    const RunLogReader log = RunLogReader::open(folder / "run.h5");

    EXPECT_EQ(log.run_id(), "sample");
    EXPECT_EQ(log.creator_version(), "0.1.0");
    EXPECT_EQ(log.committed_rounds(), 5);
    EXPECT_EQ(log.rank_max(), 4);
    EXPECT_EQ(log.created_utc().size(), 20U);
    const std::vector<RoundRow> rounds = log.rounds();
    const std::vector<SlotRow> slots = log.slots();
    const std::vector<ParticipationRow> events = log.participation();
    std::size_t event = 0;
    for (std::int64_t t = 0; t <= 4; ++t) {
        const RoundRecord expected = sample_round(t);
        const auto i = static_cast<std::size_t>(t);
        for (const Column<RoundRow>& column : round_columns()) {
            if (column.is_float()) {
                const double want = column.number(expected.round);
                const double got = column.number(rounds[i]);
                EXPECT_TRUE(want == got || (std::isnan(want) && std::isnan(got))) << column.name << " of round " << t;
            } else {
                EXPECT_EQ(column.integer(rounds[i]), column.integer(expected.round))
                    << column.name << " of round " << t;
            }
        }
        EXPECT_EQ(rounds[i].extra_metrics, expected.round.extra_metrics);
        EXPECT_EQ(slots[i].energy, expected.slots.energy);
        EXPECT_EQ(slots[i].n_contributors, expected.slots.n_contributors);
        for (const ParticipationRow& row : expected.participation) {
            EXPECT_EQ(events[event].round, row.round);
            EXPECT_EQ(events[event].client, row.client);
            EXPECT_EQ(events[event].weight, row.weight);
            EXPECT_EQ(events[event].dropped, row.dropped);
            EXPECT_EQ(std::isnan(events[event].loss_last), row.dropped);
            ++event;
        }
    }
    EXPECT_EQ(event, events.size());
    EXPECT_EQ(log.clients()[1].name, "client 1 ü");
    EXPECT_EQ(log.clients()[2].initial_lora_rank, 3);
    EXPECT_TRUE(std::isnan(log.clients()[0].eval_loss_final));
    EXPECT_EQ(log.provenance().texts.at("git_commit"), "0123abcd");
    EXPECT_EQ(log.provenance().integers.at("git_dirty"), 1);
    EXPECT_EQ(log.extra_metrics()[0].name, "rouge");
    EXPECT_EQ(log.extra_metrics()[1].units, "bit");
}

TEST(RunLog, every_variable_has_units_and_long_name) {
    const TemporaryFolder folder;
    write_log(folder / "run.h5", 1);

    const RunLogReader log = RunLogReader::open(folder / "run.h5");

    for (const std::string& group : log.groups()) {
        for (const std::string& name : log.column_names(group)) {
            const ColumnData column = log.column(group, name);
            EXPECT_FALSE(column.units.empty()) << group << "/" << name;
            EXPECT_FALSE(column.long_name.empty()) << group << "/" << name;
        }
    }
    EXPECT_EQ(log.groups(), (std::vector<std::string>{"rounds", "slots", "participation", "clients"}));
}

TEST(RunLog, final_client_losses_and_provenance_can_be_added) {
    const TemporaryFolder folder;
    RunLog log = RunLog::create(folder / "run.h5", sample_header());
    log.set_client_final(std::vector<double>{3, 4, not_measured}, std::vector<double>{1, 2, not_measured});
    log.add_provenance(
        {.texts = {{"finished_utc", "2026-01-31T00:00:00Z"}}, .integers = {{"resumes", 2}, {"threads", 4}}});
    log.close();

    const RunLogReader reader = RunLogReader::open(folder / "run.h5");

    EXPECT_EQ(reader.clients()[1].eval_loss_base, 4);
    EXPECT_EQ(reader.clients()[1].eval_loss_final, 2);
    EXPECT_TRUE(std::isnan(reader.clients()[2].eval_loss_final));
    EXPECT_EQ(reader.provenance().integers.at("threads"), 4);
    EXPECT_EQ(reader.provenance().integers.at("resumes"), 2);
}

TEST(RunLog, reopening_cuts_and_goes_on_to_the_same_log) {
    const TemporaryFolder folder;
    write_log(folder / "whole.h5", 6);
    write_log(folder / "resumed.h5", 5);

    RunLog log = RunLog::reopen(folder / "resumed.h5", 3);
    EXPECT_EQ(log.committed_rounds(), 3);
    for (std::int64_t round = 3; round <= 6; ++round) append(log, sample_round(round));
    log.close();

    const RunLogReader whole = RunLogReader::open(folder / "whole.h5");
    const RunLogReader resumed = RunLogReader::open(folder / "resumed.h5");
    EXPECT_EQ(compare_run_logs(whole, resumed, true), std::vector<std::string>{});
}

TEST(RunLog, rows_of_an_unfinished_append_are_neither_read_nor_kept) {
    const TemporaryFolder folder;
    write_log(folder / "run.h5", 3);
    {  // what a crash between the two flushes leaves: rows of round 4, some of them still empty
        hdf5::File file = hdf5::File::open_write(folder / "run.h5");
        for (const char* name : {"round", "client", "weight"}) {
            hdf5::Dataset data = file.open_dataset(std::string("participation/") + name);
            data.resize_rows(data.rows() + 2);
        }
        hdf5::Dataset rounds = file.open_dataset("rounds/round");
        rounds.append<std::int64_t>(std::vector<std::int64_t>{4});
    }
    EXPECT_EQ(RunLogReader::open(folder / "run.h5").participation().size(), 6U);

    RunLog log = RunLog::reopen(folder / "run.h5", 4);
    append(log, sample_round(4));
    log.close();
    write_log(folder / "whole.h5", 4);

    EXPECT_EQ(compare_run_logs(RunLogReader::open(folder / "whole.h5"), RunLogReader::open(folder / "run.h5"), true),
              std::vector<std::string>{});
}

TEST(RunLog, a_running_log_can_be_read) {
    const TemporaryFolder folder;
    RunLog log = RunLog::create(folder / "run.h5", sample_header());
    append(log, sample_round(0));
    append(log, sample_round(1));

    EXPECT_EQ(RunLogReader::open(folder / "run.h5").committed_rounds(), 2);
    append(log, sample_round(2));
    EXPECT_EQ(RunLogReader::open(folder / "run.h5").rounds()[2].tokens, 200);
}

TEST(RunLog, comparison_names_the_first_difference_of_each_column) {
    const TemporaryFolder folder;
    write_log(folder / "a.h5", 2);
    RunLog log = RunLog::create(folder / "b.h5", sample_header());
    for (std::int64_t round = 0; round <= 2; ++round) {
        RoundRecord record = sample_round(round);
        if (round == 2) record.round.eval_loss = 1.5;
        if (round == 2) record.slots.energy[3] = -0.25;
        record.round.t_round_s = 99;  // may differ
        append(log, record);
    }
    log.close();

    const std::vector<std::string> lines =
        compare_run_logs(RunLogReader::open(folder / "a.h5"), RunLogReader::open(folder / "b.h5"));

    EXPECT_EQ(lines, (std::vector<std::string>{"rounds/eval_loss, row 2: 2.8 and 1.5",
                                               "slots/energy, row 2, column 3: 0.25 and -0.25"}));
}

TEST(RunLog, wrong_rows_are_refused_and_nothing_is_committed) {
    const TemporaryFolder folder;
    RunLog log = RunLog::create(folder / "run.h5", sample_header());
    append(log, sample_round(0));
    RoundRecord short_slots = sample_round(1);
    short_slots.slots.energy.pop_back();
    RoundRecord other_round = sample_round(1);
    other_round.participation[0].round = 2;
    RoundRecord other_client = sample_round(1);
    other_client.participation[0].client = 3;
    RoundRecord metrics = sample_round(1);
    metrics.round.extra_metrics.pop_back();

    EXPECT_EQ(code_of([&] { append(log, sample_round(2)); }, {"1 is next"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { append(log, sample_round(0)); }, {"1 is next"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { append(log, short_slots); }, {"3 energies"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { append(log, other_round); }, {"round 2"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { append(log, other_client); }, {"client 3"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { append(log, metrics); }, {"1 further metrics"}), ExitCode::bug);
    EXPECT_EQ(code_of([&] { log.set_client_final({}, {}); }), ExitCode::bug);
    EXPECT_EQ(log.committed_rounds(), 1);
    append(log, sample_round(1));
    log.close();
    EXPECT_EQ(code_of([&] { append(log, sample_round(2)); }, {"closed"}), ExitCode::bug);
}

TEST(RunLog, existing_foreign_newer_and_short_logs_are_refused) {
    const TemporaryFolder folder;
    write_log(folder / "run.h5", 2);
    write_log(folder / "newer.h5", 0);
    hdf5::File::open_write(folder / "newer.h5").write_attribute("schema_version", 2);
    hdf5::File::create(folder / "other.h5").close();

    EXPECT_EQ(code_of([&] { (void)RunLog::create(folder / "run.h5", sample_header()); }, {"exists"}),
              ExitCode::environment);
    EXPECT_EQ(code_of([&] { (void)RunLog::reopen(folder / "run.h5", 4); }, {"3 committed"}), ExitCode::input);
    EXPECT_EQ(code_of([&] { (void)RunLogReader::open(folder / "other.h5"); }, {"not the log of a run"}),
              ExitCode::input);
    EXPECT_EQ(code_of([&] { (void)RunLogReader::open(folder / "newer.h5"); }, {"schema version 2"}), ExitCode::input);
    EXPECT_EQ(code_of([&] { (void)RunLogReader::open(folder / "none.h5"); }, {"no such file"}), ExitCode::input);
}

TEST(RunLog, a_half_made_file_is_removed) {
    const TemporaryFolder folder;
    RunLogHeader header = sample_header();
    header.extra_metrics.push_back({"loss", "1", "a standard column"});

    EXPECT_EQ(code_of([&] { (void)RunLog::create(folder / "run.h5", header); }, {"'loss'"}), ExitCode::bug);

    EXPECT_FALSE(std::filesystem::exists(folder / "run.h5"));
}

TEST(RunLog, works_without_clients_or_participations) {
    const TemporaryFolder folder;
    RunLog log = RunLog::create(folder / "run.h5", sample_header(1, 0));
    append(log, sample_round(0, 1));
    log.close();

    const RunLogReader reader = RunLogReader::open(folder / "run.h5");

    EXPECT_TRUE(reader.clients().empty());
    EXPECT_TRUE(reader.participation().empty());
    EXPECT_EQ(reader.rounds().size(), 1U);
}

TEST(RunLog, its_page_documents_every_column) {
    const char* root = std::getenv("HETLORA_SOURCE_DIR");
    if (root == nullptr) GTEST_SKIP() << "HETLORA_SOURCE_DIR is not set";
    const std::string page = read_text_file(std::filesystem::path(root) / "docs/run-log.md");
    const auto expect_line = [&page](std::string_view name, std::string_view type, std::string_view units,
                                     std::string_view meaning, bool any_mpi_ranks) {
        const std::string line =
            fmt::format("| `{}` | {} | {} | {} |{}", name, type, units, meaning, any_mpi_ranks ? " yes |" : " no |");
        EXPECT_NE(page.find(line), std::string::npos) << "docs/run-log.md lacks the line\n" << line;
    };
    const auto expect_table = [&expect_line](auto columns) {
        for (const auto& column : columns) {
            expect_line(column.name, column_type_name(column.type), column.units, column.long_name,
                        column.any_mpi_ranks);
        }
    };
    expect_table(round_columns());
    expect_table(participation_columns());
    expect_table(client_columns());
    expect_table(layer_columns());
    for (const SpecialColumn& column : special_columns()) {
        expect_line(column.name, column.type, column.units, column.long_name, true);
    }
}

}  // namespace
}  // namespace hetlora
