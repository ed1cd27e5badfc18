// Evaluation of a run's model, sharded over mpi_ranks: the global adapter, or every client's own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/app/experiment.hpp"
#include "hetlora/fed/private_factors.hpp"

namespace hetlora {

/// Evaluates an adapter (canonical form at rank_max; the same on all mpi_ranks) on the evaluation windows, sharded over
/// mpi_ranks. The sums are the same bits for any number of mpi_ranks, and known to all of them.
[[nodiscard]] EvaluationSums evaluate_global(Transport& transport, Experiment& experiment,
                                             std::span<const double> global, std::span<const WindowRef> windows);

/// Which of the clients' own held-out windows methods are evaluated on whose clients keep a factor of their own.
struct PersonalEvaluation {
    PrivateFactors& private_factors;
    EvaluationPart part = EvaluationPart::valid;
    std::int64_t sequences = 0;  ///< shared out evenly, at least one window each; 0: all
};
/// One client's own adapter on its own windows.
struct PersonalSums {
    std::int64_t client = 0;
    EvaluationSums sums;
};
/// Every client that may train and has held-out windows, with its own B beside the global A: on root in the order of
/// the clients, elsewhere nothing. The sums are the same bits for any number of mpi_ranks.
[[nodiscard]] std::vector<PersonalSums> personal_sums(Transport& transport, Experiment& experiment,
                                                      std::span<const double> global, const PersonalEvaluation& wanted);
/// Their total, known to all mpi_ranks. @throws Error (input) if no client has held-out windows
[[nodiscard]] EvaluationSums evaluate_personal(Transport& transport, Experiment& experiment,
                                               std::span<const double> global, const PersonalEvaluation& wanted);

/// What every client has on its own held-out windows; NaN where it has none.
struct ClientScores {
    std::vector<double> loss;
    std::vector<double> accuracy;  ///< next token
    /// The same of the first slots of the global adapter at the client's lora_rank and scale. On root only; empty where
    /// clients keep a factor (their own adapter is what loss and accuracy are of, then) and where nobody asked.
    std::vector<double> own_rank_loss{};
    std::vector<double> own_rank_accuracy{};
};
/// Of the global adapter, or of each client's own where clients keep a factor (counts on root only, then). Collective.
[[nodiscard]] ClientScores client_scores(Transport& transport, Experiment& experiment, std::span<const double> global,
                                         PrivateFactors& private_factors, bool with_own_rank);

}  // namespace hetlora
