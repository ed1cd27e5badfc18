// From settings to an Experiment, with every check that can be made before training.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "hetlora/app/client_table.hpp"
#include "hetlora/app/experiment.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/app/peft_adapter.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/cuda/graph_step.hpp"
#include "hetlora/fed/client_work.hpp"
#include "hetlora/fed/lora_ranks.hpp"
#include "hetlora/store/gguf.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

PartitionKind partition_kind(Partition partition) {
    switch (partition) {
        case Partition::iid:
            return PartitionKind::iid;
        case Partition::dirichlet:
            return PartitionKind::dirichlet;
        case Partition::quantity:
            return PartitionKind::quantity;
        case Partition::natural:
            break;
    }
    return PartitionKind::natural;
}

CorpusOptions corpus_options(const Settings& settings) {
    const DataSettings& data = settings.data;
    return {.sequence_length = data.sequence_length,
            .overlap = data.overlap,
            .partition = partition_kind(data.partition),
            .partition_clients = data.partition_clients,
            .dirichlet_alpha = data.dirichlet_alpha,
            .dirichlet_by_group = data.dirichlet_by == DirichletBy::group,
            .quantity_sigma = data.quantity_sigma,
            .seed_partition = settings.experiment.seed_partition,
            .classification = settings.model.task == Task::classification,
            .min_windows = data.min_windows,
            .max_windows_per_client = data.max_windows_per_client};
}

/// How to prepare data with this model's tokenizer.
std::string prepare_advice(const std::filesystem::path& model) {
    if (!std::filesystem::is_regular_file(model))
        return fmt::format("`hetlora prepare ... --tokenizer {}`", model.string());
    return fmt::format("{}, then `hetlora prepare ... --tokenizer DIR`", gguf_convert_command(model));
}

/// The data must have been made with the model's own tokenizer: other ids are other words, and nothing would crash.
void check_tokenizer(const Settings& settings, const ModelConfig& config, const CorpusAttributes& data) {
    if (data.vocab_size > config.vocab_size) {
        throw input_error(
            "{} was prepared with a vocabulary of {} tokens, but the model in {} has only {}: prepare the data again "
            "with that model's tokenizer ({})",
            settings.data.path.string(), data.vocab_size, settings.model.path.string(), config.vocab_size,
            prepare_advice(settings.model.path));
    }
    const auto tokenizer = settings.model.path / "tokenizer.json";
    if (data.tokenizer_sha256.empty() || !std::filesystem::exists(tokenizer)) return;
    if (sha256_file(tokenizer) != data.tokenizer_sha256) {
        throw input_error(
            "{} was prepared with another tokenizer ({}) than the one of the model ({}): prepare the data again with "
            "`--tokenizer {}`",
            settings.data.path.string(), data.tokenizer_name, tokenizer.string(), settings.model.path.string());
    }
}

/// @pre the corpus outlives the population
Population make_population(const Settings& settings, Strategy& strategy, const Corpus& corpus) {
    const std::vector<std::int64_t> lora_ranks = draw_lora_ranks(lora_rank_law(settings), corpus.n_clients());
    fit_to_lora_ranks(strategy, lora_ranks);
    const auto eligible = std::ssize(corpus.eligible());
    if (settings.experiment.clients_per_round > eligible) {
        throw usage_error(
            "experiment.clients_per_round = {} but only {} of {} clients can train (data.min_windows = {}): lower one "
            "of "
            "the two",
            settings.experiment.clients_per_round, eligible, corpus.n_clients(), settings.data.min_windows);
    }
    return {lora_ranks, corpus.eligible(), [&corpus](std::int64_t client) {
                ClientData data;
                for (const WindowRef& window : corpus.train_windows(client)) {
                    ++data.n_windows;
                    data.n_loss_tokens += window.n_loss;
                    data.n_rows += window.rows;
                }
                return data;
            }};
}

