// The content of the adapter that a run starts from, as a part of the run's identity.
#pragma once

#include <filesystem>
#include <string>

namespace hetlora {

/// SHA-256 of what a PEFT folder adds to a model: its tensors' file, and the keys of adapter_config.json that give the
/// scale. Read once per process.
/// @throws Error (input) if a file cannot be read
[[nodiscard]] std::string adapter_sha256(const std::filesystem::path& folder);

}  // namespace hetlora
