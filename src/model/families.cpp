// See hetlora/model/families.hpp.
#include "hetlora/model/families.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace hetlora {

const std::vector<ModelFamily>& model_families() {
    static const std::vector<ModelFamily> families{{.model_type = "llama",
                                                    .architecture = "LlamaForCausalLM",
                                                    .members = "Llama 2, 3, 3.1 and 3.2, TinyLlama, SmolLM, SmolLM2",
                                                    .prefix = "model.",
                                                    .activation = "silu"},
                                                   {.model_type = "mistral",
                                                    .architecture = "MistralForCausalLM",
                                                    .members = "Mistral 7B",
                                                    .prefix = "model.",
                                                    .activation = "silu",
                                                    .window = WindowRule::always},
                                                   {.model_type = "qwen2",
                                                    .architecture = "Qwen2ForCausalLM",
                                                    .members = "Qwen2, Qwen2.5",
                                                    .prefix = "model.",
                                                    .activation = "silu",
                                                    .qkv_bias = true,
                                                    .window = WindowRule::flagged},
                                                   {.model_type = "qwen3",
                                                    .architecture = "Qwen3ForCausalLM",
                                                    .members = "Qwen3",
                                                    .prefix = "model.",
                                                    .activation = "silu",
                                                    .qk_norm = true,
                                                    .window = WindowRule::flagged}};
    return families;
}

const ModelFamily* find_model_family(std::string_view model_type) {
    const auto& families = model_families();
    const auto found = std::ranges::find(families, model_type, &ModelFamily::model_type);
    return found == families.end() ? nullptr : &*found;
}

std::string supported_families() {
    std::string text;
    for (const auto& family : model_families()) {
        text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", family.model_type, family.members);
    }
    return text;
}

}  // namespace hetlora
