#include "hetlora/app/info.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/model/config.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/gguf.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

std::string describe_corpus(const std::filesystem::path& path) {
    const CorpusFile file(path);
    std::int64_t held_out = 0;
    for (std::int64_t k = 0; k < file.n_clients(); ++k) held_out += file.held_out(k) ? 1 : 0;
    const CorpusAttributes& about = file.attributes();
    return fmt::format(
        "prepared data `{}`\n  {} ({} held out), {} sequences, {} tokens, vocabulary {}\n  source {}\n  "
        "licence {}\n"
        "  tokenizer {}\n",
        about.name, counted(file.n_clients(), "client"), held_out, file.n_sequences(), file.n_tokens(),
        about.vocab_size, about.source, about.license, about.tokenizer_name);
}

std::string describe_log(const std::filesystem::path& path) {
    const RunLogReader log = RunLogReader::open(path);
    const auto rounds = log.rounds();
    const double loss = rounds.empty() ? std::nan("") : rounds.back().eval_loss;
    return fmt::format(
        "log of run '{}', made {} by hetlora {}\n  {} (row 0: before training), {}, {}, "
        "rank_max {}\n  last evaluation loss {:.6g}\n",
        log.run_id(), log.created_utc(), log.creator_version(), counted(log.committed_rounds(), "committed row"),
        counted(std::ssize(log.participation()), "participation"), counted(std::ssize(log.clients()), "client"),
        log.rank_max(), loss);
}

std::string describe_model(const std::filesystem::path& path) {
    const ModelConfig config = read_model_config(path);
    return fmt::format(
        "{} ({}), {} parameters\n  {} layers, width {}, feed-forward {}, {} heads ({} key/value) of {}, "
        "vocabulary "
        "{}, {} positions, {} head{}{}, {}\n",
        config.family->model_type, config.family->architecture, human_count(static_cast<double>(config.parameters())),
        config.layers, config.hidden_size, config.intermediate_size, config.heads, config.kv_heads, config.head_size,
        config.vocab_size, config.usable_positions(),
        config.family->encoder ? "no"
        : config.tied_head     ? "tied"
                               : "own",
        config.family->linear_bias ? ", biases"
        : config.family->qkv_bias  ? ", biases on q, k, v"
                                   : "",
        config.family->qk_norm ? ", norms on q and k" : "",
        config.family->learned_positions ? "learned positions"
                                         : fmt::format("rotary rule {}", name_of(config.rotary.kind)));
}

/// A run's log is known by its name, which is fixed, a model by how it begins; every other file has to be prepared
/// data.
std::string describe_file(const std::filesystem::path& path) {
    if (is_gguf_file(path)) return describe_model(path);
    return path.filename() == "run.h5" ? describe_log(path) : describe_corpus(path);
}

}  // namespace

std::string describe_path(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) {
        if (const auto snapshot = hub_snapshot(path.string())) return describe_path(*snapshot);
        throw input_error("{} does not exist{}", path.string(), hub_advice(absolute_path(path)));
    }
    if (!std::filesystem::is_directory(path)) return describe_file(path);
    // A model folder has a config.json as a run's has: only a run has one of these.
    const bool is_run = std::ranges::any_of(std::array{"status.json", "run.h5", "config.ini", "progress.jsonl"},
                                            [&](const char* name) { return std::filesystem::exists(path / name); });
    if (is_run) return describe_run_folder(path) + "\n";
    if (std::filesystem::exists(path / "manifest.json")) {
        const Checkpoint checkpoint = read_checkpoint(path);
        return fmt::format("checkpoint of run '{}' after round {}, whole, written by hetlora {}\n", checkpoint.run_id,
                           checkpoint.round, checkpoint.creator_version);
    }
    if (std::filesystem::exists(path / "adapter_config.json")) {
        const SafetensorsFile file(path / "adapter_model.safetensors");
        const auto config = nlohmann::json::parse(read_text_file(path / "adapter_config.json"));
        return fmt::format("PEFT adapter, lora_rank {}, {} tensors, base {}\n", config.value("r", 0),
                           file.tensors().size(), config.value("base_model_name_or_path", std::string("?")));
    }
    if (std::filesystem::exists(path / "config.json")) return describe_model(path);
    throw input_error("{}: neither a model, an adapter, a checkpoint nor a run folder", path.string());
}

}  // namespace hetlora
