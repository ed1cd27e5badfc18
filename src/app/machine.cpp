#include "hetlora/app/machine.hpp"

#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/version.hpp>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>

#include "hetlora/app/build_info.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/comm/mpi_transport.hpp"
#include "hetlora/cuda/device.hpp"
#include "hetlora/model/memory.hpp"
#include "hetlora/tensor/kernels.hpp"
#include "hetlora/tensor/matrix_unit.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

/// Rows of a pass through the model that fill a CPU's GEMMs; larger packs bring nothing there.
constexpr std::int64_t cpu_pack_tokens = 1024;
constexpr std::int64_t least_pack_tokens = 256;
/// The same for a GPU (chosen by its arithmetic, not measured: docs/gpu.md).
constexpr std::int64_t gpu_pack_tokens = 16384;
/// Activations of a pack, if they were float32, that are worth their memory; wide models fill the GEMMs with fewer rows
/// anyway.
constexpr std::int64_t pack_activation_bytes = std::int64_t{1} << 29;
/// What a core's second-level cache and a little more holds: where a layer of the smallest pack stays in it, and a
/// product costs no more than its work (GemmPath::tiles), more rows a thread only drive it out.
constexpr std::int64_t near_cache_bytes = std::int64_t{3} << 19;

/// The first number in a file, or -1.
std::int64_t number_in(const std::string& path) {
    std::ifstream file(path);
    std::int64_t value = -1;
    return file >> value ? value : -1;
}

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

/// Most rows of a pack on a CPU. @param single what a row takes in float32: packs have the same rows in every precision
std::int64_t most_cpu_pack_tokens(const EngineMemory& single, GemmPath path, int threads) {
    const std::int64_t worth_rows =
        pack_activation_bytes / single.bytes_per_row / least_pack_tokens * least_pack_tokens;
    const bool layer_stays_near =
        path == GemmPath::tiles && least_pack_tokens * single.temporary_bytes_per_row <= near_cache_bytes;
    const std::int64_t near_rows = layer_stays_near ? least_pack_tokens * std::max(threads, 1) : cpu_pack_tokens;
    return std::min({near_rows, cpu_pack_tokens, std::max(worth_rows, least_pack_tokens)});
}

/// Says what bfloat16 costs on this processor, measured on one of the model's matrices.
std::string bf16_warning(const ModelConfig& config) {
    const std::array<GemmShape, 1> shape{GemmShape{config.hidden_size, config.intermediate_size}};
    const auto fastest_s = [&](at::ScalarType dtype) {
        return std::ranges::min(measure_gemm(shape, dtype, at::kCPU), {}, &GemmMeasurement::seconds).seconds;
    };
    const double single = fastest_s(at::kFloat);
    const double half = fastest_s(at::kBFloat16);
    return fmt::format(
        "model.precision = bf16: this processor has no bfloat16 instructions, so its values are multiplied as float32: "
        "the results are those of bfloat16, but the frozen matrices take {:.2f} times as long as in fp32 and no less "
        "memory (measured now); model.precision = fp32 is the better choice here",
        half / single);
}

}  // namespace

void prepare_process() {
    // Blocks of tens of megabytes come and go in every step: keep them instead of giving the pages back.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 2147483647);
    // MKL keeps its own buffers for every shape of matrices that it has seen: packs differ from round to round, and the
    // memory of a run would grow for dozens of rounds (tiny-chat with 2 threads: by 100 MB and more).
    setenv("MKL_DISABLE_FAST_MM", "1", /*overwrite=*/0);
}

std::int64_t usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1U, std::thread::hardware_concurrency());
}

/// What Linux says of this process behind a key of /proc/self/status; empty where there is no such line.
static std::string process_status(std::string_view key) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(key)) return std::string(trim(std::string_view(line).substr(key.size())));
    }
    return {};
}

/// "0-3,8" as Linux writes it.
static std::string usable_core_ranges() {
    const std::string ranges = process_status("Cpus_allowed_list:");
    return ranges.empty() ? "?" : ranges;
}

