// main() of the MPI tests: GoogleTest's report of root, the failures of every mpi_rank, and an exit code that is the
// maximum over the mpi_ranks, so that a failure on any of them fails the test.
#include "mpi_main.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>

namespace hetlora::testing_mpi {

namespace {

Transport* shared_transport = nullptr;
MpiSession* shared_session = nullptr;

/// Prints failures only, with the mpi_rank in front; replaces the ordinary report on all but root.
class FailurePrinter final : public ::testing::EmptyTestEventListener {
public:
    explicit FailurePrinter(int mpi_rank) : mpi_rank_(mpi_rank) {}
    void OnTestStart(const ::testing::TestInfo& info) override { info_ = &info; }
    void OnTestEnd(const ::testing::TestInfo&) override { info_ = nullptr; }
    /// GoogleTest calls this with its lock held: asking UnitTest for the current test here would wait for ever.
    void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (!result.failed()) return;
        std::fprintf(stderr, "[mpi_rank %d] %s.%s\n%s:%d: %s\n", mpi_rank_, info_ ? info_->test_suite_name() : "?",
                     info_ ? info_->name() : "?", result.file_name() ? result.file_name() : "?", result.line_number(),
                     result.message());
    }

private:
    int mpi_rank_;
    const ::testing::TestInfo* info_ = nullptr;
};

}  // namespace

Transport& transport() { return *shared_transport; }

std::unique_ptr<Transport> transport_with_messages_of(std::int64_t message_bytes) {
    return make_mpi_transport(*shared_session, message_bytes);
}

}  // namespace hetlora::testing_mpi

int main(int argc, char** argv) {
    namespace mpi = hetlora::testing_mpi;
    hetlora::MpiSession session(&argc, &argv);
    const auto transport = hetlora::make_mpi_transport(session);
    mpi::shared_session = &session;
    mpi::shared_transport = transport.get();

    ::testing::InitGoogleTest(&argc, argv);
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    if (!transport->is_root()) {
        delete listeners.Release(listeners.default_result_printer());
        listeners.Append(new mpi::FailurePrinter(transport->mpi_rank()));  // GoogleTest owns its listeners
    }
    std::array<std::int64_t, 1> code{RUN_ALL_TESTS()};
    transport->all_max(code);
    return static_cast<int>(code[0]);
}
