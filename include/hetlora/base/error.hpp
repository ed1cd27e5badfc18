// Errors that reach a user: one exception type that carries the exit code of the contract.
// The text says what happened with which value - where - how to mend it.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace hetlora {

/// Process exit codes, the same on every MPI rank (docs/configuration.md).
enum class ExitCode : int {
    ok = 0,
    usage = 2,        ///< wrong command line or config
    input = 3,        ///< input data, model or checkpoint
    environment = 4,  ///< MPI, device, memory, disk
    training = 5,     ///< non-finite or diverged training and the policy says stop
    bug = 70,         ///< a mistake of ours
    stopped = 75,     ///< stopped on request with a checkpoint written
};

/// An error meant for people; `what()` is printed as it is, without a type name in front.
class Error : public std::runtime_error {
public:
    Error(ExitCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
    [[nodiscard]] ExitCode code() const noexcept { return code_; }

private:
    ExitCode code_;
};

template <typename... Args>
[[nodiscard]] Error usage_error(fmt::format_string<Args...> text, Args&&... args) {
    return {ExitCode::usage, fmt::format(text, std::forward<Args>(args)...)};
}
template <typename... Args>
[[nodiscard]] Error input_error(fmt::format_string<Args...> text, Args&&... args) {
    return {ExitCode::input, fmt::format(text, std::forward<Args>(args)...)};
}
template <typename... Args>
[[nodiscard]] Error environment_error(fmt::format_string<Args...> text, Args&&... args) {
    return {ExitCode::environment, fmt::format(text, std::forward<Args>(args)...)};
}
template <typename... Args>
[[nodiscard]] Error training_error(fmt::format_string<Args...> text, Args&&... args) {
    return {ExitCode::training, fmt::format(text, std::forward<Args>(args)...)};
}
template <typename... Args>
[[nodiscard]] Error bug_error(fmt::format_string<Args...> text, Args&&... args) {
    return {ExitCode::bug, fmt::format(text, std::forward<Args>(args)...)};
}

}  // namespace hetlora