/// After the model: a wrong model or data file is told before Python has been started.
void load_plugin(Experiment& experiment) {
    const Settings& settings = experiment.settings;
    experiment.plugin = std::make_unique<PluginLibrary>(settings.strategy.plugin);
    adopt_own_parts(experiment.strategy, experiment.plugin->parts(), settings);
    plugin::RunFacts facts{.matrices = {},
                           .rank_min = settings.lora.rank_min,
                           .rank_max = settings.lora.rank_max,
                           .rounds = settings.experiment.rounds,
                           .scale = experiment.global_scale};
    for (const AdaptedMatrix& matrix : experiment.layout.matrices) facts.matrices.push_back(matrix.name);
    experiment.plugin->method().start(facts);
}

/// What evaluation.metrics asks beyond the loss; refused where clients keep a factor: the global adapter alone says
/// nothing there.
void take_questions(Experiment& experiment) {
    const Settings& settings = experiment.settings;
    const bool groups = settings.evaluation.groups == EvaluationClients::final;
    if (groups && experiment.corpus->file().group_names().empty()) {
        throw usage_error(
            "evaluation.groups = final, but {} has no groups: prepare it again with --group-field, or take "
            "evaluation.groups = none",
            settings.data.path.string());
    }
    if (groups && experiment.strategy.is_personal()) {
        throw usage_error(
            "evaluation.groups = final: with strategy.preset = {} clients keep a factor of the adapter for themselves, "
            "so that there is no one adapter to judge on every group; take evaluation.clients = final",
            experiment.strategy.preset);
    }
    if (!wants_choices(settings) && !wants_texts(settings)) return;
    if (experiment.strategy.is_personal()) {
        throw usage_error(
            "evaluation.metrics = {}: with strategy.preset = {} clients keep a factor of the adapter for themselves, "
            "and only loss, perplexity and accuracy are measured of every client's own: leave the others out",
            join(settings.evaluation.metrics, ","), experiment.strategy.preset);
    }
    const ModelConfig& config = experiment.engine->weights().config;
    QuestionLimits limits{.positions = config.usable_positions(), .stop_ids = config.eos_ids};
    const std::int64_t eos = experiment.corpus->file().attributes().eos_id;
    if (eos >= 0) limits.stop_ids.push_back(eos);
    experiment.questions = task_questions(settings, *experiment.corpus, limits, experiment.evaluation_windows);
    if (settings.evaluation.test != TestEvaluation::none)
        experiment.test_questions = task_questions(settings, *experiment.corpus, limits, experiment.test_windows);
}

/// Data and model must be for what model.task says.
void check_task_of_data(const Settings& settings, const CorpusFile& file) {
    const bool labels = file.attributes().task == name_of(Task::classification);
    const bool wanted = settings.model.task == Task::classification;
    if (labels == wanted) return;
    if (wanted) {
        throw input_error(
            "{} was not prepared for model.task = classification: prepare it again with --task classification and "
            "--label-field",
            settings.data.path.string());
    }
    throw input_error(
        "{} was prepared with --task classification, and has no next tokens to learn: set model.task = classification, "
        "or prepare it again without --task",
        settings.data.path.string());
}

/// A trace of a run that trains the base has all weights after every round.
void check_traced_size(const Settings& settings, const Strategy& strategy, const ModelConfig& config) {
    constexpr std::int64_t most_weights = 20'000'000;
    if (!settings.output.trace || !strategy.trains_base() || config.parameters() <= most_weights) return;
    throw usage_error(
        "output.trace = true with strategy.preset = {} writes all {} weights after every round, and {} are the most: "
        "trace a run of a smaller model, or take output.trace = false (the last weights are in the checkpoint)",
        strategy.preset, human_count(static_cast<double>(config.parameters())),
        human_count(static_cast<double>(most_weights)));
}

