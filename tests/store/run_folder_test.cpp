// Run folders: taken once, refused when they hold a run or are in use, adapters in peft's form.
#include "hetlora/store/run_folder.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/safetensors.hpp"
#include "make_corpus.hpp"
#include "thrown.hpp"

namespace hetlora {
namespace {

using test::code_of;
using test::TemporaryFolder;

TEST(RunFolder, a_new_folder_is_made_with_its_parents_and_filled) {
    const TemporaryFolder folder;
    const RunFolder run = RunFolder::create(folder / "results/a/b");
    run.write_config("[experiment]\n", "{}");
    run.mark_complete("10 rounds");

    EXPECT_TRUE(run.is_locked());
    EXPECT_EQ(read_text_file(run.config_ini()), "[experiment]\n");
    EXPECT_EQ(read_text_file(run.config_json()), "{}");
    EXPECT_NE(read_text_file(run.complete()).find("10 rounds\n"), std::string::npos);
    run.clear_complete();
    EXPECT_FALSE(std::filesystem::exists(run.complete()));
    run.clear_complete();
}

TEST(RunFolder, a_folder_with_other_files_is_taken) {
    const TemporaryFolder folder;
    std::ofstream(folder / "slurm-1.out") << "x";

    const RunFolder run = RunFolder::create(folder.path());

    EXPECT_EQ(run.path(), folder.path());
    EXPECT_EQ(describe_run_folder(folder.path()), "");
}

TEST(RunFolder, a_folder_that_holds_a_run_is_refused_and_left_as_it_is) {
    const TemporaryFolder folder;
    for (const char* name : {"run.h5", "COMPLETE", "config.ini", "progress.jsonl", "trace.h5"}) {
        const std::filesystem::path place = folder / (std::string("of_") + name);
        std::filesystem::create_directory(place);
        std::ofstream(place / name) << "x";
        EXPECT_EQ(code_of([&] { (void)RunFolder::create(place); }, {"another run", name, "--output", place.string()}),
                  ExitCode::usage);
        EXPECT_EQ(read_text_file(place / name), "x");
    }
}

TEST(RunFolder, the_refusal_says_which_run_it_is) {
    const TemporaryFolder folder;
    std::ofstream(folder / "run.h5") << "x";
    RunStatus status = status_of_this_process();
    status.run_id = "first try";
    status.state = RunState::done;
    status.round = 7;
    status.rounds = 10;
    write_status(folder / "status.json", status);

    EXPECT_EQ(code_of([&] { (void)RunFolder::create(folder.path()); }, {"'first try'", "done", "round 7 of 10"}),
              ExitCode::usage);
}

TEST(RunFolder, two_writers_are_kept_apart) {
    const TemporaryFolder folder;
    {
        RunFolder first = RunFolder::create(folder / "a");
        EXPECT_EQ(code_of([&] { (void)RunFolder::create(folder / "a"); }, {"another process", "no status yet"}),
                  ExitCode::usage);
        first.write_config("x", "{}");
        write_status(first.status(), status_of_this_process());
        EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "a"); }, {"another process", "pid"}), ExitCode::usage);
        const RunFolder moved = std::move(first);
        EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "a"); }), ExitCode::usage);
    }

    const RunFolder again = RunFolder::reopen(folder / "a");

    EXPECT_TRUE(again.is_locked());
}

TEST(RunFolder, there_must_be_a_run_to_go_on_with) {
    const TemporaryFolder folder;

    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "none"); }, {"no run"}), ExitCode::usage);
    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder.path()); }, {"no run"}), ExitCode::usage);
    EXPECT_FALSE(std::filesystem::exists(folder / "none"));
}

TEST(RunFolder, places_that_cannot_be_written_are_environment_errors) {
    const TemporaryFolder folder;
    std::ofstream(folder / "file") << "x";

    EXPECT_EQ(code_of([&] { (void)RunFolder::create(folder / "file"); }, {"is a file"}), ExitCode::usage);
    EXPECT_EQ(code_of([&] { (void)RunFolder::create(folder / "file/run"); }, {"Not a directory"}),
              ExitCode::environment);
    EXPECT_EQ(code_of([&] { (void)RunFolder::create("/proc/hetlora"); }, {"/proc/hetlora"}), ExitCode::environment);
}

AdapterLayout layout_of_two() {
    return {.matrices = {{"model.layers.0.self_attn.q_proj", 0, "q_proj", 3, 2},
                         {"model.layers.0.self_attn.v_proj", 0, "v_proj", 1, 2}}};
}

std::vector<float> floats(std::span<const std::byte> bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

TEST(RunFolder, adapters_have_the_names_and_shapes_of_peft) {
    const TemporaryFolder folder;
    const RunFolder run = RunFolder::create(folder / "a");
    // lora_rank 2: q A [2,2] = 0..3, q Bt [2,3] = 4..9, v A [2,2] = 10..13, v Bt [2,1] = 14, 15
    std::vector<double> values(16);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);

    run.write_adapter(layout_of_two(), values, {.lora_rank = 2, .scale = 2.0, .base_model = "models/x"});
    run.write_adapter(layout_of_two(), values, {.lora_rank = 2, .scale = 0.75, .base_model = "models/x"});

    const SafetensorsFile file(run.adapter() / "adapter_model.safetensors");
    const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
    EXPECT_EQ(file.names().size(), 4U);
    EXPECT_EQ(file.info(q + "A.weight").shape, (std::vector<std::int64_t>{2, 2}));
    EXPECT_EQ(file.info(q + "B.weight").shape, (std::vector<std::int64_t>{3, 2}));
    EXPECT_EQ(floats(file.bytes(q + "A.weight")), (std::vector<float>{0, 1, 2, 3}));
    EXPECT_EQ(floats(file.bytes(q + "B.weight")), (std::vector<float>{4, 7, 5, 8, 6, 9}));
    const std::string config = read_text_file(run.adapter() / "adapter_config.json");
    for (const char* word :
         {R"("r": 2)", R"("lora_alpha": 1.5)", R"("peft_type": "LORA")", R"("task_type": "CAUSAL_LM")",
          R"("use_rslora": false)", R"("base_model_name_or_path": "models/x")"}) {
        EXPECT_NE(config.find(word), std::string::npos) << word << " is not in\n" << config;
    }
}

