// The evaluation set by group (task, topic or source of each sequence), at the end of a run: evaluation.groups = final.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "hetlora/app/experiment.hpp"

namespace hetlora {

/// Loss, next-token accuracy and (where it is measured) choice accuracy of every group that the evaluation set has, in
/// the order of the data's groups, then "(none)" for sequences without one. Sharded over mpi_ranks, the same bits for
/// any number of them, known to all. @param global canonical form at rank_max
[[nodiscard]] std::vector<GroupRow> evaluate_groups(Transport& transport, Experiment& experiment,
                                                    std::span<const double> global);

/// A table for the terminal. Empty for no rows.
[[nodiscard]] std::string group_table(std::span<const GroupRow> rows);

}  // namespace hetlora