std::int64_t peak_memory_bytes() {
    // Not ru_maxrss: that begins at the size of the process which started this one.
    const std::string kilobytes = process_status("VmHWM:");
    if (!kilobytes.empty()) return std::strtoll(kilobytes.c_str(), nullptr, 10) * 1024;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

void choose_compute(Transport& transport, ComputeSettings& compute) {
    std::array<std::int64_t, 3> chosen{};
    agree(transport, "choosing device, threads and kernels", [&] {
        if (compute.device == DeviceChoice::cuda) cuda::require_device();
        if (!transport.is_root()) return;
        const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
        const std::int64_t share = std::max<std::int64_t>(1, cores / transport.node_mpi_size());
        chosen = {compute.threads > 0 ? compute.threads : std::min(share, usable_cores()),
                  static_cast<std::int64_t>(level_of(compute.vector)),
                  compute.device != DeviceChoice::cpu && cuda::available() ? 1 : 0};
    });
    transport.broadcast_values(chosen);
    agree(transport, "setting threads and kernels", [&] {
        set_vector_level(static_cast<VectorLevel>(chosen[1]));
        at::set_num_threads(static_cast<int>(chosen[0]));
        if (chosen[2] != 0) (void)cuda::use_device(transport.node_mpi_rank());
    });
    compute.device = chosen[2] != 0 ? DeviceChoice::cuda : DeviceChoice::cpu;
    compute.threads = chosen[0];
    compute.vector = choice_of(static_cast<VectorLevel>(chosen[1]));
}

at::Device engine_device(const Transport& transport, const ComputeSettings& compute) {
    return compute.device == DeviceChoice::cuda ? cuda::use_device(transport.node_mpi_rank()) : at::Device(at::kCPU);
}

at::ScalarType activation_dtype(Precision precision) {
    return precision == Precision::fp64 ? at::kDouble : precision == Precision::bf16 ? at::kBFloat16 : at::kFloat;
}

std::int64_t free_memory_bytes() {
    std::int64_t free_bytes = std::numeric_limits<std::int64_t>::max();
    std::ifstream meminfo("/proc/meminfo");
    std::string name;
    std::int64_t kib = 0;
    std::string unit;
    while (meminfo >> name >> kib && std::getline(meminfo, unit)) {
        if (name == "MemAvailable:") free_bytes = kib * 1024;
    }
    const std::int64_t limit = number_in("/sys/fs/cgroup/memory.max");
    const std::int64_t used = number_in("/sys/fs/cgroup/memory.current");
    if (limit > 0 && used >= 0) free_bytes = std::min(free_bytes, limit - used);
    return free_bytes;
}

EngineChoice choose_engine(Transport& transport, Settings& settings, const ModelConfig& config,
                           const AdapterLayout& layout, bool trains_base) {
    ComputeSettings& compute = settings.compute;
    const at::ScalarType dtype = activation_dtype(settings.model.precision);
    const at::Device device = engine_device(transport, compute);
    const bool on_gpu = device.is_cuda();
    EngineChoice choice;
    std::array<std::int64_t, 3> chosen{};
    agree(transport, "measuring the matrix products", [&] {
        if (on_gpu && settings.lora.dropout > 0.0) {
            throw usage_error(
                "lora.dropout = {} is only available on the CPU so far: set it to 0, or take compute.device = cpu",
                settings.lora.dropout);
        }
        if (on_gpu && compute.gemm != GemmChoice::automatic && compute.gemm != GemmChoice::mkl) {
            throw usage_error("compute.gemm = {} is a way of the CPU: leave it at auto with compute.device = cuda",
                              name_of(compute.gemm));
        }
        if (!transport.is_root()) return;
        GemmPath path = GemmPath::mkl;
        if (on_gpu) {  // the library's own products
        } else if (compute.gemm == GemmChoice::automatic) {
            const std::int64_t I = config.intermediate_size;
            const std::array<GemmShape, 4> shapes{
                GemmShape{config.hidden_size, config.query_width() + 2 * config.kv_width()},
                GemmShape{config.query_width(), config.hidden_size}, GemmShape{config.hidden_size, config.up_width()},
                GemmShape{I, config.hidden_size}};
            path = dtype == at::kDouble ? GemmPath::mkl : fastest_gemm(measure_gemm(shapes, dtype, at::kCPU));
        } else {
            path = compute.gemm == GemmChoice::onednn    ? GemmPath::onednn
                   : compute.gemm == GemmChoice::widened ? GemmPath::widened
                   : compute.gemm == GemmChoice::tiles   ? GemmPath::tiles
                                                         : GemmPath::mkl;
        }
        if (path == GemmPath::widened || (!on_gpu && dtype == at::kBFloat16 && !has_bf16_hardware())) {
            choice.warnings.push_back(bf16_warning(config));
        }
        chosen[0] = static_cast<std::int64_t>(path);
    });
    const std::byte mine{has_matrix_unit() ? std::uint8_t{1} : std::uint8_t{0}};
    const auto everybodys = transport.gather(std::span(&mine, 1));
    if (transport.is_root()) {
        chosen[2] = std::ranges::all_of(everybodys, [](const auto& bytes) { return bytes.at(0) == std::byte{1}; });
    }
    transport.broadcast_values(chosen);
    allow_matrix_unit(chosen[2] != 0);
    const auto path = static_cast<GemmPath>(chosen[0]);
    choice.options = {.gemm = path, .recompute = compute.recompute == Recompute::layer};
    const EngineGeometry geometry{.activation_bytes = static_cast<std::int64_t>(c10::elementSize(dtype)),
                                  .residual_bytes = dtype == at::kDouble ? 8 : 4,
                                  .frozen_copies = path == GemmPath::mkl ? 1.0 : 2.0,  // widened: float32 is two bf16
                                  .recompute = choice.options.recompute,
                                  .lora_width = lora_width(settings.lora.rank_max)};
    const EngineMemory memory =
        trains_base
            ? full_training_memory(config, {.value_bytes = static_cast<std::int64_t>(c10::elementSize(dtype)),
                                            .moments = settings.local.optimizer == OptimizerKind::adamw ? 2 : 0,
                                            .sum_bytes = settings.comm.reduction == ReductionKind::exact ? 16 : 8,
                                            .sequence_length = settings.data.sequence_length})
            : engine_memory(config, layout, geometry);
    agree(transport, "counting memory", [&] {
        const std::int64_t free_bytes = on_gpu ? cuda::free_memory_bytes(device) : free_memory_bytes();
        const std::int64_t sharing =
            on_gpu ? cuda::mpi_ranks_sharing(transport.node_mpi_rank(), transport.node_mpi_size(), cuda::device_count())
                   : transport.node_mpi_size();
        if (transport.is_root()) {
            EngineGeometry single = geometry;
            single.activation_bytes = single.residual_bytes = 4;
            const std::int64_t most =
                on_gpu ? gpu_pack_tokens
                       : most_cpu_pack_tokens(trains_base ? memory : engine_memory(config, layout, single), path,
                                              compute.threads);
            const std::int64_t rows = free_bytes / 4 / memory.bytes_per_row / least_pack_tokens * least_pack_tokens;
            const std::int64_t longest = settings.data.sequence_length;
            chosen[1] = compute.pack_tokens > 0
                            ? compute.pack_tokens
                            : std::clamp(rows, std::max(least_pack_tokens, longest), std::max(most, longest));
        }
        const std::int64_t available = compute.memory_gib > 0
                                           ? static_cast<std::int64_t>(compute.memory_gib * 1073741824.0)
                                           : free_bytes / sharing;
        // Full fine-tuning goes through a step's sequences in passes of one at least.
        const std::int64_t smallest = (trains_base ? 1 : settings.local.batch_size) * settings.data.sequence_length;
        const std::int64_t needed = memory.frozen_bytes + memory.step_bytes(smallest);
        if (needed > available) {
            const std::string more =
                trains_base ? std::string("lower data.sequence_length, or take an adapter method")
                            : fmt::format(
                                  "lower local.batch_size or data.sequence_length, or set "
                                  "compute.recompute = layer{}",
                                  settings.model.precision == Precision::fp32 ? " or model.precision = bf16" : "");
            throw environment_error(
                "one client's step ({} sequences of {} tokens) needs about {} of memory ({} for the {} model, {} "
                "for {}), but this MPI rank can have {} (compute.memory_gib, or its share of the node's free "
                "memory): ask for more memory or fewer MPI ranks per node, {}",
                settings.local.batch_size, settings.data.sequence_length, human_bytes(static_cast<double>(needed)),
                human_bytes(static_cast<double>(memory.frozen_bytes)), trains_base ? "global" : "frozen",
                human_bytes(static_cast<double>(memory.step_bytes(smallest))),
                trains_base ? "a client's copy, gradients, moments, the sum and activations" : "activations",
                human_bytes(static_cast<double>(available)), more);
        }
    });
    transport.broadcast_values(chosen);
    compute.pack_tokens = chosen[1];
    compute.gemm = path == GemmPath::onednn    ? GemmChoice::onednn
                   : path == GemmPath::widened ? GemmChoice::widened
                   : path == GemmPath::tiles   ? GemmChoice::tiles
                                               : GemmChoice::mkl;
    choice.frozen_bytes = memory.frozen_bytes;
    choice.step_bytes = memory.step_bytes(compute.pack_tokens);
    return choice;
}

std::string describe_device(at::Device device) { return device.is_cuda() ? cuda::device_name(device) : "cpu"; }

std::vector<std::string> placement(Transport& transport, const ComputeSettings& compute) {
    const std::string mine = fmt::format(
        "MPI rank {} on {}: cores {}, {} threads, {}{}", transport.mpi_rank(),
        transport.hosts()[static_cast<std::size_t>(transport.mpi_rank())], usable_core_ranges(), compute.threads,
        describe_device(engine_device(transport, compute)),
        compute.threads > usable_cores() ? " (more threads than cores: slow; see the launcher's binding options)" : "");
    std::vector<std::string> lines;
    for (const auto& bytes : transport.gather(std::as_bytes(std::span(mine)))) {
        lines.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    return lines;
}

std::string build_facts() {
    return fmt::format(
        "hetlora {} ({}{})\ncompiler {}\nLibTorch {}\n{}\nMPI {}\nHDF5 {}\nBoost {}.{}.{}", build_info::version,
        build_info::git_commit, build_info::git_dirty ? ", with uncommitted changes" : "", build_info::compiler,
        build_info::torch_version, cuda::build_facts(), MpiSession::library_version(), build_info::hdf5_version,
        BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100);
}

Provenance machine_provenance(const Transport& transport, at::Device device) {
    Provenance provenance;
    provenance.texts = {{"git_commit", build_info::git_commit},
                        {"compiler", build_info::compiler},
                        {"libtorch_version", build_info::torch_version},
                        {"mpi_library", MpiSession::library_version()},
                        {"hdf5_version", build_info::hdf5_version},
                        {"hosts", fmt::format("{}", join(transport.hosts(), " "))},
                        {"devices", describe_device(device)},
                        {"bf16_products", has_matrix_unit() ? "processor" : "float32"}};
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
