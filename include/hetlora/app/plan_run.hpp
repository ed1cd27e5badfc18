// `hetlora plan`: what a run will take, from a measurement of some seconds on this machine.
//
//     seconds of a round = max over MPI ranks of (planned rows of its packs) * (measured seconds per row)
//                          + measured seconds of exchange, merge and checkpoint + evaluation (by rows) where one is due
//
// The rounds' plans are made for the number of MPI ranks asked for, so that uneven packs are in it. The peak memory is
// that of the measurement itself, which holds the base, a full pack's activations and an evaluation batch, and 7 % for
// the other shapes of later packs.
#pragma once

#include <string>
#include <vector>

#include "hetlora/base/terminal.hpp"
#include "hetlora/comm/transport.hpp"
#include "hetlora/config/command_line.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

/// Where --mpi-ranks asks for more than one and nothing started this process: replaces it by the same command under
/// mpirun, with as many MPI ranks as the cores allow, so that they are measured side by side. Returns where there is
/// no mpirun, or nothing to do.
void start_plan_under_mpirun(const CommandLine& command, const std::vector<std::string>& words);

/// Measures and prints the plan. Writes nothing but --json FILE. @throws AgreedError as a run's start would
int run_plan(Transport& transport, const Settings& settings, const CommandLine& command, Terminal& terminal);

}  // namespace hetlora