/// The head that all mpi_ranks start from. @return nothing for next tokens
std::unique_ptr<ClassHeadGroup> starting_head(const Settings& settings, const CorpusFile& file,
                                              const LlamaWeights& weights) {
    if (settings.model.task != Task::classification) return nullptr;
    const ClassHeadShape shape = class_head_shape(weights.config, std::ssize(file.label_names()));
    const AdapterInitLaw law = adapter_init_law(settings);
    auto head = std::make_unique<ClassHeadGroup>(shape, 1, /*with_gradient=*/false, weights.options());
    head->set(0, initial_class_head(shape, law.seed_init, law.round_to_fp32));
    return head;
}

/// evaluation.clients = final asks for data that the clients themselves hold back.
void check_own_data(const Experiment& experiment) {
    const EvaluationSettings& evaluation = experiment.settings.evaluation;
    if (evaluation.clients != EvaluationClients::final) return;
    const Part part = evaluation.part == EvaluationPart::test ? Part::test : Part::valid;
    for (const std::int64_t client : experiment.population->eligible()) {
        if (!experiment.corpus->client_evaluation_windows(client, part).empty()) return;
    }
    throw input_error(
        "evaluation.clients = final, but in {} no client has {} data of its own: data that were split by record keep "
        "valid and test apart from all clients; prepare them with --client-field and without --split-field and "
        "fractions, or take evaluation.clients = none",
        experiment.settings.data.path.string(), name_of(evaluation.part));
}

}  // namespace

std::vector<ClientRow> client_rows(const Corpus& corpus, const Population& population) {
    const auto row_of = client_table(corpus, population);
    std::vector<ClientRow> rows;
    for (std::int64_t k = 0; k < corpus.n_clients(); ++k) rows.push_back(row_of(k));
    return rows;
}

std::vector<ClientRow> clients_of_data(const Settings& settings) {
    const Corpus corpus(settings.data.path, corpus_options(settings));
    Strategy strategy = resolve_strategy(settings);
    return client_rows(corpus, make_population(settings, strategy, corpus));
}

