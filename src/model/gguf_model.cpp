// See gguf_model.hpp.
#include "gguf_model.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

constexpr std::int64_t chunk_elements = std::int64_t{1} << 20;  // of float32 in passing

struct GgufName {
    std::string_view model;
    std::string_view file;
};
constexpr std::array gguf_module_names{
    GgufName{"input_layernorm", "attn_norm"},    GgufName{"post_attention_layernorm", "ffn_norm"},
    GgufName{"self_attn.q_proj", "attn_q"},      GgufName{"self_attn.k_proj", "attn_k"},
    GgufName{"self_attn.v_proj", "attn_v"},      GgufName{"self_attn.o_proj", "attn_output"},
    GgufName{"self_attn.q_norm", "attn_q_norm"}, GgufName{"self_attn.k_norm", "attn_k_norm"},
    GgufName{"mlp.gate_proj", "ffn_gate"},       GgufName{"mlp.up_proj", "ffn_up"},
    GgufName{"mlp.down_proj", "ffn_down"},
};
constexpr std::array gguf_outer_names{GgufName{"model.embed_tokens", "token_embd"},
                                      GgufName{"model.norm", "output_norm"}, GgufName{"lm_head", "output"}};

std::string_view gguf_name_of(std::span<const GgufName> names, std::string_view name) {
    const auto found = std::ranges::find(names, name, &GgufName::model);
    return found == names.end() ? std::string_view() : found->file;
}

/// Architectures whose tensors are those of the family of the same name. Mistral's files say llama.
bool is_read_architecture(std::string_view name) { return name == "llama" || name == "qwen2" || name == "qwen3"; }

/// The rows of q and k in llama's files: of every head, rotary pairs side by side instead of the two halves.
bool has_paired_rows(const ModelFamily& family, std::string_view name) {
    return family.model_type == "llama" && (name.ends_with(".attn_q.weight") || name.ends_with(".attn_k.weight"));
}

/// What config.json calls the sizes, and the metadata keys without the architecture in front.
struct GgufSize {
    const char* config;
    const char* file;
    bool needed = true;
};
constexpr std::array gguf_sizes{
    GgufSize{"hidden_size", "embedding_length"},
    GgufSize{"intermediate_size", "feed_forward_length"},
    GgufSize{"num_hidden_layers", "block_count"},
    GgufSize{"num_attention_heads", "attention.head_count"},
    GgufSize{"num_key_value_heads", "attention.head_count_kv", false},
    GgufSize{"max_position_embeddings", "context_length"},
    GgufSize{"head_dim", "attention.key_length", false},
};

/// Reads the keys of one architecture and collects what is wrong with them.
class GgufConfigReader {
public:
    GgufConfigReader(const GgufFile& file, std::string architecture)
        : file_(file), architecture_(std::move(architecture)) {}

    std::string key(std::string_view name) {
        std::string full = architecture_ + "." + std::string(name);
        known_.insert(full);
        return full;
    }
    void complain(std::string text) { problems_.push_back(std::move(text)); }
    void expect(std::string_view name, std::int64_t wanted) {
        const auto value = file_.integer(key(name));
        if (value && *value != wanted) {
            complain(fmt::format("`{}` = {} is not implemented (only {})", key(name), *value, wanted));
        }
    }
    /// An extent of a tensor, so that nothing is allocated that the file does not hold.
    void expect_shape(const char* tensor, std::vector<std::int64_t> shape) {
        const GgufTensor* found = file_.find(tensor);
        if (found == nullptr) {
            complain(fmt::format("the tensor {} is missing", tensor));
        } else if (found->shape != shape) {
            complain(fmt::format("the tensor {} has the shape [{}], the metadata ask for [{}]", tensor,
                                 fmt::join(found->shape, ", "), fmt::join(shape, ", ")));
        }
    }
    void finish() {
        for (const std::string& name : file_.keys()) {
            if (name.starts_with(architecture_ + ".") && !known_.contains(name)) {
                complain(fmt::format("the key `{}` is not implemented", name));
            }
        }
        if (problems_.empty()) return;
        throw input_error(
            "{}: this GGUF model cannot be used:\n  - {}\nread are llama, qwen2 and qwen3 "
            "(docs/models.md): choose such a file, or the original model's folder, in `model.path`",
            file_.path().string(), fmt::join(problems_, "\n  - "));
    }

private:
    const GgufFile& file_;
    std::string architecture_;
    std::set<std::string> known_;
    std::vector<std::string> problems_;
};

/// Whether the head is the embedding: not stored, or stored a second time.
bool has_tied_head(const GgufFile& file) {
    const GgufTensor* head = file.find("output.weight");
    const GgufTensor* embedding = file.find("token_embd.weight");
    if (head == nullptr) return true;
    return embedding != nullptr && head->format == embedding->format && head->shape == embedding->shape &&
           std::ranges::equal(file.bytes(*head), file.bytes(*embedding));
}