TEST(RunFolder, adapters_name_modules_in_full_where_the_ends_of_names_are_shared) {
    const TemporaryFolder folder;
    const RunFolder run = RunFolder::create(folder / "a");
    const std::string output = "bert.encoder.layer.0.output.dense";
    const AdapterLayout layout{.matrices = {{"bert.encoder.layer.0.attention.self.query", 0, "query", 3, 2},
                                            {output, 0, "output.dense", 1, 2, /*ambiguous=*/true}}};

    run.write_adapter(layout, std::vector<double>(16, 0.5), {.lora_rank = 2});

    const std::string config = read_text_file(run.adapter() / "adapter_config.json");
    EXPECT_NE(config.find('"' + output + '"'), std::string::npos) << config;
    EXPECT_NE(config.find("\"query\""), std::string::npos) << config;
    EXPECT_EQ(config.find("\"output.dense\""), std::string::npos) << config;
}

TEST(RunFolder, a_failed_adapter_leaves_nothing) {
    const TemporaryFolder folder;
    const RunFolder run = RunFolder::create(folder / "a");
    const std::vector<double> values(16);

    EXPECT_EQ(code_of([&] { run.write_adapter(layout_of_two(), values, {.lora_rank = 3}); }, {"16 values"}),
              ExitCode::bug);
    EXPECT_EQ(code_of([&] { run.write_adapter(layout_of_two(), values, {.lora_rank = 2, .dtype = "F8"}); }),
              ExitCode::bug);
    std::ofstream(folder / "file") << "x";
    EXPECT_EQ(code_of([&] { write_peft_adapter(folder / "file/adapter", layout_of_two(), values, {.lora_rank = 2}); }),
              ExitCode::environment);
    AdapterLayout twice = layout_of_two();
    twice.matrices[1].name = twice.matrices[0].name;  // refused by the safetensors writer, after the folder was made
    EXPECT_EQ(code_of([&] { run.write_adapter(twice, values, {.lora_rank = 2}); }), ExitCode::bug);

    for (const auto& entry : std::filesystem::directory_iterator(run.path()))
        EXPECT_EQ(entry.path().filename(), ".lock");
}

/// Writes a status as a process of this job on this host would.
void write_running_status(const RunFolder& run, const std::string& job_id, const std::string& host = "") {
    RunStatus status = status_of_this_process();
    status.job_id = job_id;
    if (!host.empty()) status.host = host;
    write_status(run.status(), status);
}

TEST(RunFolder, the_same_job_waits_for_the_lock_and_takes_over) {
    const TemporaryFolder folder;
    ::setenv("SLURM_JOB_ID", "42", 1);
    auto run = std::make_unique<RunFolder>(RunFolder::create(folder / "run"));
    run->write_config("[experiment]\n", "{}");
    write_running_status(*run, "42");

    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "run", 0.2); }, {"another process", "job 42"}),
              ExitCode::usage);
    std::thread ending([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        run.reset();
    });
    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "run", 30.0); }), ExitCode::ok);
    ending.join();
    ::unsetenv("SLURM_JOB_ID");
}

TEST(RunFolder, a_sign_of_life_from_another_host_keeps_others_out) {
    const TemporaryFolder folder;
    {
        const RunFolder run = RunFolder::create(folder / "run");
        run.write_config("[experiment]\n", "{}");
        write_running_status(run, "42", "node-of-another-kind");
    }
    EXPECT_TRUE(is_run_folder_in_use(folder / "run"));
    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "run", 0.0); }, {"another node", "node-of-another-kind"}),
              ExitCode::usage);
    const auto old = std::filesystem::file_time_type::clock::now() - std::chrono::seconds(100);
    std::filesystem::last_write_time(folder / "run/.lock", old);
    EXPECT_FALSE(is_run_folder_in_use(folder / "run"));
    EXPECT_EQ(code_of([&] { (void)RunFolder::reopen(folder / "run", 0.0); }), ExitCode::ok);
}

TEST(RunFolder, a_heartbeat_renews_the_lock_file) {
    const TemporaryFolder folder;
    const RunFolder run = RunFolder::create(folder / "run");
    const auto old = std::filesystem::file_time_type::clock::now() - std::chrono::hours(1);
    std::filesystem::last_write_time(folder / "run/.lock", old);
    {
        const Heartbeat heartbeat(run, 0.01);
        for (int i = 0; i < 500 && std::filesystem::last_write_time(folder / "run/.lock") == old; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
    }
    EXPECT_GT(std::filesystem::last_write_time(folder / "run/.lock"), old);
    EXPECT_TRUE(is_run_folder_in_use(folder / "run"));
}

}  // namespace
}  // namespace hetlora
