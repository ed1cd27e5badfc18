// The rows of the log and of the trace, made from a round's outcome.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"
#include "hetlora/fed/round.hpp"
#include "hetlora/fed/server_state.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/trace_file.hpp"

namespace hetlora {

/// Appends a round's participations and its resulting global adapter (and head) to the trace.
void write_trace(TraceWriter& trace, const Experiment& experiment, const RoundOutcome& outcome,
                 const ServerState& server, std::int64_t round);

/// The columns of /rounds that come from the clients' reports: losses, counts, true bytes, times.
/// @param delta_before bytes of the base's change in the round before, which every client of this round receives
void fill_from_reports(RoundRow& row, const RoundOutcome& outcome, std::int64_t delta_before);
[[nodiscard]] std::vector<ParticipationRow> participation_rows(const RoundOutcome& outcome);
void fill_from_global(RoundRow& row, const Experiment& experiment, std::span<const double> global,
                      const SlotStatistics& slots);
/// True for the rounds after which every matrix is looked at (log.spectra); the same on every mpi_rank.
[[nodiscard]] bool is_spectra_round(const Settings& settings, std::int64_t round);
/// The rows of /layers. @param before the global adapter before the round, canonical form at rank_max
[[nodiscard]] std::vector<LayerRow> layer_rows(const Experiment& experiment, std::span<const double> before,
                                               std::span<const double> global, std::span<const double> client_cosines);
void fill_from_evaluation(RoundRow& row, const EvaluationSums& sums);

/// What a whole run sent and took.
struct RunTotals {
    std::int64_t bytes_up = 0;
    std::int64_t bytes_down = 0;
    double seconds = 0.0;
};
/// Before and after, for the terminal.
[[nodiscard]] std::string closing_table(const Experiment& experiment, const RoundRow& first, const RoundRow& last,
                                        const RunTotals& totals);

}  // namespace hetlora
