#include "hetlora/base/timer.hpp"

#include <gtest/gtest.h>

#include <thread>

namespace hetlora {
namespace {

TEST(Stopwatch, seconds_grow_and_laps_start_again) {
    const auto pause = std::chrono::milliseconds(20);
    Stopwatch watch;
    std::this_thread::sleep_for(pause);
    const double before_s = watch.seconds();
    const double lap_s = watch.lap();

    EXPECT_GE(before_s, 0.020);
    EXPECT_GE(lap_s, before_s);
    EXPECT_LT(watch.seconds(), lap_s);
}

TEST(ScopedTimer, adds_the_time_of_its_scope) {
    double total_s = 1.0;
    {
        const ScopedTimer timer(total_s);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }

    EXPECT_GE(total_s, 1.010);
    EXPECT_LT(total_s, 11.0);
}

}  // namespace
}  // namespace hetlora