Experiment build_experiment(Transport& transport, const Settings& settings) {
    Experiment experiment;
    experiment.settings = settings;
    agree(transport, "choosing the method", [&] { experiment.strategy = resolve_strategy(settings); });
    const bool trains_base = experiment.strategy.trains_base();
    if (settings.model.task == Task::classification || trains_base)
        experiment.settings.compute.device = DeviceChoice::cpu;
    if (trains_base) experiment.settings.compute.gemm = GemmChoice::mkl;  // on the weights themselves, which change
    choose_compute(transport, experiment.settings.compute);
    experiment.placement = placement(transport, experiment.settings.compute);
    ModelConfig config;
    agree(transport, "reading model and data", [&] {
        config = read_model_config(settings.model.path);
        check_task(config, settings.model.task == Task::classification);
        experiment.layout = make_adapter_layout(config, settings.lora.targets);
        check_lora_rank(experiment.layout, settings.lora.rank_max);
        if (settings.data.sequence_length > config.usable_positions()) {
            const bool window = config.usable_positions() < config.max_positions;
            throw usage_error("data.sequence_length = {} is longer than the {} {} of the model in {}{}: lower it",
                              settings.data.sequence_length, config.usable_positions(),
                              window ? "positions of the sliding window" : "positions", settings.model.path.string(),
                              window ? ", and only full attention is implemented" : "");
        }
        check_traced_size(settings, experiment.strategy, config);
        experiment.start = starting_adapter(settings, experiment.strategy, experiment.layout);
        experiment.corpus = std::make_unique<Corpus>(settings.data.path, corpus_options(settings));
        check_tokenizer(settings, config, experiment.corpus->file().attributes());
        check_task_of_data(settings, experiment.corpus->file());
    });
    experiment.choice = choose_engine(transport, experiment.settings, config, experiment.layout, trains_base);
    experiment.choice.options.base_changes = experiment.strategy.updates_base();
    agree(transport, "loading the model", [&] {
        experiment.engine =
            std::make_unique<Engine>(load_weights(settings.model.path, activation_dtype(settings.model.precision),
                                                  engine_device(transport, experiment.settings.compute)),
                                     experiment.layout, experiment.choice.options);
        if (experiment.settings.compute.device == DeviceChoice::cuda) {
            experiment.engine->set_step_runner(cuda::make_graph_runner());
        }
    });
    experiment.global_scale = lora_scale(settings.lora, settings.lora.rank_max);
    agree(transport, "making the classification head",
          [&] { experiment.head = starting_head(settings, experiment.corpus->file(), experiment.engine->weights()); });
    agree(transport, "loading the plugin", [&] {
        if (!settings.strategy.plugin.empty()) load_plugin(experiment);
    });
    agree(transport, "counting the clients' data", [&] {
        const Corpus& corpus = *experiment.corpus;
        corpus.check_no_leakage();
        experiment.population = std::make_unique<Population>(make_population(settings, experiment.strategy, corpus));
        experiment.evaluation_windows = corpus.evaluation_windows(
            settings.evaluation.part == EvaluationPart::test ? Part::test : Part::valid, settings.evaluation.sequences);
        const auto check = [&](const std::vector<WindowRef>& windows, std::string_view key, std::string_view value) {
            if (!windows.empty()) return;
            throw input_error(
                "{} has no held-out sequences for {} = {}: choose the other part, or prepare the data with held-out "
                "clients",
                settings.data.path.string(), key, value);
        };
        check(experiment.evaluation_windows, "evaluation.part", name_of(settings.evaluation.part));
        if (settings.evaluation.test != TestEvaluation::none) {
            experiment.test_windows = corpus.evaluation_windows(Part::test, settings.evaluation.sequences);
            check(experiment.test_windows, "evaluation.test", name_of(settings.evaluation.test));
        }
        check_own_data(experiment);
        take_questions(experiment);
    });
    agree(transport, "hashing base and data", [&] {
        if (!transport.is_root()) return;
        experiment.base_sha256 = base_identity_sha256(settings.model.path);
        experiment.data_sha256 = experiment.corpus->file().sha256();
        experiment.partition_sha256 = experiment.corpus->partition_sha256();
    });
    return experiment;
}

UploadAccumulator make_accumulator(const Experiment& experiment) {
    return {experiment.layout,
            {.rank_max = experiment.settings.lora.rank_max,
             .slot_norm = experiment.strategy.slot_norm,
             .aggregate = experiment.strategy.aggregate,
             .reduction = experiment.settings.comm.reduction}};
}

PlanOptions experiment_plan(const Experiment& experiment, const Settings& settings) {
    // Where the base is trained, clients come one after another: a pack of one each is what MPI ranks share evenly.
    return plan_options(settings, experiment.strategy.trains_base() ? 1 : settings.compute.pack_tokens);
}

std::optional<UpdateDrift> make_drift(const Experiment& experiment) {
    if (experiment.settings.log.spectra == 0) return std::nullopt;
    return UpdateDrift(experiment.layout, experiment.settings.lora.rank_max, experiment.settings.comm.reduction);
}

RoundContext round_context(Transport& transport, Experiment& experiment, Population& population,
                           UploadAccumulator& accumulator, const Settings& settings, PrivateFactors* private_factors) {
    return {.transport = transport,
            .engine = *experiment.engine,
            .corpus = *experiment.corpus,
            .population = population,
            .accumulator = accumulator,
            .settings = settings,
            .strategy = experiment.strategy,
            .init = adapter_init_law(settings),
            .plan = experiment_plan(experiment, settings),
            .private_factors = private_factors,
            .head = experiment.head ? &experiment.head->shape() : nullptr,
            .own = experiment.plugin ? &experiment.plugin->method() : nullptr};
}

}  // namespace hetlora
