// Adapters from outside: a PEFT LoRA folder (peft's own, or one that `hetlora export` wrote), read for evaluation, for
// generation, or to start a run from (`model.adapter`).
#pragma once

#include <filesystem>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/fed/strategy.hpp"
#include "hetlora/model/class_head.hpp"

namespace hetlora {

struct PeftAdapter {
    std::int64_t lora_rank = 0;
    std::vector<double> values;  ///< canonical form at lora_rank
    std::vector<double> head;    ///< of a classification head, where one was asked for and is there
};

/// Reads a PEFT LoRA folder. The adapter's own scale is brought to `scale` through B, so that scale * B A is what PEFT
/// would add; where the two scales are the same, B stays as it is to the last bit.
/// @param head that the folder may hold as its modules_to_save; null: none may be there
/// @throws Error (input) for a missing file, other matrices than the layout's, shapes that do not fit, lora_rank >
/// rank_max, and every feature of PEFT that a plain LoRA has not (DoRA, ranks by pattern, biases, ...), named
[[nodiscard]] PeftAdapter read_peft_adapter(const std::filesystem::path& folder, const AdapterLayout& layout,
                                            std::int64_t rank_max, double scale, const ClassHeadShape* head = nullptr);

/// The global adapter before the first round, canonical form at lora.rank_max: the one of model.adapter with fresh
/// slots (A by lora.init, B = 0) after its own, or a fresh one.
/// @throws Error as above; Error (usage) for a method that does not go on from an adapter
[[nodiscard]] std::vector<double> starting_adapter(const Settings& settings, const Strategy& strategy,
                                                   const AdapterLayout& layout);

}  // namespace hetlora
