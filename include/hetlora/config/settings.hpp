// Everything a user can set, as plain structs: one per section of the config file, one member per key, with the
// default as initialiser. What a key means, its allowed values and its place in a run's identity: schema.hpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

enum class Precision { fp32, fp64, bf16 };
enum class Task { causal, classification };
enum class Partition { natural, iid, dirichlet, quantity };
enum class DirichletBy { label, group };
enum class RankDistribution { fixed, uniform, powerlaw, powerlaw_unit, list, file };
enum class ScaleRule { constant, alpha_over_rank, rslora };
enum class AdapterInit { kaiming_uniform, gaussian };
enum class OptimizerKind { sgd, adamw };
enum class LearningRateSchedule { constant, linear, cosine };
enum class OnNonfinite { drop, stop };
enum class SlotSelect { prefix, random, importance, scored };
enum class Receive { selected, all };
enum class SlotScale { none, sketch };
enum class Trainable { both, b, alternate, base };
enum class LocalExtra { none, tail_prune, proximal };
enum class SharedFactors { both, a };
enum class ClientWeight { uniform, samples, sparsity };
enum class Merge { factors, product, stack };
enum class SlotNorm { all, contributors, levels, replicate };
enum class Aggregate { parameters, deltas };
enum class FactorSplit { left, sqrt, right };
enum class BaseUpdate { none, merge, truncated, residual };
enum class ServerOptimizer { none, momentum, adam };
enum class RankSchedule { none, annealing };
enum class PruneReference { received, initial };
enum class PruneRounding { floor, nearest, ceil };
enum class WeightScope { client, matrix };
enum class WeightNorm { root_sum_squares, sum };
enum class KeepUncovered { no, last, refill };
enum class EvaluationPart { valid, test };
enum class TestEvaluation { none, last, best };
enum class EvaluationClients { none, final };
enum class ChoiceScore { sum, mean };
enum class DeviceChoice { automatic, cpu, cuda };
enum class VectorChoice { automatic, baseline, avx2, avx512 };
enum class GemmChoice { automatic, mkl, onednn, widened, tiles };
enum class Recompute { none, layer };
enum class ReductionKind { exact, fast };

/// The value as it is written in a config file, e.g. "powerlaw_unit" (defined for the enums above).
template <typename E>
[[nodiscard]] std::string_view name_of(E value);

struct ExperimentSettings {
    std::string name = "demo";
    std::string tags;
    std::uint64_t seed = 0;
    /// One seed per source of chance; load_settings() fills those that are not given from `seed`.
    std::uint64_t seed_init = 0;
    std::uint64_t seed_ranks = 0;
    std::uint64_t seed_sampling = 0;
    std::uint64_t seed_partition = 0;
    std::uint64_t seed_data = 0;
    std::int64_t rounds = 10;
    std::int64_t clients_per_round = 8;  ///< 0 = all
    bool operator==(const ExperimentSettings&) const = default;
};

struct ModelSettings {
    std::filesystem::path path;
    std::filesystem::path adapter;  ///< PEFT folder to start from; empty: a fresh adapter
    Task task = Task::causal;
    Precision precision = Precision::fp32;
    bool operator==(const ModelSettings&) const = default;
};

struct DataSettings {
    std::filesystem::path path;
    std::int64_t sequence_length = 128;  ///< input rows of a window
    std::int64_t overlap = 32;           ///< tokens that a window shares with the next
    Partition partition = Partition::natural;
    std::int64_t partition_clients = 0;  ///< clients to make (all but natural)
    double dirichlet_alpha = 0.5;
    DirichletBy dirichlet_by = DirichletBy::label;
    double quantity_sigma = 1.0;              ///< of the log of a client's share
    std::int64_t min_windows = 1;             ///< clients with fewer training windows never take part
    std::int64_t max_windows_per_client = 0;  ///< 0 = all
    bool operator==(const DataSettings&) const = default;
};

struct LoraSettings {
    std::vector<std::string> targets = {"q_proj", "v_proj"};  ///< in layout order, or "all-linear" alone
    RankDistribution rank_distribution = RankDistribution::powerlaw;
    std::int64_t rank_min = 2;
    std::int64_t rank_max = 32;
    double rank_power = 0.1;
    std::vector<std::int64_t> rank_list;
    std::filesystem::path rank_file;
    double scale = 2.0;
    ScaleRule scale_rule = ScaleRule::constant;
    double lora_alpha = 16;  ///< used by alpha_over_rank and rslora only
    double dropout = 0.0;
    AdapterInit init = AdapterInit::kaiming_uniform;
    bool operator==(const LoraSettings&) const = default;
};

struct LocalSettings {
    std::int64_t steps = 5;   ///< 0 where epochs are set
    std::int64_t epochs = 0;  ///< 0 where steps are set
    std::int64_t batch_size = 4;
    OptimizerKind optimizer = OptimizerKind::adamw;
    double learning_rate = 2e-3;
    double head_learning_rate = 0;                                      ///< of a classification head; 0 = learning_rate
    LearningRateSchedule lr_schedule = LearningRateSchedule::constant;  ///< over rounds
    std::int64_t lr_warmup_rounds = 0;
    double lr_final_fraction = 0.1;
    double weight_decay = 0;
    double clip_norm = 0;  ///< 0 = off
    double adam_beta1 = 0.9;
    double adam_beta2 = 0.999;
    double adam_epsilon = 1e-8;
    OnNonfinite on_nonfinite = OnNonfinite::drop;
    bool operator==(const LocalSettings&) const = default;
};

