// See hetlora/sweep/run_state.hpp.
#include "hetlora/sweep/run_state.hpp"

#include <algorithm>
#include <array>
#include <fstream>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/run_folder.hpp"

namespace hetlora::sweep {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t tail_bytes = 8192;  // of output.log and progress.jsonl

/// The last bytes of a file as text, from a line's start if it is longer.
std::string tail(const fs::path& path, std::int64_t bytes) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return {};
    file.seekg(0, std::ios::end);
    const std::int64_t size = file.tellg();
    const std::int64_t from = std::max<std::int64_t>(0, size - bytes);
    file.seekg(from);
    std::string text(static_cast<std::size_t>(size - from), '\0');
    file.read(text.data(), std::ssize(text));
    text.resize(static_cast<std::size_t>(file.gcount()));
    if (from > 0) text.erase(0, text.find('\n') + 1);
    return text;
}

/// What the last start of a run wrote.
struct LogEnd {
    std::string error;  ///< its last message of ours, without "hetlora: "
    std::string last;   ///< its last line
};

LogEnd read_log(const fs::path& path) {
    LogEnd end;
    for (const auto& line : split(tail(path, tail_bytes), '\n')) {
        if (line.starts_with(start_mark)) {
            end = {};
        } else if (!line.empty()) {
            end.last = line;
            const bool ours = line.starts_with("hetlora: ") || line.starts_with("hetlora run: ");
            if (ours) end.error = line.substr(line.find(": ") + 2);
        }
    }
    return end;
}

/// The number in "N rounds", the last line of COMPLETE; 0 if there is none.
std::int64_t rounds_in_complete(const fs::path& path) {
    const std::string whole = tail(path, tail_bytes);
    const auto text = trim(whole);
    const auto line = text.substr(text.rfind('\n') + 1);
    return parse_integer(line.substr(0, line.find(' '))).value_or(0);
}

std::string one_line(std::string text) {
    std::ranges::replace(text, '\n', ' ');
    return text;
}

}  // namespace

std::string_view state_name(State state) noexcept {
    constexpr std::array<std::string_view, n_states> names = {"done",    "running", "waiting",
                                                              "stopped", "died",    "failed"};
    return names[static_cast<std::size_t>(state)];
}

bool is_to_start(State state, bool retry_failed) noexcept {
    return state == State::waiting || state == State::stopped || state == State::died ||
           (state == State::failed && retry_failed);
}

std::string last_words(const fs::path& output_log) {
    const auto log = read_log(output_log);
    return log.error.empty() ? log.last : log.error;
}

double seconds_per_round(const fs::path& folder) {
    constexpr std::string_view mark = "\"t_round_s\":";
    std::vector<double> seconds;
    const auto path = folder / "progress.jsonl";
    std::string text = tail(path, 64 * 1024);
    if (text.find(mark) == std::string::npos) text = tail(path, 16 * 1024 * 1024);  // one round of a large cohort
    for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1)) {
        const auto from = at + mark.size();
        const auto value = parse_number(std::string_view(text).substr(from, text.find_first_of(",}", from) - from));
        if (value) seconds.push_back(*value);
    }
    if (seconds.empty()) return not_measured;
    std::ranges::nth_element(seconds, seconds.begin() + std::ssize(seconds) / 2);
    return seconds[seconds.size() / 2];
}

FolderState scan_folder(const fs::path& folder, std::int64_t rounds_wanted) {
    FolderState state{.rounds = rounds_wanted};
    RunStatus status;
    try {
        status = read_status(folder / "status.json");
    } catch (const Error&) {
        // No status: never started, or refused before its folder was its own.
        std::error_code ignored;
        state.reason = read_log(folder / "output.log").error;
        if (!state.reason.empty()) state.state = State::failed;
        if (fs::exists(folder / "COMPLETE", ignored)) {
            state.round = rounds_in_complete(folder / "COMPLETE");
            state.state = state.round >= rounds_wanted ? State::done : State::stopped;
        }
        return state;
    }
    state.round = status.round;
    state.train_loss = status.train_loss;
    state.eval_loss = status.eval_loss;
    state.host = status.host;
    state.job_id = status.job_id;
    const auto is = [&](hetlora::RunState other) { return status.state == other; };
    std::error_code ignored;
    if (is(hetlora::RunState::running)) {
        state.state = is_run_folder_in_use(folder) ? State::running : State::died;
        // Before the first round it knows nothing of rounds yet.
        if (state.state == State::running && status.round > 0) state.seconds_left = status.seconds_left;
    } else if (is(hetlora::RunState::failed)) {
        state.state = State::failed;
        state.reason = one_line(status.message.empty() ? last_words(folder / "output.log") : status.message);
    } else if (is(hetlora::RunState::done) && status.round >= rounds_wanted &&
               fs::exists(folder / "COMPLETE", ignored)) {
        state.state = State::done;
    } else {
        state.state = State::stopped;
    }
    return state;
}

std::vector<FolderState> scan(const SweepPlan& plan) {
    std::vector<FolderState> states;
    states.reserve(plan.runs.size());
    for (const auto& run : plan.runs) {
        states.push_back(run.folder_exists ? scan_folder(run.folder, run.settings.experiment.rounds)
                                           : FolderState{.rounds = run.settings.experiment.rounds});
    }
    return states;
}

}  // namespace hetlora::sweep
