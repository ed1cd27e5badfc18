// Other programs: started, waited for, found.
#include "hetlora/sweep/process.hpp"

#include <csignal>
#include <cstdlib>
#include <thread>

#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

Ended wait_for(pid_t pid) {
    for (int i = 0; i < 500; ++i) {
        if (const auto ended = try_wait(pid)) return *ended;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return {.code = -1};
}

TEST(RunProcess, gives_both_outputs_and_the_exit_code) {
    const auto finished = run_process({"sh", "-c", "echo out; echo err >&2; exit 7"});
    EXPECT_EQ(finished.out, "out\n");
    EXPECT_EQ(finished.err, "err\n");
    EXPECT_EQ(finished.ended.code, 7);
    EXPECT_EQ(finished.ended.text(), "exit code 7");
    EXPECT_EQ(run_process({"sh", "-c", "yes | head -c 300000"}).out.size(), 300000U) << "more than a pipe holds";
}

TEST(StartProcess, appends_its_output_and_can_be_told_to_stop) {
    const TemporaryFolder at;
    write_file_atomically(at / "log", "before\n");
    const auto pid = start_process({"sh", "-c", "echo here; exec sleep 60"}, at / "log");
    EXPECT_FALSE(try_wait(pid));
    ::kill(pid, SIGTERM);
    const auto ended = wait_for(pid);
    EXPECT_EQ(ended.signal, SIGTERM);
    EXPECT_FALSE(ended.fine());
    expect_words(ended.text(), {"signal 15"});
    expect_words(read_text_file(at / "log"), {"before\n"});
}

TEST(StartProcess, names_a_program_that_is_not_there) {
    expect_words(problem([] { (void)run_process({"no-such-program-here"}); }, ExitCode::environment),
                 {"no-such-program-here"});
    expect_words(problem([] { (void)run_process({"/proc/version"}); }, ExitCode::environment), {"/proc/version"});
}

TEST(CleanEnvironment, drops_what_belongs_to_this_process_of_a_launcher) {
    ::setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    ::setenv("OMPI_MCA_btl", "self", 1);
    bool kept = false;
    for (const auto& variable : clean_environment()) {
        EXPECT_FALSE(variable.starts_with("OMPI_COMM_WORLD_SIZE"));
        kept = kept || variable == "OMPI_MCA_btl=self";
    }
    EXPECT_TRUE(kept);
    ::unsetenv("OMPI_COMM_WORLD_SIZE");
    ::unsetenv("OMPI_MCA_btl");
}

}  // namespace
}  // namespace hetlora::sweep::test
