// The clients' classification heads, averaged by samples for every method alike:
//
//     head = sum_k n_k head_k / sum_k n_k        n_k: training windows of client k, over the clients not dropped
//
// A head is dense and has no slots, so that no policy of the adapters concerns it.
#pragma once

#include <span>
#include <vector>

#include "hetlora/fed/client_report.hpp"

namespace hetlora {

/// The next head from the sums of all mpi_ranks; the previous one where every client was dropped.
/// @param round_to_fp32 what a run in fp32 computes with
[[nodiscard]] std::vector<double> average_head(std::span<const double> sums, std::span<const ClientReport> reports,
                                               std::span<const double> previous, bool round_to_fp32);

}  // namespace hetlora
