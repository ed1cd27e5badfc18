// The table on the terminal: redrawn in place, silent where nobody watches.
#include "hetlora/sweep/live_table.hpp"

#include "sweep_test_tools.hpp"

namespace hetlora::sweep::test {
namespace {

LiveTable::View view() {
    Counts counts{};
    counts[static_cast<std::size_t>(State::done)] = 3;
    counts[static_cast<std::size_t>(State::running)] = 1;
    return {.name = "s",
            .counts = counts,
            .running = {{"a_1", {.round = 2, .rounds = 5, .eval_loss = 3.25}}},
            .seconds_left = 90};
}

TEST(LiveTable, is_redrawn_in_place) {
    LiveTable table(true);
    EXPECT_TRUE(table.is_due());
    testing::internal::CaptureStderr();
    table.draw(view());
    EXPECT_FALSE(table.is_due()) << "just drawn";
    table.draw(view());
    table.line("a_1 done");
    const auto text = testing::internal::GetCapturedStderr();
    expect_words(text, {"sweep s: 3 done, 1 running", "2/5", "3.2500", "\x1b[3A\x1b[J", "a_1 done\n"});
}

TEST(LiveTable, is_not_drawn_where_nobody_watches) {
    LiveTable table(false);
    EXPECT_FALSE(table.is_due());
    testing::internal::CaptureStderr();
    table.draw(view());
    table.line("a_1 done");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "a_1 done\n");
}

}  // namespace
}  // namespace hetlora::sweep::test
