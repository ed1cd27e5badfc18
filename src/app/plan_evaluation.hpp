// What an evaluation will take, measured on a part of it. Internal to src/app.
#pragma once

#include <span>

#include "hetlora/app/experiment.hpp"

namespace hetlora {

/// Seconds of one evaluation, loss and further metrics together, on as many mpi_ranks as measured it.
struct EvaluationCost {
    double seconds = 0.0;       ///< of evaluation.part
    double test_seconds = 0.0;  ///< of the test part, as valid's by the number of rows; 0 without evaluation.test
};

/// Measures a few batches of every kind of work (windows, answers, generated replies), spread over the set, and scales
/// them by the rows. @param global canonical form at lora.rank_max. Collective; the result is known to all mpi_ranks.
[[nodiscard]] EvaluationCost measure_evaluation_cost(Transport& transport, Experiment& experiment,
                                                     std::span<const double> global);

}  // namespace hetlora
