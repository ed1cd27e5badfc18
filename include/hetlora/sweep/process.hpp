// Other programs: found, started, waited for.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace hetlora::sweep {

/// How a process ended.
struct Ended {
    int code = 0;    ///< exit code; meaningless if a signal ended it
    int signal = 0;  ///< 0: none
    [[nodiscard]] bool fine() const noexcept { return code == 0 && signal == 0; }
    /// "exit code 5", "ended by signal 9 (Killed)"
    [[nodiscard]] std::string text() const;
};

/// What a program wrote, and how it ended.
struct Finished {
    Ended ended;
    std::string out;
    std::string err;
};

/// The path of this program, to start it once more: $HETLORA_PROGRAM (a wrapper, for instance), else itself.
[[nodiscard]] std::string program_path();

/// The file that the shell would start for this name, if there is one.
[[nodiscard]] std::optional<std::filesystem::path> find_on_path(const std::string& name);

/// This process's environment without what a launcher or job step put there for this process alone: a program that is
/// started with it is an MPI process of its own.
[[nodiscard]] std::vector<std::string> clean_environment();

/// Starts words[0] in a process group of its own (so that Ctrl-C reaches only this program, which passes it on), its
/// output appended to a file. If this program dies, the child gets USR2: it writes a checkpoint and ends.
/// @throws Error (environment) if it cannot be started
[[nodiscard]] pid_t start_process(const std::vector<std::string>& words, const std::filesystem::path& output);

/// Whether a started process ended; does not wait.
[[nodiscard]] std::optional<Ended> try_wait(pid_t pid);

/// Runs a program to its end. @throws Error (environment) if it cannot be started
[[nodiscard]] Finished run_process(const std::vector<std::string>& words);

}  // namespace hetlora::sweep
