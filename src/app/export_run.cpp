#include "hetlora/app/export_run.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <system_error>

#include "hetlora/app/head_export.hpp"
#include "hetlora/app/resume.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/fed/round.hpp"
#include "hetlora/model/classifier_folder.hpp"
#include "hetlora/model/weights.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/gguf.hpp"
#include "hetlora/store/run_folder_adapter.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

/// Files beside the weights that another program needs to read text with the model.
constexpr std::string_view companions[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json", "merges.txt",
    "vocab.txt",      "chat_template.jinja",   "generation_config.json"};

Checkpoint wanted_checkpoint(const ExportRequest& request) {
    const fs::path folder = request.run / "checkpoint";
    const auto rounds = checkpoint_rounds(folder);
    if (rounds.empty()) {
        throw input_error("'{}' has no checkpoint: give the folder of a run that has begun to train",
                          request.run.string());
    }
    if (!request.round) {
        FoundCheckpoint found = newest_checkpoint(folder);
        if (found.checkpoint) return std::move(*found.checkpoint);
        throw input_error("no checkpoint in '{}' is whole: {}", folder.string(), found.damaged.front());
    }
    if (std::ranges::find(rounds, *request.round) == rounds.end()) {
        throw usage_error(
            "--round {}: there are checkpoints of the rounds {} only (checkpoint.keep says how many stay)",
            *request.round, fmt::join(rounds, ", "));
    }
    return read_checkpoint(checkpoint_folder(folder, *request.round));
}

void check_target(const fs::path& to) {
    std::error_code error;
    if (!fs::exists(to, error)) return;
    if (fs::is_directory(to, error) && fs::is_empty(to, error)) return;
    throw usage_error("--to {}: something is there already; name a new folder", to.string());
}

at::Tensor as_tensor(std::span<const double> values, std::int64_t rows, std::int64_t columns) {
    return at::from_blob(const_cast<double*>(values.data()), {rows, columns}, at::kDouble);
}

/// The head of a checkpoint.
struct StoredHead {
    ClassHeadShape shape;
    std::span<const double> values;
};

/// Its number of labels follows from its size.
StoredHead stored_head(const ModelConfig& config, const Checkpoint& checkpoint) {
    const auto head = checkpoint.numbers.find("class_head");
    if (head != checkpoint.numbers.end()) {
        const std::int64_t two = class_head_shape(config, 2).parameters();
        const std::int64_t per_label = class_head_shape(config, 3).parameters() - two;
        const std::int64_t labels = 2 + (std::ssize(head->second) - two) / per_label;
        if (labels >= 2 && class_head_shape(config, labels).parameters() == std::ssize(head->second))
            return {.shape = class_head_shape(config, labels), .values = head->second};
    }
    throw input_error(
        "the checkpoint of round {} has no classification head that fits the model: was the base replaced?",
        checkpoint.round);
}

/// As the data names them; as transformers does by itself where the data is not here any more.
std::vector<std::string> label_names(const Settings& settings, std::int64_t labels) {
    std::error_code error;
    if (fs::exists(settings.data.path, error)) {
        std::vector<std::string> names = CorpusFile(settings.data.path).label_names();
        if (std::ssize(names) == labels) return names;
    }
    std::vector<std::string> names;
    for (std::int64_t k = 0; k < labels; ++k) names.push_back(fmt::format("LABEL_{}", k));
    return names;
}

void save_merged(const LlamaWeights& weights, const ExportRequest& request, const Settings& settings,
                 const Checkpoint& checkpoint, at::ScalarType dtype) {
    if (settings.model.task != Task::classification) return save_weights(weights, request.to, dtype);
    const StoredHead head = stored_head(weights.config, checkpoint);
    save_classifier({.weights = weights,
                     .shape = head.shape,
                     .head = head.values,
                     .labels = label_names(settings, head.shape.labels)},
                    request.to, dtype);
}

/// Every weight of a run that trained the base.
void take_trained_weights(std::span<const NamedWeight> named, const Checkpoint& checkpoint) {
    for (const auto& [name, tensor] : named) {
        const std::vector<double> values = stored_base(checkpoint, "base/" + name);
        if (std::ssize(values) != tensor.numel()) {
            throw input_error(
                "the checkpoint of round {} has no trained {} that fits the model: was the base replaced?",
                checkpoint.round, name);
        }
        at::Tensor target = tensor;
        target.copy_(at::from_blob(const_cast<double*>(values.data()), tensor.sizes(), at::kDouble));
    }
}

