// One process's failure is everybody's error, over MPI.
#include "hetlora/comm/agree.hpp"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

#include "mpi_main.hpp"

namespace hetlora {
namespace {

using testing_mpi::transport;

/// The AgreedError that agree() ends with, as text and code.
struct Outcome {
    bool failed = false;
    ExitCode code = ExitCode::ok;
    std::string text;
    int mpi_rank = -1;
};

template <typename Function>
Outcome outcome_of(Function&& function) {
    try {
        agree(transport(), "train", std::forward<Function>(function));
        return {};
    } catch (const AgreedError& error) {
        return {true, error.code(), error.what(), error.failing_mpi_rank()};
    }
}

TEST(Agree, returns_the_result_when_nobody_fails) {
    const int mine = agree(transport(), "read", [] { return transport().mpi_rank() * 10; });
    EXPECT_EQ(mine, transport().mpi_rank() * 10);
    const auto moved = agree(transport(), "read", [] { return std::make_unique<int>(4); });  // not copyable
    EXPECT_EQ(*moved, 4);
}

TEST(Agree, the_failure_of_one_process_is_thrown_by_all) {
    const int last = transport().mpi_size() - 1;
    const auto outcome = outcome_of([&] {
        if (transport().mpi_rank() == last) throw input_error("client {} has no windows", 17);
    });
    ASSERT_TRUE(outcome.failed);
    EXPECT_EQ(outcome.code, ExitCode::input);
    EXPECT_EQ(outcome.mpi_rank, last);
    EXPECT_NE(outcome.text.find("client 17 has no windows"), std::string::npos);
    if (last > 0) {
        EXPECT_NE(outcome.text.find(fmt::format("mpi_rank {} of", last)), std::string::npos) << outcome.text;
        EXPECT_NE(outcome.text.find("phase: train"), std::string::npos) << outcome.text;
        EXPECT_NE(outcome.text.find(host_name()), std::string::npos) << outcome.text;
    }
}

TEST(Agree, the_lowest_failing_mpi_rank_speaks) {
    const auto outcome = outcome_of([] {
        throw Error(transport().is_root() ? ExitCode::training : ExitCode::input,
                    fmt::format("from {}", transport().mpi_rank()));
    });
    ASSERT_TRUE(outcome.failed);
    EXPECT_EQ(outcome.code, ExitCode::training);
    EXPECT_EQ(outcome.text.substr(0, 6), "from 0");
}

TEST(Agree, foreign_exceptions_become_clear_errors) {
    EXPECT_EQ(outcome_of([] { throw std::bad_alloc(); }).code, ExitCode::environment);
    EXPECT_EQ(outcome_of([] { throw std::logic_error("x"); }).code, ExitCode::bug);
    EXPECT_EQ(outcome_of([] { throw 3; }).code, ExitCode::bug);
}

TEST(Agree, the_processes_stay_in_step_after_a_failure) {
    EXPECT_TRUE(outcome_of([] {
                    if (transport().is_root()) throw std::runtime_error("only root");
                }).failed);
    std::array<std::int64_t, 1> n{1};
    transport().all_sum(n);
    EXPECT_EQ(n[0], transport().mpi_size());
}

TEST(Agree, an_error_of_the_transport_passes_through) {
    // Nobody may start a collective after it, so agree() must not.
    EXPECT_THROW(agree(transport(), "train", [] { throw TransportError("link down"); }), TransportError);
}

}  // namespace
}  // namespace hetlora
