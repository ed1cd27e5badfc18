// The verbs of the program.
#pragma once

#include "hetlora/comm/transport.hpp"
#include "hetlora/config/command_line.hpp"

namespace hetlora {

/// True for a verb that needs no MPI, no model and no data (help, version, strategies, info, sweep, the Python verbs).
[[nodiscard]] bool is_plain_verb(const CommandLine& command);

/// Runs a plain verb. Does not return for a Python verb that could be started.
int run_plain_verb(const CommandLine& command);

/// Runs one of the other verbs; the same exit code on every mpi_rank.
int run_verb(Transport& transport, const CommandLine& command, const std::string& command_text);

}  // namespace hetlora