struct StrategySettings {
    std::string preset = "hetlora";
    std::filesystem::path plugin;  ///< own select, weight, merge or penalty; empty: none
    /// The policies; unset = as in the preset's row.
    std::optional<SlotSelect> slot_select;
    std::optional<Receive> receive;
    std::optional<SlotScale> slot_scale;
    std::optional<Trainable> trainable;
    std::optional<LocalExtra> local_extra;
    std::optional<SharedFactors> shared_factors;
    std::optional<ClientWeight> client_weight;
    std::optional<Merge> merge;
    std::optional<SlotNorm> slot_norm;
    std::optional<Aggregate> aggregate;
    std::optional<FactorSplit> factor_split;
    std::optional<BaseUpdate> base_update;
    std::optional<ServerOptimizer> server_optimizer;
    std::optional<RankSchedule> rank_schedule;
    std::optional<KeepUncovered> keep_uncovered;
    double keep_energy = 0.95;  ///< share of the squared singular values that base_update = truncated keeps
    double prox_mu = 0.01;
    double server_learning_rate = 1;
    double server_beta1 = 0.9;
    double server_beta2 = 0.99;
    double server_epsilon = 1e-3;
    std::vector<std::int64_t> rank_levels;  ///< for slot_norm = levels; empty = the lora_ranks drawn at the start
    double anneal_start = 0.2;              ///< share of the rounds before rank_schedule = annealing begins to fall
    double prune_gamma = 0.99;
    double prune_lambda = 0.01;
    PruneReference prune_reference = PruneReference::received;
    PruneRounding prune_rounding = PruneRounding::floor;
    double tail_norm_epsilon = 0;
    WeightScope weight_scope = WeightScope::client;
    WeightNorm weight_norm = WeightNorm::root_sum_squares;
    bool weight_includes_scale = false;
    bool operator==(const StrategySettings&) const = default;
};

struct EvaluationSettings {
    std::int64_t every = 1;
    std::vector<std::string> metrics = {"perplexity", "accuracy"};
    std::int64_t sequences = 0;  ///< windows; 0 = all
    EvaluationPart part = EvaluationPart::valid;
    TestEvaluation test = TestEvaluation::none;
    EvaluationClients clients = EvaluationClients::none;
    EvaluationClients groups = EvaluationClients::none;
    ChoiceScore choice_score = ChoiceScore::sum;
    std::int64_t text_sequences = 100;  ///< replies generated for the metrics on text; 0 = all
    std::int64_t text_tokens = 64;
    std::int64_t samples = 0;
    std::int64_t sample_tokens = 40;
    double divergence_factor = 3.0;  ///< 0 = never stop
    bool operator==(const EvaluationSettings&) const = default;
};

struct ComputeSettings {
    DeviceChoice device = DeviceChoice::automatic;
    std::int64_t threads = 0;      ///< 0 = cores on the node / MPI ranks on the node
    std::int64_t pack_tokens = 0;  ///< 0 = chosen by the program
    VectorChoice vector = VectorChoice::automatic;
    GemmChoice gemm = GemmChoice::automatic;
    Recompute recompute = Recompute::none;
    double memory_gib = 0;  ///< what an MPI rank may use; 0 = its share of what is free
    bool operator==(const ComputeSettings&) const = default;
};

struct CommSettings {
    ReductionKind reduction = ReductionKind::exact;
    bool operator==(const CommSettings&) const = default;
};

struct CheckpointSettings {
    std::int64_t every = 1;                               ///< rounds; 0 = only at a stop and at the end
    std::int64_t keep = 2;                                ///< newest ones kept
    std::vector<std::string> signals = {"USR2", "TERM"};  ///< that stop the run with a checkpoint
    double lead_s = 120;                                  ///< time between such a signal and the end of the job
    bool operator==(const CheckpointSettings&) const = default;
};

struct LogSettings {
    std::int64_t spectra = 0;  ///< rounds between looks at each matrix (/layers of run.h5); 0 = never
    bool operator==(const LogSettings&) const = default;
};

struct OutputSettings {
    std::filesystem::path dir;  ///< load_settings() fills results/<experiment.name> where it is not given
    bool trace = false;
    bool operator==(const OutputSettings&) const = default;
};

struct PretrainSettings {
    std::filesystem::path data;
    std::filesystem::path output;
    std::int64_t hidden_size = 128;
    std::int64_t layers = 6;
    std::int64_t heads = 4;
    std::int64_t kv_heads = 2;
    std::int64_t intermediate_size = 352;
    std::int64_t sequence_length = 256;
    std::int64_t batch_tokens = 8192;
    std::int64_t micro_batch = 8;
    std::int64_t steps = 1000;
    double learning_rate = 3e-3;
    std::int64_t warmup_steps = 100;
    double final_fraction = 0.1;
    double weight_decay = 0.1;
    double clip_norm = 1.0;
    double beta1 = 0.9;
    double beta2 = 0.95;
    std::int64_t checkpoint_every = 200;
    std::int64_t eval_every = 200;
    bool operator==(const PretrainSettings&) const = default;
};

/// A whole configuration. Paths are absolute once they come from load_settings().
struct Settings {
    ExperimentSettings experiment;
    ModelSettings model;
    DataSettings data;
    LoraSettings lora;
    LocalSettings local;
    StrategySettings strategy;
    EvaluationSettings evaluation;
    ComputeSettings compute;
    CommSettings comm;
    CheckpointSettings checkpoint;
    LogSettings log;
    OutputSettings output;
    PretrainSettings pretrain;
    /// Keys that the file or the command line set, as "section.key".
    std::set<std::string> given;

    [[nodiscard]] bool is_given(const std::string& key) const { return given.contains(key); }
    bool operator==(const Settings&) const = default;
};

}  // namespace hetlora
