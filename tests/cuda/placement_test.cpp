// What can be said about GPUs without one: which device an MPI rank takes, when a recorded step may be replayed, and
// the error where there is no device.
#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"
#include "hetlora/cuda/device.hpp"
#include "hetlora/cuda/graph_step.hpp"

namespace hetlora {
namespace {

TEST(CudaDevice, mpi_ranks_of_a_node_take_turns) {
    EXPECT_EQ(cuda::device_index_for(0, 4), 0);
    EXPECT_EQ(cuda::device_index_for(3, 4), 3);
    EXPECT_EQ(cuda::device_index_for(5, 4), 1);
    EXPECT_EQ(cuda::mpi_ranks_sharing(0, 6, 4), 2);
    EXPECT_EQ(cuda::mpi_ranks_sharing(3, 6, 4), 1);
    EXPECT_EQ(cuda::mpi_ranks_sharing(0, 1, 8), 1);
}

TEST(CudaDevice, says_what_is_missing) {
    if (cuda::available()) GTEST_SKIP() << "this machine has a GPU";
    try {
        cuda::require_device();
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::environment);
        const std::string text = error.what();
        EXPECT_NE(text.find(cuda::built() ? "sees no GPU" : "built against a LibTorch without CUDA"), std::string::npos)
            << text;
    }
    EXPECT_THROW((void)cuda::use_device(0), Error);
    if (!cuda::built_with_graphs()) {
        EXPECT_EQ(cuda::make_graph_runner(), nullptr);
    }
}

struct Batch {
    AdapterLayout layout{{{"layer.0.q", 0, "q_proj", 5, 7}}};
    AdapterGroup group{layout, 4, 8, true, at::TensorOptions().dtype(at::kFloat)};
    TokenBatch batch;

    Batch() {
        batch.token_N = at::zeros({24}, at::kLong);
        batch.loss_row_L = at::zeros({20}, at::kLong);
        batch.spans = {{0, 12}, {12, 12}};
        batch.runs = {{.group = &group,
                       .first_client = 0,
                       .clients = 2,
                       .row0 = 0,
                       .rows_per_client = 12,
                       .scale = 2.0,
                       .dropout_seed = {1, 2}}};
    }
};

TEST(CudaStepKey, depends_on_all_that_a_recorded_step_holds) {
    Batch b;
    const auto key = cuda::step_key(b.batch);
    b.batch.token_N.fill_(7);  // values are copied
    b.batch.runs[0].dropout_seed = {3, 4};
    EXPECT_EQ(cuda::step_key(b.batch), key);

    const auto changed = [&](auto change) {
        TokenBatch other = b.batch;
        change(other);
        return cuda::step_key(other) != key;
    };
    AdapterGroup elsewhere(b.layout, 4, 8, true, at::TensorOptions().dtype(at::kFloat));
    EXPECT_TRUE(changed([](TokenBatch& x) { x.loss_row_L = at::zeros({19}, at::kLong); }));
    EXPECT_TRUE(changed([](TokenBatch& x) { x.spans = {{0, 13}, {13, 11}}; }));
    EXPECT_TRUE(changed([](TokenBatch& x) { x.runs[0].scale = 2.5; }));
    EXPECT_TRUE(changed([](TokenBatch& x) { x.runs[0].first_client = 1; }));
    EXPECT_TRUE(changed([&](TokenBatch& x) { x.runs[0].group = &elsewhere; }));
    EXPECT_TRUE(changed([](TokenBatch& x) { x.runs.clear(); }));
}

}  // namespace
}  // namespace hetlora
