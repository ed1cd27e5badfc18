// From a config file and words of the command line to Settings, or to one error that lists every problem.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/config/schema.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

/// Reads, completes and checks a configuration. `overrides` are "section.key=value" and win over the file.
/// ${VARIABLE} is expanded in every value and ~ in paths; paths become absolute against the working directory.
/// @param file  the config file; without one all values come from overrides and defaults
/// @param task  which keys must be given: those of a run (also for evaluation), of pretraining, or none
/// @throws Error(usage) with all problems at once, each with its file and line (or "command line") and how to mend it
[[nodiscard]] Settings load_settings(const std::optional<std::filesystem::path>& file,
                                     const std::vector<std::string>& overrides = {},
                                     RequiredFor task = RequiredFor::run);

/// As load_settings for a config that is at hand as text, e.g. the resolved one inside a run.h5 or a checkpoint.
/// @param origin  what problems name as the file
/// @param overrides_origin  what problems name as the place of the overrides; empty = the command line
[[nodiscard]] Settings load_settings_text(std::string_view text, std::string_view origin,
                                          const std::vector<std::string>& overrides = {},
                                          RequiredFor task = RequiredFor::run, std::string_view overrides_origin = {});

}  // namespace hetlora
