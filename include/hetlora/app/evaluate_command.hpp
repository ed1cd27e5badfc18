// `hetlora evaluate`: what a run would log of a base, or of a base with an adapter, without training anything.
#pragma once

#include "hetlora/base/terminal.hpp"
#include "hetlora/comm/transport.hpp"
#include "hetlora/config/command_line.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

/// Prints loss, accuracy and what else evaluation.metrics asks for, of evaluation.part and, where evaluation.test is
/// set, of the test part; with --json FILE also there, to the last bit. For labels macro F1 is always among them.
/// Collective. @return the exit code @throws AgreedError
int run_evaluate(Transport& transport, Settings settings, const CommandLine& command, Terminal& terminal);

}  // namespace hetlora
