#include "hetlora/train/pretrain.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/model/reference.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

/// All tokens of one part, one after another.
std::vector<std::int32_t> tokens_of(const CorpusFile& file, Part part) {
    std::vector<std::int32_t> tokens;
    for (std::int64_t s = 0; s < file.n_sequences(); ++s) {
        if (file.sequence(s).part != part) continue;
        const SequenceTokens sequence = file.read(s);
        tokens.insert(tokens.end(), sequence.ids.begin(), sequence.ids.end());
    }
    return tokens;
}

/// Rows of length + 1 tokens starting at the given places.
at::Tensor cut(const std::vector<std::int32_t>& tokens, const std::vector<std::int64_t>& starts, std::int64_t length) {
    at::Tensor rows = at::empty({std::ssize(starts), length + 1}, at::kLong);
    for (std::size_t s = 0; s < starts.size(); ++s) {
        std::copy_n(tokens.begin() + starts[s], length + 1,
                    rows.data_ptr<std::int64_t>() + static_cast<std::int64_t>(s) * (length + 1));
    }
    return rows;
}

at::Tensor mean_loss(const LlamaWeights& weights, const at::Tensor& rows) {
    const std::int64_t length = rows.size(1) - 1;
    const at::Tensor logits = reference_logits(weights, rows.narrow(1, 0, length));
    return at::cross_entropy_loss(logits.flatten(0, 1), rows.narrow(1, 1, length).flatten());
}

/// Weights, moments and the step count, saved and loaded as one file.
struct TrainingState {
    std::vector<NamedWeight> weights;
    std::vector<at::Tensor> moment1;
    std::vector<at::Tensor> moment2;
    std::int64_t step = 0;

    [[nodiscard]] std::vector<NamedWeight> all() const {
        std::vector<NamedWeight> tensors;
        for (std::size_t i = 0; i < weights.size(); ++i) {
            tensors.push_back({"weight." + weights[i].name, weights[i].tensor});
            tensors.push_back({"moment1." + weights[i].name, moment1[i]});
            tensors.push_back({"moment2." + weights[i].name, moment2[i]});
        }
        return tensors;
    }
    void save(const std::filesystem::path& path, const std::string& identity) const {
        std::vector<TensorData> data;
        for (const auto& [name, tensor] : all()) {
            data.push_back({.name = name,
                            .dtype = "F32",
                            .shape = tensor.sizes().vec(),
                            .bytes = {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}});
        }
        std::filesystem::create_directories(path.parent_path());
        write_safetensors(path, data, {{"step", std::to_string(step)}, {"identity", identity}});
    }
    void load(const std::filesystem::path& path, const std::string& identity) {
        if (!std::filesystem::exists(path)) {
            throw input_error("pretrain --resume: there is no checkpoint {}; start without --resume", path.string());
        }
        const SafetensorsFile file(path);
        const auto& metadata = file.metadata();
        if (!metadata.contains("identity") || metadata.at("identity") != identity) {
            throw input_error(
                "pretrain --resume: {} belongs to another config or other data; give the same config, or another "
                "pretrain.output",
                path.string());
        }
        for (const auto& [name, tensor] : all()) {
            const auto bytes = file.bytes(name);
            if (bytes.size() != tensor.nbytes())
                throw input_error("{}: tensor {} has another size", path.string(), name);
            std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
        }
        step = std::stoll(metadata.at("step"));
    }
};

double gradient_norm(const TrainingState& state) {
    double sum = 0.0;
    for (const auto& [name, tensor] : state.weights) {
        sum += kernels<float>().sum_of_squares(tensor.grad().const_data_ptr<float>(), tensor.numel());
    }
    return std::sqrt(sum);
}

