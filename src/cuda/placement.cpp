// The parts of hetlora/cuda that need no GPU: every build has them, and the tests.
#include <algorithm>
#include <cstring>

#include "hetlora/base/error.hpp"
#include "hetlora/cuda/device.hpp"
#include "hetlora/cuda/graph_step.hpp"

namespace hetlora::cuda {

void require_device() {
    if (!built()) {
        throw environment_error(
            "compute.device = cuda: this hetlora was built against a LibTorch without CUDA: build it with the CUDA "
            "build of torch (docs/gpu.md), or take compute.device = auto or cpu");
    }
    if (!available()) {
        throw environment_error(
            "compute.device = cuda: this process sees no GPU on this machine: check `nvidia-smi`, CUDA_VISIBLE_DEVICES "
            "and that the job asked for a GPU (Slurm: --gres=gpu:1); where the CUDA version that `nvidia-smi` shows is "
            "older than that of this build (`hetlora --version`), take a torch for an older CUDA (docs/install.md, An "
            "older GPU driver); or take compute.device = auto or cpu");
    }
}

int device_index_for(int node_mpi_rank, int devices) { return node_mpi_rank % std::max(1, devices); }

int mpi_ranks_sharing(int node_mpi_rank, int node_mpi_size, int devices) {
    const int own = device_index_for(node_mpi_rank, devices);
    int sharing = 0;
    for (int other = 0; other < node_mpi_size; ++other) sharing += device_index_for(other, devices) == own ? 1 : 0;
    return sharing;
}

std::string build_facts() {
    if (!built()) return "CUDA not in this build";
    return fmt::format("CUDA in this build, step graphs {}, {} device{} visible", built_with_graphs() ? "yes" : "no",
                       device_count(), device_count() == 1 ? "" : "s");
}

std::vector<std::int64_t> step_key(const TokenBatch& batch) {
    std::vector<std::int64_t> key{batch.token_N.size(0), batch.loss_row_L.size(0)};
    for (const auto& span : batch.spans) key.push_back(span.length);
    const auto address = [](const at::Tensor& x) {
        return x.defined() ? static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(x.const_data_ptr())) : 0;
    };
    for (const RowRun& run : batch.runs) {
        std::int64_t scale_bits = 0;
        static_assert(sizeof scale_bits == sizeof run.scale);
        std::memcpy(&scale_bits, &run.scale, sizeof scale_bits);
        key.insert(key.end(),
                   {address(run.group->theta_CP), address(run.group->gradient_CP), run.group->clients(),
                    run.group->width(), run.first_client, run.clients, run.row0, run.rows_per_client, scale_bits});
    }
    return key;
}

}  // namespace hetlora::cuda
