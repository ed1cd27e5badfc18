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

/// Reads a PEFT LoRA folder in canonical form at rank_max (missing slots are 0). The adapter's own scale is brought to
/// `scale` through B, so that scale * B A is what PEFT would add.
/// @throws Error (input) for a missing file, other matrices than the layout's, shapes that do not fit, lora_rank >
/// rank_max
[[nodiscard]] std::vector<double> read_peft_adapter(const std::filesystem::path& folder, const AdapterLayout& layout,
                                                    std::int64_t rank_max, double scale);

}  // namespace hetlora
