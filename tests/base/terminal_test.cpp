#include "hetlora/base/terminal.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace hetlora {
namespace {

const Progress third_round{.done = 3, .total = 10, .train_loss = 2.5, .eval_loss = 3.25, .tokens_per_s = 12345};

TEST(Terminal, other_mpi_ranks_are_silent) {
    std::ostringstream out;
    std::ostringstream err;
    {
        Terminal terminal(false, out, err, true);
        terminal.info("a");
        terminal.warn("b");
        terminal.start_progress("round");
        terminal.progress(third_round);
    }

    EXPECT_EQ(out.str(), "");
    EXPECT_EQ(err.str(), "");
}

TEST(Terminal, messages_go_to_out_and_warnings_to_err) {
    std::ostringstream out;
    std::ostringstream err;
    Terminal terminal(true, out, err, false);
    terminal.info("hello");
    terminal.warn("careful");

    EXPECT_EQ(out.str(), "hello\n");
    EXPECT_EQ(err.str(), "warning: careful\n");
}

TEST(Terminal, without_a_terminal_progress_is_one_plain_line_a_round) {
    std::ostringstream out;
    std::ostringstream err;
    Terminal terminal(true, out, err, false);
    terminal.start_progress("round");
    terminal.progress(third_round);
    terminal.progress({.done = 4, .total = 10});
    const std::string text = err.str();

    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
    EXPECT_EQ(text.find('\r'), std::string::npos);
    EXPECT_TRUE(text.starts_with("round 3/10  train loss 2.5000  eval loss 3.2500  12.3 k tokens/s  ")) << text;
    EXPECT_NE(text.find("s left\n"), std::string::npos) << text;
    EXPECT_NE(text.find("\nround 4/10  0.00 s/round"), std::string::npos) << text;
    EXPECT_EQ(out.str(), "");
}

TEST(Terminal, rounds_done_before_a_resume_do_not_count_for_the_rate) {
    std::ostringstream out;
    std::ostringstream err;
    Terminal terminal(true, out, err, false);
    terminal.start_progress("round", 3);
    terminal.progress(third_round);

    EXPECT_EQ(err.str().find("left"), std::string::npos) << err.str();
}

TEST(Terminal, in_place_the_line_is_redrawn_and_messages_do_not_break_it) {
    std::ostringstream out;
    std::ostringstream err;
    {
        Terminal terminal(true, out, err, true);
        terminal.start_progress("step", 3);
        terminal.progress({.done = 3, .total = 10});
        terminal.warn("careful");
        terminal.progress({.done = 3, .total = 11});
    }

    EXPECT_EQ(err.str(), "\r\x1b[Kstep 3/10\r\x1b[Kwarning: careful\nstep 3/10\r\x1b[Kstep 3/11\n");
}

}  // namespace
}  // namespace hetlora
