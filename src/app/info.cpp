#include "hetlora/app/info.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/model/config.hpp"
#include "hetlora/store/checkpoint.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/run_folder.hpp"
#include "hetlora/store/run_log_reader.hpp"
#include "hetlora/store/safetensors.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

std::string describe_corpus(const std::filesystem::path& path) {
    const CorpusFile file(path);
    std::int64_t held_out = 0;
    for (std::int64_t k = 0; k < file.n_clients(); ++k) held_out += file.held_out(k) ? 1 : 0;
    const CorpusAttributes& about = file.attributes();
    return fmt::format(
        "prepared data `{}`\n  {} clients ({} held out), {} sequences, {} tokens, vocabulary {}\n  source {}\n  "
        "licence {}\n"
        "  tokenizer {}\n",
        about.name, file.n_clients(), held_out, file.n_sequences(), file.n_tokens(), about.vocab_size, about.source,
        about.license, about.tokenizer_name);
}

std::string describe_log(const std::filesystem::path& path) {
    const RunLogReader log = RunLogReader::open(path);
    const auto rounds = log.rounds();
    const double loss = rounds.empty() ? std::nan("") : rounds.back().eval_loss;
    return fmt::format(
        "log of run '{}', made {} by hetlora {}\n  {} committed rows (row 0: before training), {} participations, {} "
        "clients, "
        "rank_max {}\n  last evaluation loss {:.6g}\n",
        log.run_id(), log.created_utc(), log.creator_version(), log.committed_rounds(), log.participation().size(),
        log.clients().size(), log.rank_max(), loss);
}

/// A run's log is known by its name, which is fixed; every other file has to be prepared data.
std::string describe_file(const std::filesystem::path& path) {
    return path.filename() == "run.h5" ? describe_log(path) : describe_corpus(path);
}

std::string describe_model(const std::filesystem::path& path) {
    const ModelConfig config = read_model_config(path);
    return fmt::format(
        "Llama-type model, {} parameters\n  {} layers, width {}, feed-forward {}, {} heads ({} key/value) of {}, "
        "vocabulary "
        "{}, {} positions, {} head\n",
        human_count(static_cast<double>(config.parameters())), config.layers, config.hidden_size,
        config.intermediate_size, config.heads, config.kv_heads, config.head_size, config.vocab_size,
        config.max_positions, config.tied_head ? "tied" : "own");
}

std::vector<double> to_doubles(const SafetensorsFile& file, const std::string& name,
                               const std::vector<std::int64_t>& shape) {
    const TensorInfo& info = file.info(name);
    const auto bytes = file.bytes(name);
    const at::ScalarType type = info.dtype == "F32"    ? at::kFloat
                                : info.dtype == "F64"  ? at::kDouble
                                : info.dtype == "F16"  ? at::kHalf
                                : info.dtype == "BF16" ? at::kBFloat16
                                                       : at::kByte;
    if (type == at::kByte)
        throw input_error("{}: tensor {} has dtype {}; only floating-point adapters can be read", file.path().string(),
                          name, info.dtype);
    at::Tensor raw = at::empty(shape, at::TensorOptions().dtype(type));
    std::memcpy(raw.mutable_data_ptr(), bytes.data(), bytes.size());
    const at::Tensor values = raw.to(at::kDouble).contiguous();
    return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

}  // namespace

std::string describe_path(const std::filesystem::path& path) {
    if (!std::filesystem::exists(path)) throw input_error("{} does not exist", path.string());
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

std::vector<double> read_peft_adapter(const std::filesystem::path& folder, const AdapterLayout& layout,
                                      std::int64_t rank_max, double scale) {
    nlohmann::json config;
    try {
        config = nlohmann::json::parse(read_text_file(folder / "adapter_config.json"));
    } catch (const nlohmann::json::exception& error) {
        throw input_error("{}: not valid JSON: {}", (folder / "adapter_config.json").string(), error.what());
    }
    const std::int64_t lora_rank = config.value("r", std::int64_t{0});
    if (lora_rank < 1 || lora_rank > rank_max) {
        throw input_error("{}: the adapter has lora_rank {}, but lora.rank_max = {}: set lora.rank_max to it",
                          folder.string(), lora_rank, rank_max);
    }
    const double alpha = config.value("lora_alpha", static_cast<double>(lora_rank));
    const double own_scale = alpha / (config.value("use_rslora", false) ? std::sqrt(static_cast<double>(lora_rank))
                                                                        : static_cast<double>(lora_rank));
    const SafetensorsFile file(folder / "adapter_model.safetensors");
    std::vector<double> values(static_cast<std::size_t>(layout.parameters(rank_max)), 0.0);
    std::size_t used = 0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const AdaptedMatrix& matrix = layout.matrices[m];
        const std::string prefix = "base_model.model." + matrix.name;
        for (const bool is_a : {true, false}) {
            const std::string name = prefix + (is_a ? ".lora_A.weight" : ".lora_B.weight");
            const std::vector<std::int64_t> shape =
                is_a ? std::vector{lora_rank, matrix.d_in} : std::vector{matrix.d_out, lora_rank};
            if (!file.contains(name) || file.info(name).shape != shape) {
                throw input_error("{}: tensor {} is {}: the adapter belongs to another model or to other lora.targets",
                                  folder.string(), name, file.contains(name) ? "of another shape" : "missing");
            }
            const auto source = to_doubles(file, name, shape);
            ++used;
            if (is_a) {
                std::ranges::copy(source, values.begin() + layout.offset_a(m, rank_max));
                continue;
            }
            double* bt = values.data() + layout.offset_b(m, rank_max);
            for (std::int64_t o = 0; o < matrix.d_out; ++o) {
                for (std::int64_t r = 0; r < lora_rank; ++r) {
                    bt[r * matrix.d_out + o] = source[static_cast<std::size_t>(o * lora_rank + r)] * own_scale / scale;
                }
            }
        }
    }
    if (used != file.tensors().size()) {
        throw input_error(
            "{}: {} tensors, but lora.targets asks for {}: set lora.targets to the adapter's target_modules",
            folder.string(), file.tensors().size(), used);
    }
    return values;
}

}  // namespace hetlora
