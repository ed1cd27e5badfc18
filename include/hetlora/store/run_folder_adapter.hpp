// Writes a LoRA adapter as a folder that Hugging Face's peft loads: adapter_config.json and adapter_model.safetensors.
//
//     base_model.model.<matrix>.lora_A.weight  [r, d_in ]   = A
//     base_model.model.<matrix>.lora_B.weight  [d_out, r]   = B, the transpose of the canonical form's Bt
//     base_model.model.<tensor>                             = what is trained whole, of the modules_to_save
//
// peft adds (lora_alpha / r) * B A, so lora_alpha = scale * r.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

/// A tensor that is trained whole beside the adapter, e.g. "score.weight" of a classification head.
struct SavedTensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::span<const double> values;
};

/// What the adapter's files say beside its values.
struct AdapterExport {
    std::int64_t lora_rank = 0;
    double scale = 1.0;                          ///< s in W0 + s B A
    std::string base_model{};                    ///< path or name of the base, for base_model_name_or_path
    std::string dtype = "F32";                   ///< stored type: "F32" or "F64"
    bool fan_in_fan_out = false;                 ///< the base stores its matrices as [inputs, outputs]
    std::string task_type = "CAUSAL_LM";         ///< as peft names it
    std::vector<std::string> modules_to_save{};  ///< modules that saved tensors are of
    std::vector<SavedTensor> saved{};
    std::map<std::string, std::string> metadata{};  ///< texts for the header of the safetensors file
};

/// Writes `folder` as a whole or not at all; an adapter that stood there is replaced.
/// @param values canonical form at about.lora_rank: per matrix A [r, d_in], then Bt [r, d_out]
/// @throws Error (bug) if the number of values does not fit; Error (environment) if the disk refuses.
void write_peft_adapter(const std::filesystem::path& folder, const AdapterLayout& layout,
                        std::span<const double> values, const AdapterExport& about);

}  // namespace hetlora
