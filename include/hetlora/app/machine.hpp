// What the program finds out about the machine: threads, vector level, memory, versions.
#pragma once

#include <cstdint>

#include "hetlora/comm/transport.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/store/run_log_rows.hpp"

namespace hetlora {

/// Before LibTorch or MPI start: memory allocator settings that suit large, short-lived blocks.
void prepare_process();

/// Resolves threads, vector level, pack size and device once on root, tells everybody, and sets them.
/// @throws AgreedError for a device that does not exist or a vector level that this processor has not
void choose_compute(Transport& transport, ComputeSettings& compute);

/// Processors that this process may use.
[[nodiscard]] std::int64_t usable_cores();

/// Largest resident memory of this process so far.
[[nodiscard]] std::int64_t peak_memory_bytes();

/// Versions of the program and its libraries, one line each; what --version prints.
[[nodiscard]] std::string build_facts();

/// Compiler, libraries, commit, hosts: attributes of /provenance.
[[nodiscard]] Provenance machine_provenance(const Transport& transport);

}  // namespace hetlora
