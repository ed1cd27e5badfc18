// An experiment: everything that `hetlora run` builds from its settings, and the loop over rounds.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hetlora/app/machine.hpp"
#include "hetlora/app/task_questions.hpp"
#include "hetlora/base/terminal.hpp"
#include "hetlora/comm/transport.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/data/corpus.hpp"
#include "hetlora/fed/plugin_library.hpp"
#include "hetlora/fed/population.hpp"
#include "hetlora/fed/round.hpp"
#include "hetlora/fed/strategy.hpp"
#include "hetlora/model/engine.hpp"
#include "hetlora/store/run_log_rows.hpp"
#include "hetlora/train/evaluation.hpp"

namespace hetlora {

/// The parts that `run`, `check` and `evaluate` share, built and checked in the same way on every mpi_rank.
struct Experiment {
    Settings settings;  ///< with everything that was chosen automatically filled in
    Strategy strategy;
    std::unique_ptr<PluginLibrary> plugin;  ///< strategy.plugin; outlives the engine's training
    AdapterLayout layout;
    EngineChoice choice;
    std::unique_ptr<Engine> engine;  ///< holds the frozen weights
    std::unique_ptr<Corpus> corpus;
    std::unique_ptr<Population> population;
    std::vector<WindowRef> evaluation_windows;
    std::vector<WindowRef> test_windows;  ///< where evaluation.test asks for them
    TaskQuestions questions;              ///< of evaluation_windows, for the metrics beyond the loss
    TaskQuestions test_questions;         ///< of test_windows
    double global_scale = 1.0;            ///< s of the global adapter, at rank_max
    /// Classification: the global head as every mpi_rank has it, for evaluation; its one client is kept up to date by
    /// the rounds. Null: next tokens.
    std::unique_ptr<ClassHeadGroup> head;
    std::vector<double> start;           ///< the global adapter before the first round, at rank_max
    std::vector<std::string> placement;  ///< on root only: where every MPI rank runs
    std::string base_sha256;             ///< on root only
    std::string data_sha256;             ///< on root only
    std::string partition_sha256;        ///< on root only: of Corpus::partition_sha256()
};

/// Loads model and data, draws the lora_ranks and checks that all of it fits together.
/// @throws AgreedError on every mpi_rank
[[nodiscard]] Experiment build_experiment(Transport& transport, const Settings& settings);

/// The rows of /clients before training.
[[nodiscard]] std::vector<ClientRow> client_rows(const Corpus& corpus, const Population& population);
/// The same from the data file alone, without a model. @throws Error if the settings do not fit the data
[[nodiscard]] std::vector<ClientRow> clients_of_data(const Settings& settings);

/// What the user is told before training: clients, ranks drawn, parameters, bytes a round, threads, device.
[[nodiscard]] std::string describe_experiment(const Experiment& experiment, const Transport& transport);

/// The sums of a round, empty.
[[nodiscard]] UploadAccumulator make_accumulator(const Experiment& experiment);

/// How the experiment's rounds are planned under these settings (which may be changed ones).
[[nodiscard]] PlanOptions experiment_plan(const Experiment& experiment, const Settings& settings);

/// The sums of unit updates of a round, empty; nothing without log.spectra.
[[nodiscard]] std::optional<UpdateDrift> make_drift(const Experiment& experiment);

/// What run_round() asks for. The references (settings may be changed ones) must outlive the rounds.
/// @param private_factors where strategy.is_personal()
[[nodiscard]] RoundContext round_context(Transport& transport, Experiment& experiment, Population& population,
                                         UploadAccumulator& accumulator, const Settings& settings,
                                         PrivateFactors* private_factors);

struct ResumePoint;

/// Runs the rounds (from the first, or from where `point` stands) and writes the run folder.
/// @return the process's exit code: 0, or 75 if it was stopped on request with the last complete round saved
int run_experiment(Transport& transport, Experiment& experiment, Terminal& terminal, const std::string& command_line,
                   ResumePoint& point);

}  // namespace hetlora