std::string chosen_architecture(const GgufFile& file) {
    std::string name = file.text("general.architecture").value_or("?");
    if (is_read_architecture(name)) return name;
    throw input_error(
        "{}: general.architecture is `{}`: read are llama (Mistral 7B among them), qwen2 and qwen3; choose such a file "
        "in `model.path` (docs/models.md)",
        file.path().string(), name.substr(0, 80));
}

/// A number that the file holds as float32 (9.99999974e-06): six significant digits bring back the one that was meant.
double meant_number(double stored) { return parse_number(fmt::format("{:.6g}", stored)).value_or(stored); }

/// How Llama 3.1 and later keep their rotary rule; no key tells of it: [E/2] values f_i / f'_i, those of the plain rule
/// over those of the model's own.
constexpr const char* rotary_factors_name = "rope_freqs.weight";

/// The llama3 rule that gives these factors: its other numbers are the same in all models that were published, and the
/// largest factor is the rule's. @return nothing if it gives others
std::optional<RotaryRule> llama3_rule(std::span<const float> factors, std::int64_t head_size, double theta) {
    if (2 * std::ssize(factors) != head_size) return std::nullopt;
    const RotaryRule rule{.kind = RotaryKind::llama3,
                          .factor = meant_number(std::ranges::max(factors)),
                          .low_frequency = 1.0,
                          .high_frequency = 4.0,
                          .original_positions = 8192.0};
    const std::vector<double> plain = rotary_frequencies(head_size, theta, {}, /*single=*/false);
    const std::vector<double> scaled = rotary_frequencies(head_size, theta, rule, /*single=*/false);
    for (std::size_t i = 0; i < factors.size(); ++i) {
        const double expected = plain[i] / scaled[i];
        if (!(std::abs(static_cast<double>(factors[i]) - expected) <= 1e-4 * expected)) return std::nullopt;
    }
    return rule;
}

/// The rotary rule as config.json writes it.
void read_rotary(const GgufFile& file, GgufConfigReader& reader, std::int64_t head_size, nlohmann::json& object) {
    const double theta = file.number(reader.key("rope.freq_base")).value_or(10000.0);
    nlohmann::json rope{{"rope_theta", theta}, {"rope_type", "default"}};
    const std::string scaling = file.text(reader.key("rope.scaling.type")).value_or("none");
    const auto factor = file.number(reader.key("rope.scaling.factor"));
    if (scaling == "linear") {
        rope["rope_type"] = "linear";
        rope["factor"] = meant_number(factor.value_or(0.0));
    } else if (scaling != "none") {
        reader.complain(fmt::format("`{}` = {} is not implemented", reader.key("rope.scaling.type"), scaling));
    }
    const GgufTensor* factors = file.find(rotary_factors_name);
    if (factors != nullptr && head_size > 0) {
        std::vector<float> values(static_cast<std::size_t>(factors->shape.empty() ? 0 : factors->shape.back()));
        if (factors->rows() == 1 && !values.empty()) file.read_rows(*factors, 0, 1, values.data());
        const auto rule = values.empty() || scaling != "none" ? std::nullopt : llama3_rule(values, head_size, theta);
        if (rule) {
            rope = {{"rope_theta", theta},
                    {"rope_type", "llama3"},
                    {"factor", rule->factor},
                    {"low_freq_factor", rule->low_frequency},
                    {"high_freq_factor", rule->high_frequency},
                    {"original_max_position_embeddings", static_cast<std::int64_t>(rule->original_positions)}};
        } else {
            reader.complain(fmt::format(
                "the rotary factors in the tensor {} are not those of Llama 3.1 to 3.3 (rule llama3 with low 1, high 4 "
                "and 8192 positions)",
                rotary_factors_name));
        }
    }
    object["rope_parameters"] = rope;
}

void add_token(const GgufFile& file, nlohmann::json& object, const char* name, const char* key) {
    if (const auto id = file.integer(key)) object[name] = *id;
}

/// Copies rows [first, first + rows_OI's) of a tensor; paired rows are those of whole heads.
void copy_rows(const GgufFile& file, const GgufTensor& from, std::int64_t first, const at::Tensor& rows_OI,
               std::int64_t head_size) {
    const std::int64_t count = rows_OI.size(0);
    const std::int64_t width = from.shape.back();
    at::Tensor read = at::empty({count, width}, at::TensorOptions().dtype(at::kFloat));
    file.read_rows(from, first, count, read.mutable_data_ptr<float>());
    if (head_size > 0) read = read.view({-1, head_size / 2, 2, width}).transpose(1, 2).reshape({count, width});
    at::Tensor(rows_OI).copy_(read);
}

}  // namespace

std::string gguf_tensor_name(const std::string& name) {
    const auto dot = name.rfind('.');
    if (dot == std::string::npos) return {};
    const std::string_view module = std::string_view(name).substr(0, dot);
    const std::string_view kind = std::string_view(name).substr(dot);
    if (const auto outer = gguf_name_of(gguf_outer_names, module); !outer.empty())
        return fmt::format("{}{}", outer, kind);
    constexpr std::string_view layers = "model.layers.";
    if (!module.starts_with(layers)) return {};
    const std::string_view rest = module.substr(layers.size());
    const auto end = rest.find('.');
    if (end == std::string_view::npos) return {};
    const auto inner = gguf_name_of(gguf_module_names, rest.substr(end + 1));
    return inner.empty() ? std::string() : fmt::format("blk.{}.{}{}", rest.substr(0, end), inner, kind);
}

