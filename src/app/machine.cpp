#include "hetlora/app/machine.hpp"

#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/version.hpp>
#include <cstdlib>
#include <thread>

#include "hetlora/app/build_info.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/comm/mpi_transport.hpp"
#include "hetlora/tensor/kernels.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

/// Rows of a pass through the model that fill a CPU's GEMMs; larger packs bring nothing there.
constexpr std::int64_t cpu_pack_tokens = 2048;

VectorLevel level_of(VectorChoice choice) {
    switch (choice) {
        case VectorChoice::baseline:
            return VectorLevel::baseline;
        case VectorChoice::avx2:
            return VectorLevel::avx2;
        case VectorChoice::avx512:
            return VectorLevel::avx512;
        case VectorChoice::automatic:
            break;
    }
    return best_vector_level();
}

VectorChoice choice_of(VectorLevel level) {
    return level == VectorLevel::avx512 ? VectorChoice::avx512
           : level == VectorLevel::avx2 ? VectorChoice::avx2
                                        : VectorChoice::baseline;
}

}  // namespace

void prepare_process() {
    // Blocks of tens of megabytes come and go in every step: keep them instead of giving the pages back.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 2147483647);
}

std::int64_t usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1U, std::thread::hardware_concurrency());
}

std::int64_t peak_memory_bytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

void choose_compute(Transport& transport, ComputeSettings& compute) {
    std::array<std::int64_t, 3> chosen{};
    agree(transport, "choosing threads and kernels", [&] {
        if (compute.device == DeviceChoice::cuda) {
            throw environment_error(
                "compute.device = cuda: this version of hetlora computes on the CPU only; take `auto` or `cpu`");
        }
        if (!transport.is_root()) return;
        const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
        const std::int64_t share = std::max<std::int64_t>(1, cores / transport.node_mpi_size());
        chosen = {compute.threads > 0 ? compute.threads : std::min(share, usable_cores()),
                  static_cast<std::int64_t>(level_of(compute.vector)),
                  compute.pack_tokens > 0 ? compute.pack_tokens : cpu_pack_tokens};
    });
    transport.broadcast_values(chosen);
    agree(transport, "setting threads and kernels", [&] {
        set_vector_level(static_cast<VectorLevel>(chosen[1]));
        at::set_num_threads(static_cast<int>(chosen[0]));
    });
    compute.device = DeviceChoice::cpu;
    compute.threads = chosen[0];
    compute.vector = choice_of(static_cast<VectorLevel>(chosen[1]));
    compute.pack_tokens = chosen[2];
}

std::string build_facts() {
    return fmt::format("hetlora {} ({}{})\ncompiler {}\nLibTorch {}\nMPI {}\nHDF5 {}\nBoost {}.{}.{}",
                       build_info::version, build_info::git_commit,
                       build_info::git_dirty ? ", with uncommitted changes" : "", build_info::compiler,
                       build_info::torch_version, MpiSession::library_version(), build_info::hdf5_version,
                       BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100);
}

Provenance machine_provenance(const Transport& transport) {
    Provenance provenance;
    provenance.texts = {{"git_commit", build_info::git_commit},
                        {"compiler", build_info::compiler},
                        {"libtorch_version", build_info::torch_version},
                        {"mpi_library", MpiSession::library_version()},
                        {"hdf5_version", build_info::hdf5_version},
                        {"hosts", fmt::format("{}", join(transport.hosts(), " "))},
                        {"devices", "cpu"}};
    provenance.integers = {{"git_dirty", build_info::git_dirty ? 1 : 0}, {"mpi_size", transport.mpi_size()}};
    // An allow-list: a whole environment holds tokens and passwords.
    for (const char* name :
         {"SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION", "SLURM_NTASKS",
          "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS", "OMP_PROC_BIND", "MKL_NUM_THREADS"}) {
        if (const char* value = std::getenv(name)) provenance.texts[std::string("env_") + name] = value;
    }
    return provenance;
}

}  // namespace hetlora
