// The wall clock as the run's files show it.
#pragma once

#include <string>

namespace hetlora {

/// The time now as "2026-01-31T12:34:56Z".
[[nodiscard]] std::string utc_now();

}  // namespace hetlora
