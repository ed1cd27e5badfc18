#include "hetlora/app/run_warnings.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"

namespace hetlora {

void RunWarnings::about_lead_time(const CheckpointSettings& checkpoint, double longest_wait_s,
                                  double longest_checkpoint_s) {
    const double needed_s = longest_wait_s + longest_checkpoint_s;
    if (told_of_lead_time_ || checkpoint.signals.empty() || needed_s <= checkpoint.lead_s) return;
    told_of_lead_time_ = true;
    terminal_.warn(
        fmt::format("a signal to stop may wait {:.1f} s for the end of a step, and a checkpoint takes {:.1f} s: more "
                    "than the {:.0f} s between signal and kill (checkpoint.lead_s): ask Slurm for an earlier signal "
                    "(--signal=USR2@{:.0f}) and set checkpoint.lead_s to it",
                    longest_wait_s, longest_checkpoint_s, checkpoint.lead_s, std::ceil(2.0 * needed_s)));
}

void RunWarnings::about_dropped(const RoundOutcome& outcome) {
    const auto dropped = std::ranges::find(outcome.reports, true, &ClientReport::dropped);
    if (dropped == outcome.reports.end()) return;
    terminal_.warn(fmt::format(
        "round {}: client {}{} left out: its training diverged (`dropped` in the log)", outcome.plan.round,
        dropped->client, std::ranges::count(outcome.reports, true, &ClientReport::dropped) > 1 ? " and others" : ""));
}

void RunWarnings::about_slots(const RoundOutcome& outcome, std::int64_t rank_max) {
    if (told_of_slots_ || outcome.merge.slots.slots_alive == rank_max) return;
    told_of_slots_ = true;
    terminal_.warn(
        fmt::format("round {}: only {} of {} slots of the global adapter can still learn: no client of the cohort "
                    "had the others, and a slot "
                    "that is zero in A and B stays zero (slots_alive in the log). strategy.keep_uncovered = last "
                    "keeps such slots, refill starts "
                    "them anew.",
                    outcome.plan.round, outcome.merge.slots.slots_alive, rank_max));
}

}  // namespace hetlora