/// Clips and steps; clears the gradients. Norm weights are not decayed.
void optimise(TrainingState& state, const PretrainSettings& settings, double rate) {
    const at::NoGradGuard no_grad;
    const double norm = gradient_norm(state);
    const double factor = settings.clip_norm > 0 ? std::min(1.0, settings.clip_norm / (norm + 1e-6)) : 1.0;
    for (std::size_t i = 0; i < state.weights.size(); ++i) {
        const at::Tensor& weight = state.weights[i].tensor;
        at::Tensor gradient = weight.grad();
        if (factor < 1.0) gradient.mul_(factor);
        kernels<float>().adamw(static_cast<float*>(weight.mutable_data_ptr()), gradient.const_data_ptr<float>(),
                               state.moment1[i].data_ptr<float>(), state.moment2[i].data_ptr<float>(), weight.numel(),
                               rate, weight.dim() == 1 ? 0.0 : settings.weight_decay, settings.beta1, settings.beta2,
                               1e-8, state.step);
        gradient.zero_();
    }
}

double validation_loss(const LlamaWeights& weights, const std::vector<std::int32_t>& tokens,
                       const PretrainSettings& settings) {
    const at::NoGradGuard no_grad;
    const std::int64_t length = settings.sequence_length;
    const std::int64_t most = std::min<std::int64_t>(64, std::ssize(tokens) / (length + 1));
    if (most == 0) return std::numeric_limits<double>::quiet_NaN();
    double sum = 0.0;
    for (std::int64_t begin = 0; begin < most; begin += settings.micro_batch) {
        std::vector<std::int64_t> starts;
        for (std::int64_t i = begin; i < std::min(most, begin + settings.micro_batch); ++i) {
            starts.push_back(i * (std::ssize(tokens) / most));
        }
        for (auto& start : starts) start = std::min(start, std::ssize(tokens) - length - 1);
        sum += mean_loss(weights, cut(tokens, starts, length)).item<double>() * static_cast<double>(starts.size());
    }
    return sum / static_cast<double>(most);
}

/// Every so many steps; 0: never before the end.
bool is_due(std::int64_t step, std::int64_t every) { return every > 0 && step % every == 0; }

ModelConfig model_config(const PretrainSettings& settings, const CorpusFile& file) {
    ModelConfig config;
    config.vocab_size = file.attributes().vocab_size;
    config.hidden_size = settings.hidden_size;
    config.intermediate_size = settings.intermediate_size;
    config.layers = settings.layers;
    config.heads = settings.heads;
    config.kv_heads = settings.kv_heads;
    config.head_size = settings.hidden_size / settings.heads;
    config.max_positions = settings.sequence_length;
    config.rms_eps = 1e-5;
    config.tied_head = true;
    config.bos_id = file.attributes().bos_id;
    if (file.attributes().eos_id >= 0) config.eos_ids = {file.attributes().eos_id};
    return config;
}

}  // namespace

double pretrain_rate(const PretrainSettings& settings, std::int64_t step) {
    if (step <= settings.warmup_steps)
        return settings.learning_rate * static_cast<double>(step) / static_cast<double>(settings.warmup_steps);
    const double span = static_cast<double>(std::max<std::int64_t>(1, settings.steps - settings.warmup_steps));
    const double progress = static_cast<double>(step - settings.warmup_steps) / span;
    const double fall = 0.5 * (1.0 + std::cos(std::numbers::pi * std::min(1.0, progress)));
    return settings.learning_rate * (settings.final_fraction + (1.0 - settings.final_fraction) * fall);
}

LlamaWeights initial_weights(const ModelConfig& config, std::uint64_t seed) {
    LlamaWeights weights = allocate_weights(config, at::TensorOptions().dtype(at::kFloat));
    const double residual = 1.0 / std::sqrt(2.0 * static_cast<double>(config.layers));
    const auto tensors = stored_weights(weights);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        at::Tensor tensor = tensors[i].tensor;
        if (tensor.dim() == 1) {
            tensor.fill_(1.0);
            continue;
        }
        const std::string& name = tensors[i].name;
        const double deviation = 0.02 * (name.ends_with(".o") || name.ends_with(".down") ? residual : 1.0);
        float* values = tensor.data_ptr<float>();
        for (std::int64_t j = 0; j < tensor.numel(); ++j) {
            values[j] = static_cast<float>(deviation * standard_normal(hash_seed(seed, Purpose::pretrain_init, i, j)));
        }
    }
    return weights;
}

