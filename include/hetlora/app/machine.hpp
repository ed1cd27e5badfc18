// What the program finds out about the machine: threads, vector level, memory, versions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hetlora/comm/transport.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/model/engine.hpp"
#include "hetlora/store/run_log_rows.hpp"

namespace hetlora {

/// Before LibTorch or MPI start: memory allocator settings that suit large, short-lived blocks.
void prepare_process();

/// Resolves threads, vector level, pack size and device once on root, tells everybody, and sets them.
/// @throws AgreedError for a device that does not exist or a vector level that this processor has not
void choose_compute(Transport& transport, ComputeSettings& compute);

/// What choose_engine() found out, for the terminal.
struct EngineChoice {
    EngineOptions options;
    std::int64_t frozen_bytes = 0;
    std::int64_t step_bytes = 0;        ///< of a full pack
    std::vector<std::string> warnings;  ///< for people, on root
};

/// Resolves compute.gemm (measured once on root and broadcast) and compute.pack_tokens (from the model's geometry and
/// the node's memory, never from the number of MPI ranks), and checks that the smallest pack fits into memory.
/// @param trains_base strategy.trains_base(): what is counted is the training of all weights, and pack_tokens are the
///        rows of a pass of it
/// @throws AgreedError (environment) if it does not, with the numbers
[[nodiscard]] EngineChoice choose_engine(Transport& transport, Settings& settings, const ModelConfig& config,
                                         const AdapterLayout& layout, bool trains_base);

/// Where this MPI rank's engine computes, after choose_compute().
[[nodiscard]] at::Device engine_device(const Transport& transport, const ComputeSettings& compute);

/// The dtype of activations and frozen matrices.
[[nodiscard]] at::ScalarType activation_dtype(Precision precision);

/// Memory that this node can still give, a control group's limit included.
[[nodiscard]] std::int64_t free_memory_bytes();

/// Processors that this process may use.
[[nodiscard]] std::int64_t usable_cores();

/// Largest resident memory of this process so far.
[[nodiscard]] std::int64_t peak_memory_bytes();

/// "cpu", or the GPU's number and name.
[[nodiscard]] std::string describe_device(at::Device device);

/// Where every MPI rank runs, one line each, in order: host, cores it may use, threads, device. Collective; root has
/// the lines, elsewhere there are none.
[[nodiscard]] std::vector<std::string> placement(Transport& transport, const ComputeSettings& compute);

/// Versions of the program and its libraries, one line each; what --version prints.
[[nodiscard]] std::string build_facts();

/// Compiler, libraries, commit, hosts, device: attributes of /provenance.
[[nodiscard]] Provenance machine_provenance(const Transport& transport, at::Device device);

}  // namespace hetlora
