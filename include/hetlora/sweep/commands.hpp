// `hetlora sweep plan|run|submit|status`.
#pragma once

#include <cstdint>

#include "hetlora/config/command_line.hpp"

namespace hetlora::sweep {

/// What the program knows of the machine it runs on.
struct Here {
    std::int64_t usable_cores = 1;
    std::int64_t free_memory_bytes = 0;  ///< 0 = unknown
};

/// Runs the verb. @return the exit code. @throws Error for everything a user can mend
[[nodiscard]] int run_sweep(const CommandLine& command, const Here& here);

}  // namespace hetlora::sweep
