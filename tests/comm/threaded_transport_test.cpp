// The transport over threads that stands in for MPI in the tests of the federated loop, and the one for one process.
#include "hetlora/comm/threaded_transport.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>

#include "hetlora/comm/agree.hpp"

namespace hetlora {
namespace {

TEST(ThreadedTransport, collectives_do_what_mpi_does) {
    for (const int n : {1, 2, 4}) {
        std::atomic<int> finished = 0;
        run_threaded(n, [&](Transport& t) {
            std::array<double, 3> values{1.0 * t.mpi_rank(), 2.0, 3.0};
            t.broadcast_values(values, n - 1);
            EXPECT_EQ(values[0], n - 1);

            const std::vector<std::byte> mine(static_cast<std::size_t>(t.mpi_rank()) + 1);
            const auto all = t.gather(mine);
            EXPECT_EQ(static_cast<int>(all.size()), t.is_root() ? n : 0);
            if (t.is_root()) {
                EXPECT_EQ(static_cast<int>(all.back().size()), n);
            }

            const std::array<std::int64_t, 2> ints{t.mpi_rank() + 1, 1};
            std::array<std::int64_t, 2> sums{};
            t.reduce_sum(ints, sums);
            EXPECT_EQ(sums[0], t.is_root() ? n * (n + 1) / 2 : 0);
            auto everywhere = ints;
            t.all_sum(everywhere);
            EXPECT_EQ(everywhere[1], n);
            everywhere = ints;
            t.all_max(everywhere);
            EXPECT_EQ(everywhere[0], n);
            ++finished;
        });
        EXPECT_EQ(finished, n);
    }
}

TEST(ThreadedTransport, a_thread_that_leaves_does_not_hang_the_others) {
    try {
        run_threaded(3, [](Transport& t) {
            if (t.mpi_rank() == 2) throw input_error("gone");
            t.barrier();
        });
        FAIL() << "no exception";
    } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "gone");
    }
}

TEST(ThreadedTransport, agreement_works_over_it) {
    EXPECT_THROW(run_threaded(3,
                              [](Transport& t) {
                                  agree(t, "train", [&] {
                                      if (t.mpi_rank() == 1) throw training_error("client 5 diverged");
                                  });
                              }),
                 AgreedError);
}

TEST(LocalTransport, gives_back_what_it_gets_and_moves_nothing) {
    LocalTransport t;
    const std::array<std::int64_t, 2> values{3, -4};
    std::array<std::int64_t, 2> sums{};
    t.reduce_sum(values, sums);
    EXPECT_EQ(sums, values);
    EXPECT_EQ(t.gather(std::as_bytes(std::span(values))).at(0).size(), 16u);
    EXPECT_EQ(t.bytes_sent(), 0);
    EXPECT_EQ(t.hosts().size(), 1u);
    std::array<std::int64_t, 1> short_result{};
    EXPECT_THROW(t.reduce_sum(values, short_result), Error);
}

}  // namespace
}  // namespace hetlora
