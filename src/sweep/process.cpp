// See hetlora/sweep/process.hpp.
#include "hetlora/sweep/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"

extern char** environ;  // NOLINT: the C library's name

namespace hetlora::sweep {
namespace {

[[nodiscard]] Error cannot_start(const std::string& program, int problem) {
    return environment_error("cannot start '{}' - {} - check that it is there and may be executed", program,
                             std::strerror(problem));
}

/// A pipe that closes itself in programs that are started.
struct Pipe {
    std::array<int, 2> ends{-1, -1};
    Pipe() {
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
            throw environment_error("cannot make a pipe - {} - end other programs, or raise ulimit -n",
                                    std::strerror(errno));
        }
    }
    ~Pipe() {
        for (const int end : ends) {
            if (end >= 0) ::close(end);
        }
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    void close(std::size_t which) {
        ::close(ends[which]);
        ends[which] = -1;
    }
};

std::vector<char*> pointers(std::vector<std::string>& words) {
    std::vector<char*> result;
    for (auto& word : words) result.push_back(word.data());
    result.push_back(nullptr);
    return result;
}

/// fork and exec. Everything that needs memory is made before the fork.
/// @throws Error (environment) if exec fails
pid_t spawn(std::vector<std::string> words, int out, int err, bool own_group) {
    auto environment = clean_environment();
    const auto arguments = pointers(words);
    const auto variables = pointers(environment);
    const auto found = find_on_path(words.front());
    if (!found) throw cannot_start(words.front(), ENOENT);
    const std::string program = found->string();
    Pipe problem;
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) throw cannot_start(words.front(), errno);
    if (pid == 0) {
        if (own_group) {
            ::setpgid(0, 0);
            ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
            if (::getppid() != parent) ::_exit(75);
        }
        ::signal(SIGPIPE, SIG_DFL);
        for (const int signal : {SIGINT, SIGTERM, SIGUSR2, SIGHUP}) {  // nohup's and the shell's choice stays
            if (::signal(signal, SIG_DFL) == SIG_IGN) ::signal(signal, SIG_IGN);
        }
        const int input = ::open("/dev/null", O_RDONLY);
        ::dup2(input, 0);
        ::dup2(out, 1);
        ::dup2(err, 2);
        ::execve(program.c_str(), arguments.data(), variables.data());
        const int reason = errno;
        (void)!::write(problem.ends[1], &reason, sizeof reason);
        ::_exit(127);
    }
    problem.close(1);
    int reason = 0;
    if (::read(problem.ends[0], &reason, sizeof reason) == static_cast<ssize_t>(sizeof reason)) {
        ::waitpid(pid, nullptr, 0);
        throw cannot_start(words.front(), reason);
    }
    return pid;
}

Ended ended_by(int status) {
    if (WIFSIGNALED(status)) return {.code = 128 + WTERMSIG(status), .signal = WTERMSIG(status)};
    return {.code = WEXITSTATUS(status)};
}

}  // namespace

std::string Ended::text() const {
    if (signal != 0) return fmt::format("ended by signal {} ({})", signal, ::strsignal(signal));
    return fmt::format("exit code {}", code);
}

std::string program_path() {
    if (const char* given = std::getenv("HETLORA_PROGRAM"); given != nullptr && *given != '\0') {
        return std::filesystem::absolute(given).string();
    }
    return std::filesystem::read_symlink("/proc/self/exe").string();
}

std::optional<std::filesystem::path> find_on_path(const std::string& name) {
    if (name.find('/') != std::string::npos) return name;
    const char* path = std::getenv("PATH");
    for (const auto& folder : split(path == nullptr ? "" : path, ':')) {
        auto candidate = std::filesystem::path(folder.empty() ? "." : folder) / name;
        if (::access(candidate.c_str(), X_OK) == 0 && !std::filesystem::is_directory(candidate)) return candidate;
    }
    return {};
}

std::vector<std::string> clean_environment() {
    std::vector<std::string> kept;
    for (char** variable = environ; *variable != nullptr; ++variable) {
        const std::string_view text(*variable);
        const auto name = text.substr(0, text.find('='));
        // Of a launcher, only the settings (OMPI_MCA_..., OMPI_ALLOW_...) are everybody's.
        const bool launchers = name.starts_with("OMPI_COMM_") || name.starts_with("OMPI_UNIVERSE") ||
                               name.starts_with("PMI_") || name.starts_with("PMIX_") ||
                               name.starts_with("SLURM_STEP") || name == "SLURM_PROCID" || name == "SLURM_LOCALID" ||
                               name == "MPI_LOCALNRANKS";
        if (!launchers) kept.emplace_back(text);
    }
    return kept;
}

pid_t start_process(const std::vector<std::string>& words, const std::filesystem::path& output) {
    const int file = ::open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file < 0) {
        throw environment_error("cannot write '{}' - {} - check free space, quota and permissions there",
                                output.string(), std::strerror(errno));
    }
    try {
        const pid_t pid = spawn(words, file, file, /*own_group=*/true);
        ::close(file);
        return pid;
    } catch (...) {
        ::close(file);
        throw;
    }
}

std::optional<Ended> try_wait(pid_t pid) {
    int status = 0;
    const pid_t done = ::waitpid(pid, &status, WNOHANG);
    if (done == 0 || (done < 0 && errno == EINTR)) return {};
    if (done < 0) return Ended{.code = 1};
    return ended_by(status);
}

Finished run_process(const std::vector<std::string>& words) {
    Pipe out;
    Pipe err;
    const pid_t pid = spawn(words, out.ends[1], err.ends[1], /*own_group=*/false);
    out.close(1);
    err.close(1);
    Finished finished;
    std::array<pollfd, 2> watched{pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0}};
    const std::array<std::string*, 2> texts{&finished.out, &finished.err};
    for (int open = 2; open > 0;) {
        if (::poll(watched.data(), watched.size(), -1) < 0) continue;  // a signal
        for (std::size_t i = 0; i < watched.size(); ++i) {
            if (watched[i].revents == 0) continue;
            std::array<char, 4096> block{};
            const auto got = ::read(watched[i].fd, block.data(), block.size());
            if (got > 0) {
                texts[i]->append(block.data(), static_cast<std::size_t>(got));
            } else if (got == 0 || errno != EINTR) {
                watched[i].fd = -1;
                --open;
            }
        }
    }
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    finished.ended = ended_by(status);
    return finished;
}

}  // namespace hetlora::sweep
