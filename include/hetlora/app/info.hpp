// What is in a file or folder, and PEFT adapters read back.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

/// A few lines for people on a model folder, an adapter folder, prepared data, or a run folder.
/// @throws Error (input) for anything else
[[nodiscard]] std::string describe_path(const std::filesystem::path& path);

}  // namespace hetlora
