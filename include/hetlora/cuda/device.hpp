// GPUs: which there are, which one this process computes on, and how much memory it has.
//
// The same functions exist in every build; against a CPU LibTorch there is simply no device. Needs no CUDA headers.
#pragma once

#include <cstdint>
#include <string>

#include "hetlora/tensor/torch.hpp"

namespace hetlora::cuda {

/// Whether this program was built against a CUDA LibTorch (and not with HETLORA_CUDA=OFF).
[[nodiscard]] bool built();
/// Whether training steps can be recorded as CUDA graphs (HETLORA_CUDA_GRAPHS).
[[nodiscard]] bool built_with_graphs();

/// GPUs that this process sees; 0 where there is no driver.
[[nodiscard]] int device_count();
[[nodiscard]] inline bool available() { return device_count() > 0; }

/// @throws Error (environment) that says whether the build or the machine lacks CUDA, and how to mend it
void require_device();

/// The device of an MPI rank: its position on the node, modulo the devices, so that several may share one.
[[nodiscard]] int device_index_for(int node_mpi_rank, int devices);
/// Makes that device the current one of this process. @throws Error (environment) as require_device
at::Device use_device(int node_mpi_rank);
/// How many of a node's MPI ranks compute on the same device as this one.
[[nodiscard]] int mpi_ranks_sharing(int node_mpi_rank, int node_mpi_size, int devices);

[[nodiscard]] std::int64_t free_memory_bytes(at::Device device);
/// "cuda:0", with the product's name where the build knows it.
[[nodiscard]] std::string device_name(at::Device device);
/// Waits until the current device has done all that it was given: for timing.
void synchronise();

/// One line for --version.
[[nodiscard]] std::string build_facts();

}  // namespace hetlora::cuda