void write_merged(const ExportRequest& request, const Settings& settings, const Strategy& strategy,
                  const AdapterLayout& layout, const Checkpoint& checkpoint) {
    const at::NoGradGuard no_grad;
    const at::ScalarType dtype = settings.model.precision == Precision::fp64   ? at::kDouble
                                 : settings.model.precision == Precision::bf16 ? at::kBFloat16
                                                                               : at::kFloat;
    const at::ScalarType wide = settings.model.precision == Precision::fp64 ? at::kDouble : at::kFloat;
    LlamaWeights weights = load_weights(settings.model.path, wide, at::kCPU);
    const std::int64_t rank_max = settings.lora.rank_max;
    const double scale = lora_scale(settings.lora, rank_max);
    const std::span<const double> global = checkpoint.numbers.at("global");
    auto named = named_weights(weights);
    if (strategy.trains_base()) take_trained_weights(named, checkpoint);
    for (std::size_t m = 0; !strategy.trains_base() && m < layout.matrices.size(); ++m) {
        const AdaptedMatrix& matrix = layout.matrices[m];
        const auto found = std::ranges::find(named, matrix.name + ".weight", &NamedWeight::name);
        if (found == named.end()) throw bug_error("no weight of the adapted matrix {}", matrix.name);
        const std::vector<double> base = stored_base(checkpoint, "base/" + matrix.name);
        const auto rows = [&](std::int64_t offset, std::int64_t width) {
            return as_tensor(
                global.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(rank_max * width)), rank_max,
                width);
        };
        const at::Tensor a = rows(layout.offset_a(m, rank_max), matrix.d_in);
        const at::Tensor bt = rows(layout.offset_b(m, rank_max), matrix.d_out);
        at::Tensor weight_OI = weights.config.family->transposed ? found->tensor.t() : found->tensor;
        const at::Tensor frozen =
            base.empty() ? weight_OI.to(at::kDouble) : as_tensor(base, matrix.d_out, matrix.d_in).clone();
        weight_OI.copy_(frozen.add(at::mm(bt.t(), a), scale));
    }
    save_merged(weights, request, settings, checkpoint, dtype);
    for (const std::string_view name : companions) {
        std::error_code ignored;
        fs::copy_file(settings.model.path / name, request.to / name, ignored);
    }
}

}  // namespace

std::string export_run(const ExportRequest& request) {
    check_target(request.to);
    if (!fs::exists(request.run / "config.ini")) {
        throw input_error("'{}' has no config.ini: give the folder of a run", request.run.string());
    }
    const Settings settings = load_settings(request.run / "config.ini", {}, RequiredFor::run);
    const Checkpoint checkpoint = wanted_checkpoint(request);
    const ModelConfig config = read_model_config(settings.model.path);
    const AdapterLayout layout = make_adapter_layout(config, settings.lora.targets);
    const auto global = checkpoint.numbers.find("global");
    if (global == checkpoint.numbers.end() || std::ssize(global->second) != layout.parameters(settings.lora.rank_max)) {
        throw input_error("the checkpoint of round {} in '{}' does not fit the model in '{}': was the base replaced?",
                          checkpoint.round, request.run.string(), settings.model.path.string());
    }
    const Strategy strategy = resolve_strategy(settings);
    if (strategy.is_personal()) {
        throw usage_error("'{}' is a run of {}: every client keeps its own B, so there is no one model to export",
                          request.run.string(), strategy.preset);
    }
    if (request.merged) {
        write_merged(request, settings, strategy, layout, checkpoint);
        const bool no_companions = fs::is_regular_file(settings.model.path);
        return fmt::format("{}: the whole model after round {}{}\n", request.to.string(), checkpoint.round,
                           no_companions ? " (without a tokenizer: its base is a GGUF file; " +
                                               gguf_convert_command(settings.model.path) + " writes one)"
                                         : "");
    }
    if (strategy.trains_base()) {
        throw usage_error("'{}' is a run of {}, which trains the base itself: there is no adapter; take --merged",
                          request.run.string(), strategy.preset);
    }
    if (strategy.updates_base()) {
        throw usage_error(
            "'{}' is a run of {}, which changes the base: the adapter alone is not the model; take --merged",
            request.run.string(), strategy.preset);
    }
    AdapterExport about{.lora_rank = settings.lora.rank_max,
                        .scale = lora_scale(settings.lora, settings.lora.rank_max),
                        .base_model = base_model_name(settings.model.path),
                        .dtype = settings.model.precision == Precision::fp64 ? "F64" : "F32",
                        .fan_in_fan_out = config.family->transposed,
                        .metadata = {{"run_id", checkpoint.run_id}, {"round", std::to_string(checkpoint.round)}}};
    if (settings.model.task == Task::classification) {
        const StoredHead head = stored_head(config, checkpoint);
        add_head(about, head.shape, head.values);
    }
    write_peft_adapter(request.to, layout, global->second, about);
    return fmt::format("{}: the adapter after round {}\n", request.to.string(), checkpoint.round);
}

}  // namespace hetlora
