#include "hetlora/fed/base_work.hpp"

#include <algorithm>
#include <vector>

#include "hetlora/fed/weights.hpp"
#include "hetlora/train/full_training.hpp"

namespace hetlora {
namespace {

/// Changes that are looked at together.
constexpr std::size_t changes_per_piece = std::size_t{1} << 20;

/// Calls visit(first, changes) for all changes of the client trained last; ends early where it returns false.
/// @return false if it did
template <typename Visit>
bool for_each_change(const FullTraining& training, Visit visit) {
    std::vector<double> changes;
    for (std::size_t first = 0; first < training.n_weights(); first += changes_per_piece) {
        changes.resize(std::min(changes_per_piece, training.n_weights() - first));
        training.read_changes(first, changes);
        if (!visit(first, changes)) return false;
    }
    return true;
}

/// Adds the client's changes to the sums, all of them or none.
/// @return false where they are not finite or too large to be summed: its training diverged
bool add_changes(const FullTraining& training, double weight, DenseSum& sums) {
    const bool fits = for_each_change(
        training, [&](std::size_t, std::span<const double> changes) { return DenseSum::fits(changes, weight); });
    return fits && for_each_change(training, [&](std::size_t first, std::span<const double> changes) {
               sums.add(changes, weight, first);
               return true;
           });
}

}  // namespace

void train_base_packs(const RoundContext& context, const RoundPlan& plan, std::span<const std::int64_t> packs,
                      ClientWork& work) {
    if (packs.empty()) return;
    const LocalOptions options = local_options(context, plan.round);
    FullTraining training(context.engine.weights(), options.optimizer, context.settings.compute.pack_tokens);
    const std::int64_t bytes =
        static_cast<std::int64_t>(training.n_weights()) * (context.settings.model.precision == Precision::fp64 ? 8 : 4);
    for (const std::int64_t pack : packs) {
        for (const std::int64_t member : plan.packs[static_cast<std::size_t>(pack)].members) {
            const PlannedClient& planned = plan.cohort[static_cast<std::size_t>(member)];
            ClientOutcome outcome = training.train(context.corpus, planned.client, planned.n_steps, options);
            ClientReport report = make_report(outcome, planned, member, context.transport.mpi_rank());
            report.learning_rate = options.learning_rate;
            report.n_samples = static_cast<double>(context.population.at(planned.client).n_windows);
            report.weights = client_weights(context.strategy, context.engine.layout(),
                                            {.factors = {}, .n_samples = report.n_samples});
            report.bytes_down = report.bytes_up = bytes;
            if (!report.dropped) report.dropped = !add_changes(training, report.weights.front(), *work.base);
            if (context.settings.output.trace) {
                work.traced.push_back({.cohort_index = member,
                                       .received = {},
                                       .sent = {},
                                       .slots = {},
                                       .steps = std::move(outcome.steps),
                                       .head = {}});
            }
            work.reports.push_back(std::move(report));
        }
    }
}

}  // namespace hetlora
