// See hetlora/model/families.hpp.
#include "hetlora/model/families.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace hetlora {
namespace {

/// What all encoders of the table share.
ModelFamily encoder(ModelFamily family) {
    family.qkv_bias = true;
    family.layer_norm = true;
    family.gated = false;
    family.linear_bias = true;
    family.learned_positions = true;
    family.base_prefix_optional = true;
    family.norm_eps = 1e-12;
    family.encoder = true;
    return family;
}

ConfigKeys bert_keys() { return {.norm_eps = "layer_norm_eps"}; }

ModuleNames bert_names(std::string_view pooler) {
    return {.embedding = "embeddings.word_embeddings",
            .positions = "embeddings.position_embeddings",
            .token_types = "embeddings.token_type_embeddings",
            .embedding_norm = "embeddings.LayerNorm",
            .layer = "encoder.layer.",
            .attention_norm = "attention.output.LayerNorm",
            .mlp_norm = "output.LayerNorm",
            .final_norm = "",
            .pooler = pooler,
            .matrix = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                       "", "intermediate.dense", "output.dense", ""}};
}

}  // namespace

const std::vector<ModelFamily>& model_families() {
    static const std::vector<ModelFamily> families{
        {.model_type = "llama",
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
         .window = WindowRule::flagged},
        {.model_type = "gpt2",
         .architecture = "GPT2LMHeadModel",
         .members = "GPT-2, DistilGPT2",
         .prefix = "transformer.",
         .activation = "gelu_new",
         .keys = {.hidden_size = "n_embd",
                  .intermediate_size = "n_inner",
                  .layers = "n_layer",
                  .heads = "n_head",
                  .max_positions = "n_positions",
                  .norm_eps = "layer_norm_epsilon",
                  .activation = "activation_function"},
         .names = {.embedding = "wte",
                   .positions = "wpe",
                   .layer = "h.",
                   .attention_norm = "ln_1",
                   .mlp_norm = "ln_2",
                   .final_norm = "ln_f",
                   .matrix = {"", "", "", "attn.c_proj", "", "mlp.c_fc", "mlp.c_proj", "attn.c_attn"}},
         .qkv_bias = true,
         .tied_head = true,
         .layer_norm = true,
         .gated = false,
         .linear_bias = true,
         .learned_positions = true,
         .transposed = true,
         .base_prefix_optional = true,
         .norm_eps = 1e-5},
        encoder({.model_type = "bert",
                 .architecture = "BertModel",
                 .members = "BERT, MiniLM",
                 .prefix = "bert.",
                 .activation = "gelu",
                 .keys = bert_keys(),
                 .names = bert_names("pooler.dense"),
                 .pad_id = 0,
                 .class_head = {.output = "classifier", .bias = true}}),
        encoder({.model_type = "distilbert",
                 .architecture = "DistilBertModel",
                 .members = "DistilBERT",
                 .prefix = "distilbert.",
                 .activation = "gelu",
                 .keys = {.hidden_size = "dim",
                          .intermediate_size = "hidden_dim",
                          .layers = "n_layers",
                          .heads = "n_heads",
                          .norm_eps = nullptr,
                          .activation = "activation"},
                 .names = {.embedding = "embeddings.word_embeddings",
                           .positions = "embeddings.position_embeddings",
                           .embedding_norm = "embeddings.LayerNorm",
                           .layer = "transformer.layer.",
                           .attention_norm = "sa_layer_norm",
                           .mlp_norm = "output_layer_norm",
                           .final_norm = "",
                           .matrix = {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "",
                                      "ffn.lin1", "ffn.lin2", ""}},
                 .pad_id = 0,
                 .class_head = {.output = "classifier",
                                .bias = true,
                                .dense = "pre_classifier",
                                .activation = HeadActivation::relu}}),
        encoder({.model_type = "roberta",
                 .architecture = "RobertaModel",
                 .members = "RoBERTa, DistilRoBERTa",
                 .prefix = "roberta.",
                 .activation = "gelu",
                 .keys = bert_keys(),
                 .names = bert_names(""),
                 .pad_id = 1,
                 .positions_after_padding = true,
                 .class_head = {.output = "classifier.out_proj",
                                .bias = true,
                                .dense = "classifier.dense",
                                .activation = HeadActivation::tanh}})};
    return families;
}

std::string_view ModelFamily::class_stem() const {
    std::string_view stem = architecture;
    for (const std::string_view end : {"ForCausalLM", "LMHeadModel", "Model"}) {
        if (stem.ends_with(end)) return stem.substr(0, stem.size() - end.size());
    }
    return stem;
}

std::string ModelFamily::classifier_class() const { return std::string(class_stem()) + "ForSequenceClassification"; }

std::vector<std::string> ModelFamily::read_classes() const {
    std::vector<std::string> classes{std::string(architecture)};
    if (!encoder) return classes;
    for (const char* end : {"ForSequenceClassification", "ForMaskedLM", "ForPreTraining"})
        classes.push_back(std::string(class_stem()) + end);
    return classes;
}

const ModelFamily* find_model_family(std::string_view model_type) {
    const auto& families = model_families();
    const auto found = std::ranges::find(families, model_type, &ModelFamily::model_type);
    return found == families.end() ? nullptr : &*found;
}

std::vector<LoraTarget> lora_targets(const ModelFamily& family) {
    const auto& modules = family.names.matrix;
    // The fused matrix stands where q, k and v do.
    constexpr LayerMatrix order[] = {q_proj, k_proj, v_proj, qkv_proj, o_proj, gate_proj, up_proj, down_proj};
    const auto shared = [&](std::string_view end, LayerMatrix own) {
        for (const LayerMatrix other : order) {
            const std::string path = "." + std::string(modules[other]);
            if (other != own && path.ends_with("." + std::string(end))) return true;
        }
        return false;
    };
    std::vector<LoraTarget> targets;
    for (const LayerMatrix matrix : order) {
        const std::string_view module = modules[matrix];
        if (module.empty()) continue;
        std::size_t from = module.rfind('.');
        while (from != std::string_view::npos && shared(module.substr(from + 1), matrix)) {
            from = from == 0 ? std::string_view::npos : module.rfind('.', from - 1);
        }
        const std::string_view end = module.substr(from + 1);  // npos + 1 is 0
        targets.push_back({.matrix = matrix, .name = std::string(end), .ambiguous = shared(end, matrix)});
    }
    return targets;
}

std::string supported_families() {
    std::string text;
    for (const auto& family : model_families()) {
        text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", family.model_type, family.members);
    }
    return text;
}

}  // namespace hetlora
