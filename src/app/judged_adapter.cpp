#include "hetlora/app/judged_adapter.hpp"

#include <algorithm>

#include "hetlora/app/peft_adapter.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/store/checkpoint.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

JudgedAdapter adapter_of_peft(const fs::path& folder, const Experiment& experiment) {
    const std::int64_t rank_max = experiment.settings.lora.rank_max;
    const ClassHeadShape* head = experiment.head ? &experiment.head->shape() : nullptr;
    PeftAdapter adapter = read_peft_adapter(folder, experiment.layout, rank_max, experiment.global_scale, head);
    if (head != nullptr && adapter.head.empty()) {
        throw input_error(
            "{}: the adapter has no classification head (`modules_to_save`), and model.task = classification judges "
            "labels with one: take the adapter of a classification run",
            folder.string());
    }
    JudgedAdapter judged{
        .values = std::vector<double>(static_cast<std::size_t>(experiment.layout.parameters(rank_max))),
        .head = std::move(adapter.head)};
    resize_adapter<double>(experiment.layout, adapter.values, adapter.lora_rank, judged.values, rank_max);
    return judged;
}

bool changes_base(const Checkpoint& checkpoint) {
    const auto is_base = [](const auto& entry) { return entry.first.starts_with("base/"); };
    return std::ranges::any_of(checkpoint.numbers, is_base) || std::ranges::any_of(checkpoint.floats, is_base);
}

JudgedAdapter adapter_of_checkpoint(const Checkpoint& checkpoint, const fs::path& folder,
                                    const Experiment& experiment) {
    if (experiment.strategy.is_personal()) {
        throw usage_error(
            "'{}' is a run of {}: every client keeps its own B, so there is no one adapter to evaluate (the run's "
            "/clients has what each client reached)",
            folder.string(), experiment.strategy.preset);
    }
    if (changes_base(checkpoint)) {
        throw usage_error(
            "'{}' is a run whose method changes the base: its adapter alone is not the model; export it with --merged "
            "and evaluate that as model.path",
            folder.string());
    }
    const auto vector_of = [&](const char* name) {
        const auto found = checkpoint.numbers.find(name);
        return found == checkpoint.numbers.end() ? std::vector<double>() : found->second;
    };
    JudgedAdapter judged{.values = vector_of("global"), .head = vector_of("class_head")};
    const std::int64_t head = experiment.head ? experiment.head->shape().parameters() : 0;
    if (std::ssize(judged.values) != experiment.layout.parameters(experiment.settings.lora.rank_max) ||
        std::ssize(judged.head) != head) {
        throw input_error(
            "the checkpoint of round {} in '{}' does not fit these settings: give the config.ini of its run",
            checkpoint.round, folder.string());
    }
    return judged;
}

JudgedAdapter adapter_of_run(const fs::path& folder, const Experiment& experiment) {
    const FoundCheckpoint found = newest_checkpoint(folder / "checkpoint");
    if (found.checkpoint) return adapter_of_checkpoint(*found.checkpoint, folder, experiment);
    throw input_error("'{}' has no whole checkpoint to evaluate: give the folder of a run that has begun to train",
                      folder.string());
}

}  // namespace

JudgedAdapter judged_adapter(const std::optional<fs::path>& folder, const Experiment& experiment) {
    if (!folder) {
        const std::int64_t n = experiment.layout.parameters(experiment.settings.lora.rank_max);
        return {.values = std::vector<double>(static_cast<std::size_t>(n), 0.0),
                .head = experiment.head ? experiment.head->get(0) : std::vector<double>()};
    }
    std::error_code ignored;
    if (fs::exists(*folder / "adapter_config.json", ignored)) return adapter_of_peft(*folder, experiment);
    if (fs::exists(*folder / "manifest.json", ignored))
        return adapter_of_checkpoint(read_checkpoint(*folder), *folder, experiment);
    if (fs::exists(*folder / "config.ini", ignored)) return adapter_of_run(*folder, experiment);
    return adapter_of_peft(*folder, experiment);  // which says what is missing
}

}  // namespace hetlora
