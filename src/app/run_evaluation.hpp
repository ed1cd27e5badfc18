// What a run measures of its global adapter: loss, further metrics, the test part, and whether training has diverged.
// Internal to src/app.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "hetlora/app/experiment.hpp"
#include "hetlora/app/private_files.hpp"
#include "hetlora/app/task_metrics.hpp"
#include "hetlora/store/run_log.hpp"
#include "hetlora/train/evaluation.hpp"

namespace hetlora {

class RunEvaluation {
public:
    RunEvaluation(Transport& transport, Experiment& experiment, PrivateFiles& private_files)
        : transport_(transport), experiment_(experiment), private_files_(private_files) {}

    /// The base with the first adapter, into the row of round 0; later losses are compared with this one.
    /// @throws AgreedError (input) if the loss is not finite
    void before_training(RoundRow& row, std::span<const double> global);
    /// Everything that evaluation.* asks for after a round, into the row.
    /// @param global canonical form at lora.rank_max, the same on all mpi_ranks
    void after_round(RoundRow& row, std::span<const double> global);
    /// @throws AgreedError (training) if the loss has become far larger than it was (evaluation.divergence_factor)
    void check_health(const RoundRow& row);
    /// Goes on after a resume. @param start, best losses of round 0 and the smallest so far
    void restore(double start, double best) {
        start_loss_ = start;
        best_loss_ = best;
    }

private:
    [[nodiscard]] EvaluationSums evaluate(EvaluationPart part, std::span<const double> global);
    /// Test is read where evaluation.test asks for it only: after the last round, or where valid says "the best so
    /// far".
    void measure_test(const RoundRow& row, std::span<const double> global, MetricValues& values);

    Transport& transport_;
    Experiment& experiment_;
    PrivateFiles& private_files_;
    double start_loss_ = 0.0;
    double best_loss_ = std::numeric_limits<double>::infinity();
};

}  // namespace hetlora
