// See hetlora/sweep/local_pool.hpp.
#include "hetlora/sweep/local_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <deque>
#include <fstream>
#include <map>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/progress_clock.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/sweep/live_table.hpp"
#include "hetlora/sweep/process.hpp"

namespace hetlora::sweep {
namespace {

volatile std::sig_atomic_t stop_requests = 0;

void note_signal(int) { stop_requests = stop_requests + 1; }

/// Notes stop requests while it lives.
class StopSignals {
public:
    StopSignals() {
        stop_requests = 0;
        struct sigaction action {};
        action.sa_handler = note_signal;
        for (std::size_t i = 0; i < signals.size(); ++i) {
            ::sigaction(signals[i], &action, &before_[i]);
            // nohup, and the shell for jobs in the background, ignore these on purpose.
            if (before_[i].sa_handler == SIG_IGN) ::sigaction(signals[i], &before_[i], nullptr);
        }
        std::signal(SIGPIPE, SIG_IGN);  // a closed terminal is no reason to lose runs
    }
    ~StopSignals() {
        for (std::size_t i = 0; i < signals.size(); ++i) ::sigaction(signals[i], &before_[i], nullptr);
    }
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;

private:
    static constexpr std::array signals{SIGINT, SIGTERM, SIGHUP, SIGUSR2};
    std::array<struct sigaction, signals.size()> before_{};
};

void pause_s(double seconds) {
    const timespec time{.tv_sec = 0, .tv_nsec = static_cast<long>(seconds * 1e9)};
    ::nanosleep(&time, nullptr);
}

class Pool {
public:
    Pool(const SweepPlan& plan, std::vector<FolderState> states, const Costs& costs, const Machine& machine,
         bool retry_failed)
        : plan_(plan), states_(std::move(states)), costs_(costs), machine_(machine) {
        for (std::size_t i = 0; i < states_.size(); ++i) {
            if (is_to_start(states_[i].state, retry_failed)) waiting_.push_back(i);
        }
        to_start_ = waiting_.size();
        places_ = side_by_side(machine, plan, costs);
    }

    int run() {
        const auto before = counts_text(count(states_));
        std::puts(fmt::format("sweep {}: {} ({}); {} to start, {} side by side on {}, in {}", plan_.sweep.name,
                              counted(std::ssize(plan_.runs), "run"), before, to_start_, places_,
                              counted(machine_.cores, "core"), plan_.sweep.output.string())
                      .c_str());
        std::fflush(stdout);
        const StopSignals signals;
        try {
            loop();
        } catch (...) {  // e.g. a full disk: what runs shall write its checkpoint
            if (stop_requests == 0) stop_requests = 1;
            waiting_.clear();
            wait_for_active();
            throw;
        }
        return finish();
    }

private:
    struct Active {
        std::size_t index;
        pid_t pid;
        Stopwatch watch;
        bool fresh;  ///< started from its first round
    };

    void loop() {
        while (!waiting_.empty() || !active_.empty()) {
            pass_on_stop_requests();
            while (!stopped_ && !waiting_.empty() && std::ssize(active_) < places_) {
                start(waiting_.front());
                waiting_.pop_front();
            }
            collect();
            if (table_.is_due()) draw();
            if (!active_.empty()) pause_s(0.05);
        }
        table_.clear();
    }

    void wait_for_active() noexcept {
        try {
            while (!active_.empty()) {
                pass_on_stop_requests();
                collect();
                pause_s(0.05);
            }
        } catch (const std::exception&) {  // the first error is the one to tell
        }
    }

    void pass_on_stop_requests() {
        const int requests = stop_requests;
        if (requests == passed_on_) return;
        const bool first = passed_on_ == 0;
        passed_on_ = requests;
        stopped_ = true;
        waiting_.clear();
        const int signal = requests == 1 ? SIGUSR2 : SIGKILL;
        for (const auto& one : active_) ::kill(signal == SIGKILL ? -one.pid : one.pid, signal);
        if (first && !active_.empty()) {
            table_.line(fmt::format("stopping: {} run{} writing a checkpoint; once more to end at once", active_.size(),
                                    active_.size() == 1 ? " is" : "s are"));
        }
    }

