#include "hetlora/base/stop_request.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

struct SignalName {
    const char* name;
    int number;
};
constexpr std::array known_signals{SignalName{"USR1", SIGUSR1}, SignalName{"USR2", SIGUSR2},
                                   SignalName{"TERM", SIGTERM}, SignalName{"HUP", SIGHUP},
                                   SignalName{"INT", SIGINT},   SignalName{"XCPU", SIGXCPU}};

constexpr int from_within = -1;

// A signal's handler can reach nothing but globals.
std::atomic<int> requested{0};  // 0, a signal's number, or from_within
std::atomic<double> requested_at_s{0.0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<double>::is_always_lock_free);

std::atomic<double> last_look_s{0.0};
std::atomic<double> longest_wait_s{0.0};

std::array<struct sigaction, known_signals.size()> former{};
std::array<bool, known_signals.size()> installed{};

double now_s() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);  // allowed inside a handler
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void note(int reason) noexcept {
    int none = 0;
    if (requested.compare_exchange_strong(none, reason)) requested_at_s = now_s();
}

void on_signal(int number) {
    const int saved = errno;
    note(number);
    errno = saved;
}

}  // namespace

const std::vector<std::string>& stop_signal_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> made;
        for (const auto& signal : known_signals) made.emplace_back(signal.name);
        return made;
    }();
    return names;
}

StopSignals::StopSignals(std::span<const std::string> names) {
    requested = 0;
    last_look_s = 0.0;
    longest_wait_s = 0.0;
    for (const std::string& name : names) {
        const auto found = std::ranges::find(known_signals, name, [](const SignalName& known) { return known.name; });
        if (found == known_signals.end()) throw bug_error("stop signal '{}' is not known", name);
        const auto i = static_cast<std::size_t>(found - known_signals.begin());
        struct sigaction action {};
        action.sa_handler = on_signal;
        action.sa_flags = SA_RESTART;  // a write that is under way goes on
        sigemptyset(&action.sa_mask);
        installed[i] = sigaction(found->number, &action, &former[i]) == 0;
    }
}

StopSignals::~StopSignals() {
    for (std::size_t i = 0; i < known_signals.size(); ++i) {
        struct sigaction ignore {};
        ignore.sa_handler = SIG_IGN;
        // A stop is under way: a second signal must not kill the process on its last metres.
        if (installed[i]) sigaction(known_signals[i].number, stop_requested() ? &ignore : &former[i], nullptr);
        installed[i] = false;
    }
}

void request_stop() noexcept { note(from_within); }

bool stop_requested() noexcept { return requested != 0; }

std::string stop_reason() {
    const int reason = requested;
    if (reason == 0) return "";
    for (const auto& signal : known_signals) {
        if (signal.number == reason) return std::string("SIG") + signal.name;
    }
    return "a request in the run's folder";
}

double seconds_since_stop_request() noexcept { return stop_requested() ? now_s() - requested_at_s : 0.0; }

void throw_if_stop_requested() {
    const double now = now_s();
    if (last_look_s > 0.0) longest_wait_s = std::max<double>(longest_wait_s, now - last_look_s);
    last_look_s = now;
    if (stop_requested()) throw Error(ExitCode::stopped, "stopped on request (" + stop_reason() + ")");
}

void skip_wait_for_look() noexcept { last_look_s = now_s(); }

double longest_wait_for_look_s() noexcept { return longest_wait_s; }

}  // namespace hetlora