void pretrain(const PretrainSettings& settings, std::uint64_t seed, const std::string& identity, bool resume,
              const std::function<void(const PretrainStep&)>& report) {
    const CorpusFile file(settings.data);
    const std::vector<std::int32_t> train = tokens_of(file, Part::train);
    const std::vector<std::int32_t> valid = tokens_of(file, Part::valid);
    const std::int64_t length = settings.sequence_length;
    if (std::ssize(train) <= length + 1) {
        throw input_error("{}: only {} training tokens, fewer than one window of pretrain.sequence_length = {}",
                          settings.data.string(), train.size(), length);
    }
    LlamaWeights weights = initial_weights(model_config(settings, file), seed);
    TrainingState state;
    state.weights = stored_weights(weights);
    for (const auto& [name, tensor] : state.weights) {
        state.moment1.push_back(at::zeros_like(tensor));
        state.moment2.push_back(at::zeros_like(tensor));
    }
    const auto checkpoint = settings.output / "checkpoint" / "state.safetensors";
    create_folder(settings.output);
    if (resume) state.load(checkpoint, identity);
    for (const auto& [name, tensor] : state.weights) tensor.requires_grad_(true);

    const std::int64_t sequences = std::max<std::int64_t>(1, settings.batch_tokens / length);
    std::ofstream curve(settings.output / "pretrain.jsonl", resume ? std::ios::app : std::ios::trunc);
    const Stopwatch watch;
    while (state.step < settings.steps) {
        ++state.step;
        double loss_sum = 0.0;
        for (std::int64_t done = 0; done < sequences;) {
            std::vector<std::int64_t> starts;
            for (std::int64_t i = done; i < std::min(sequences, done + settings.micro_batch); ++i) {
                const std::uint64_t bits = hash_seed(seed, Purpose::pretrain_order, state.step, i);
                starts.push_back(
                    static_cast<std::int64_t>(uniform01(bits) * static_cast<double>(std::ssize(train) - length - 1)));
            }
            const at::Tensor loss = mean_loss(weights, cut(train, starts, length));
            const double share = static_cast<double>(starts.size()) / static_cast<double>(sequences);
            (loss * share).backward();
            loss_sum += loss.item<double>() * share;
            done += std::ssize(starts);
        }
        if (!std::isfinite(loss_sum)) {
            throw training_error(
                "pretrain: the loss is {} at step {}; lower pretrain.learning_rate (checkpoint of an earlier step: {})",
                loss_sum, state.step, checkpoint.string());
        }
        const double rate = pretrain_rate(settings, state.step);
        optimise(state, settings, rate);
        const bool last = state.step == settings.steps;
        PretrainStep progress{.step = state.step,
                              .train_loss = loss_sum,
                              .learning_rate = rate,
                              .valid_loss = std::numeric_limits<double>::quiet_NaN(),
                              .tokens_seen = state.step * sequences * length,
                              .time_s = watch.seconds()};
        if (last || is_due(state.step, settings.eval_every)) {
            progress.valid_loss = validation_loss(weights, valid, settings);
            nlohmann::json line{{"step", progress.step},
                                {"train_loss", loss_sum},
                                {"learning_rate", rate},
                                {"tokens_seen", progress.tokens_seen}};
            if (std::isfinite(progress.valid_loss)) line["valid_loss"] = progress.valid_loss;
            curve << line.dump() << std::endl;
        }
        if (last || is_due(state.step, settings.checkpoint_every)) state.save(checkpoint, identity);
        report(progress);
    }
    for (const auto& [name, tensor] : state.weights) tensor.requires_grad_(false);
    save_weights(weights, settings.output, at::kBFloat16);
}

}  // namespace hetlora