nlohmann::json gguf_config(const GgufFile& file) {
    const std::string architecture = chosen_architecture(file);
    GgufConfigReader reader(file, architecture);
    nlohmann::json object{{"model_type", architecture}};
    std::map<std::string, std::int64_t> size;
    bool all_there = true;
    for (const GgufSize& one : gguf_sizes) {
        const std::string key = reader.key(one.file);
        const auto value = file.integer(key);
        if (value && *value > 0 && *value <= INT32_MAX) {
            object[one.config] = size[one.config] = *value;
        } else if (value || one.needed) {
            reader.complain(value ? fmt::format("`{}` = {} is no size of a model", key, *value)
                                  : fmt::format("`{}` is missing", key));
            all_there = false;
        }
    }
    const auto eps = file.number(reader.key("attention.layer_norm_rms_epsilon"));
    if (!eps) reader.complain(fmt::format("`{}` is missing", reader.key("attention.layer_norm_rms_epsilon")));
    object["rms_norm_eps"] = meant_number(eps.value_or(0.0));
    // Counts of what a dense model has none of.
    for (const char* none : {"expert_count", "expert_used_count"}) reader.expect(none, 0);
    object["tie_word_embeddings"] = has_tied_head(file);
    add_token(file, object, "bos_token_id", "tokenizer.ggml.bos_token_id");
    add_token(file, object, "eos_token_id", "tokenizer.ggml.eos_token_id");

    const GgufTensor* embedding = file.find("token_embd.weight");
    const std::int64_t vocabulary = embedding == nullptr ? 0 : embedding->rows();
    object["vocab_size"] = vocabulary;
    reader.expect("vocab_size", vocabulary);
    const auto tokens = file.length("tokenizer.ggml.tokens");
    if (tokens && *tokens != vocabulary) {
        reader.complain(fmt::format("{} tokens, but {} rows of token_embd.weight", *tokens, vocabulary));
    }
    if (!all_there) size["head_dim"] = 0;
    if (all_there) {
        size.try_emplace("head_dim", size["hidden_size"] / size["num_attention_heads"]);
        object["head_dim"] = size["head_dim"];
        reader.expect("attention.value_length", size["head_dim"]);
        reader.expect("rope.dimension_count", size["head_dim"]);
        reader.expect_shape("token_embd.weight", {vocabulary, size["hidden_size"]});
        reader.expect_shape("blk.0.attn_q.weight",
                            {size["num_attention_heads"] * size["head_dim"], size["hidden_size"]});
        reader.expect_shape("blk.0.ffn_up.weight", {size["intermediate_size"], size["hidden_size"]});
        if (size["num_hidden_layers"] > std::ssize(file.tensors())) {
            reader.complain(fmt::format("{} layers, but {} tensors", size["num_hidden_layers"], file.tensors().size()));
        }
    }
    read_rotary(file, reader, size["head_dim"], object);
    reader.finish();
    return object;
}

void fill_weights(const GgufFile& file, LlamaWeights& weights) {
    const ModelConfig& config = weights.config;
    std::set<std::string> used;
    for (const auto& [name, tensor] : named_weights(weights)) {
        const std::string stored_name = gguf_tensor_name(name);
        const GgufTensor* stored = file.find(stored_name);
        if (stored == nullptr) {
            throw input_error("{}: tensor {} ({}) is missing: the metadata promise {} layers; the file is incomplete",
                              file.path().string(), stored_name, name, config.layers);
        }
        if (stored->shape != tensor.sizes().vec()) {
            throw input_error("{}: tensor {} has the shape [{}] but the metadata ask for [{}]", file.path().string(),
                              stored_name, fmt::join(stored->shape, ", "), fmt::join(tensor.sizes(), ", "));
        }
        const bool paired = has_paired_rows(*config.family, stored_name);
        const at::Tensor rows = tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor;
        const std::int64_t step =
            paired ? config.head_size : std::max<std::int64_t>(1, chunk_elements / stored->shape.back());
        for (std::int64_t first = 0; first < rows.size(0); first += step) {
            const std::int64_t count = std::min(step, rows.size(0) - first);
            copy_rows(file, *stored, first, rows.narrow(0, first, count), paired ? config.head_size : 0);
        }
        drop_pages(file.bytes(*stored));
        used.insert(stored_name);
    }
    for (const auto& [name, tensor] : file.tensors()) {
        if (used.contains(name) || (config.tied_head && name == "output.weight") || name == rotary_factors_name)
            continue;
        throw input_error(
            "{}: tensor {} is not used by a model of the family {}: the model would not be the one that was trained",
            file.path().string(), name, config.family->model_type);
    }
}

}  // namespace hetlora
