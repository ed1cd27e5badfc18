// `hetlora bench`: where a round's time goes on this machine, as shares of what its matrix products could do.
#pragma once

#include "hetlora/base/terminal.hpp"
#include "hetlora/comm/transport.hpp"
#include "hetlora/config/command_line.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

/// Runs the experiment's first round again and again (nothing is written but --json FILE) for about --seconds, after a
/// round to warm up, between two measurements of the GEMM peak. Figures are medians over the rounds. One MPI rank.
int run_bench(Transport& transport, const Settings& settings, const CommandLine& command, Terminal& terminal);

}  // namespace hetlora