    [[nodiscard]] std::vector<std::string> words(const PlannedRun& run) const {
        std::vector<std::string> words;
        if (machine_.mpi_ranks > 1) {
            // Unbound: launchers that do not know of each other would all bind to the same first cores.
            words = {"mpirun", "-n", fmt::format("{}", machine_.mpi_ranks), "--bind-to", "none"};
        }
        for (auto word : {program_path(), std::string("run"), std::string("--config"), run.request().string(),
                          std::string("--output"), run.folder.string(), std::string("--resume")}) {
            words.push_back(std::move(word));
        }
        return words;
    }

    void start(std::size_t index) {
        const auto& run = plan_.runs[index];
        // Another `sweep run` or a job may have been faster.
        states_[index] = scan_folder(run.folder, run.settings.experiment.rounds);
        if (states_[index].state == State::done || states_[index].state == State::running) {
            table_.line(fmt::format("{}: {} by another process", run.folder.filename().string(),
                                    state_name(states_[index].state)));
            return;
        }
        try {
            write_request(run, plan_.sweep);
        } catch (const Error& error) {  // a folder that cannot be written; the others go on
            states_[index].state = State::failed;
            states_[index].reason = error.what();
            if (first_failure_ == 0) first_failure_ = static_cast<int>(error.code());
            table_.line(fmt::format("{}: failed: {}", run.folder.filename().string(), error.what()));
            return;
        }
        std::ofstream(run.output_log(), std::ios::app)
            << start_mark << utc_now() << " started by hetlora sweep run, " << machine_.mpi_ranks << " MPI rank(s)\n";
        const bool fresh = states_[index].round == 0;
        active_.push_back(
            {.index = index, .pid = start_process(words(run), run.output_log()), .watch = {}, .fresh = fresh});
        states_[index] = {
            .state = State::running, .round = states_[index].round, .rounds = run.settings.experiment.rounds};
    }

    void collect() {
        for (std::size_t i = 0; i < active_.size();) {
            const auto ended = try_wait(active_[i].pid);
            if (!ended) {
                ++i;
                continue;
            }
            const Active one = active_[i];
            active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
            take(one, *ended);
        }
    }

    void take(const Active& one, const Ended& ended) {
        const auto& run = plan_.runs[one.index];
        FolderState& state = states_[one.index];
        state = scan_folder(run.folder, run.settings.experiment.rounds);
        // Another `sweep run` may have been faster, and this one's process was refused.
        const bool ours = state.state != State::running && !is_run_folder_in_use(run.folder);
        if (ours && state.state != State::done && !is_stop(ended)) {
            mark_failed(run, state, ended);
            if (first_failure_ == 0) first_failure_ = ended.signal != 0 ? 4 : ended.code == 0 ? 70 : ended.code;
        }
        if (ours && state.state == State::done && one.fresh) {
            auto& [seconds, runs] = walls_[run.cost_key];
            seconds += one.watch.seconds();
            ++runs;
        }
        ++ended_;
        table_.line(fmt::format("[{}/{}] {}  {}{}  {}{}", ended_, to_start_, run.folder.filename().string(),
                                ours ? state_name(state.state) : "taken by another process",
                                std::isfinite(state.eval_loss) ? fmt::format("  loss {:.4f}", state.eval_loss) : "",
                                human_seconds(one.watch.seconds()), state.reason.empty() ? "" : "  " + state.reason));
    }

    [[nodiscard]] bool is_stop(const Ended& ended) const {
        return ended.code == static_cast<int>(ExitCode::stopped) || (stopped_ && ended.signal != 0);
    }

