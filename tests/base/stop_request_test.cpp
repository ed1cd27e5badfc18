#include "hetlora/base/stop_request.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <string>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

int former_calls = 0;
void count_call(int) { ++former_calls; }

TEST(StopRequest, a_signal_is_seen_at_the_next_look_and_carries_exit_code_75) {
    const std::vector<std::string> names = {"USR2"};
    const StopSignals signals(names);
    EXPECT_NO_THROW(throw_if_stop_requested());

    std::raise(SIGUSR2);

    EXPECT_TRUE(stop_requested());
    EXPECT_EQ(stop_reason(), "SIGUSR2");
    EXPECT_GE(seconds_since_stop_request(), 0.0);
    try {
        throw_if_stop_requested();
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(static_cast<int>(error.code()), 75);
    }
}

TEST(StopRequest, the_first_request_counts) {
    const std::vector<std::string> names = {"USR2", "TERM"};
    const StopSignals signals(names);
    std::raise(SIGTERM);
    std::raise(SIGUSR2);
    request_stop();
    EXPECT_EQ(stop_reason(), "SIGTERM");
}

TEST(StopRequest, a_new_guard_starts_without_a_request) {
    {
        const StopSignals signals({});
        request_stop();
        EXPECT_EQ(stop_reason(), "a request in the run's folder");
    }
    const StopSignals signals({});
    EXPECT_FALSE(stop_requested());
    EXPECT_EQ(stop_reason(), "");
}

TEST(StopRequest, the_former_handler_comes_back) {
    std::signal(SIGUSR2, count_call);
    const std::vector<std::string> names = {"USR2"};
    { const StopSignals signals(names); }
    std::raise(SIGUSR2);
    EXPECT_EQ(former_calls, 1);
    std::signal(SIGUSR2, SIG_DFL);
}

TEST(StopRequest, after_a_request_further_signals_do_nothing) {
    const std::vector<std::string> names = {"USR2"};
    {
        const StopSignals signals(names);
        std::raise(SIGUSR2);
    }
    std::raise(SIGUSR2);  // would end the process
    std::signal(SIGUSR2, SIG_DFL);
    EXPECT_TRUE(stop_requested());
}

TEST(StopRequest, the_longest_wait_between_looks_is_kept) {
    const StopSignals signals({});
    EXPECT_EQ(longest_wait_for_look_s(), 0.0);
    throw_if_stop_requested();
    throw_if_stop_requested();
    const double first = longest_wait_for_look_s();
    EXPECT_GT(first, 0.0);
    for (int i = 0; i < 100; ++i) throw_if_stop_requested();
    EXPECT_GE(longest_wait_for_look_s(), first);
}

TEST(StopRequest, an_unknown_signal_is_refused) {
    const std::vector<std::string> names = {"KILL"};
    EXPECT_THROW(StopSignals{names}, Error);
}

}  // namespace
}  // namespace hetlora