    /// A program that could not even write its status.json (killed, or refused before it had its folder) gets one.
    static void mark_failed(const PlannedRun& run, FolderState& state, const Ended& ended) {
        if (state.state != State::failed || state.reason.empty()) {
            const auto words = last_words(run.output_log());
            state.state = State::failed;
            state.reason = ended.signal == 0 && !words.empty()
                               ? words
                               : ended.text() + (ended.signal == SIGKILL ? " - out of memory, perhaps: fewer runs side "
                                                                           "by side (--max-parallel)"
                                                                         : "");
        }
        try {
            auto status = status_of_this_process();
            std::error_code error;
            const auto path = run.folder / "status.json";
            if (std::filesystem::exists(path, error)) status = read_status(path);
            if (status.state == hetlora::RunState::failed && !status.message.empty()) return;
            status.state = hetlora::RunState::failed;
            status.run_id = run.identity;
            status.rounds = run.settings.experiment.rounds;
            status.message = state.reason;
            write_status(path, status);
        } catch (const Error&) {  // it is told on the terminal all the same
        }
    }

    [[nodiscard]] double seconds_left(std::size_t index) const {
        const auto& run = plan_.runs[index];
        const auto found = walls_.find(run.cost_key);
        const auto& state = states_[index];
        if (state.state == State::running && std::isfinite(state.seconds_left)) return state.seconds_left;
        const double share =
            state.rounds > 0 ? 1.0 - static_cast<double>(state.round) / static_cast<double>(state.rounds) : 1;
        if (found != walls_.end()) return share * found->second.seconds / static_cast<double>(found->second.runs);
        return costs_.seconds_left(run, state);
    }

    void draw() {
        LiveTable::View view{.name = plan_.sweep.name, .counts = {}, .running = {}, .seconds_left = 0};
        double work_s = 0;
        for (const auto& one : active_) {
            const auto& run = plan_.runs[one.index];
            auto& state = states_[one.index];
            state = scan_folder(run.folder, run.settings.experiment.rounds);
            state.state = State::running;  // before its first status, too
            view.running.push_back({.name = run.folder.filename().string(), .state = state});
            work_s += seconds_left(one.index);
        }
        for (const auto index : waiting_) work_s += seconds_left(index);
        view.counts = count(states_);
        view.seconds_left = work_s / static_cast<double>(places_);
        table_.draw(view);
    }

    [[nodiscard]] int finish() const {
        const auto counts = count(states_);
        const auto failed = counts[static_cast<std::size_t>(State::failed)];
        std::puts(fmt::format("sweep {}: {} of {} done ({})", plan_.sweep.name,
                              counts[static_cast<std::size_t>(State::done)], counted(std::ssize(plan_.runs), "run"),
                              counts_text(counts))
                      .c_str());
        if (failed > 0) {
            std::puts(fmt::format("  failed runs with their reasons: hetlora sweep status; once more: --retry-failed")
                          .c_str());
        }
        if (stopped_) {
            std::puts("  stopped on request: the same command goes on");
            return static_cast<int>(ExitCode::stopped);
        }
        if (first_failure_ != 0) return first_failure_;
        if (failed > 0) return static_cast<int>(ExitCode::training);
        if (counts[static_cast<std::size_t>(State::done)] == std::ssize(plan_.runs)) return 0;
        std::puts("  not all runs are done: others were stopped, or are another process's; the same command goes on");
        return static_cast<int>(ExitCode::stopped);
    }

    struct Walls {
        double seconds = 0;
        std::int64_t runs = 0;
    };

    const SweepPlan& plan_;
    std::vector<FolderState> states_;
    const Costs& costs_;
    Machine machine_;
    std::deque<std::size_t> waiting_;
    std::vector<Active> active_;
    std::map<std::string, Walls> walls_;  ///< wall time of runs that were done here from their start
    LiveTable table_;
    std::size_t to_start_ = 0;
    std::size_t ended_ = 0;
    std::int64_t places_ = 1;
    int passed_on_ = 0;
    bool stopped_ = false;
    int first_failure_ = 0;
};

}  // namespace

int run_here(const SweepPlan& plan, std::vector<FolderState> states, const Costs& costs, const Machine& machine,
             bool retry_failed) {
    if (machine.mpi_ranks > 1 && !find_on_path("mpirun")) {
        throw environment_error(
            "there is no mpirun on the path, but --mpi-ranks {} needs it; load the MPI module, or run "
            "without --mpi-ranks",
            machine.mpi_ranks);
    }
    create_folder(plan.sweep.output);
    return Pool(plan, std::move(states), costs, machine, retry_failed).run();
}

}  // namespace hetlora::sweep
