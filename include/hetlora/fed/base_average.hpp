// The server's side of a round where the base itself is trained (trainable = base):
//
//     theta <- theta + sum_k s_k (theta_k - theta) / sum_k s_k         over the clients not dropped, for every weight
//
// The sums are dense (dense_sum.hpp) and reduced a piece at a time (exchange.hpp), so that root holds no second model.
#pragma once

#include <span>

#include "hetlora/fed/client_report.hpp"

namespace hetlora {

/// sum_k s_k over the clients not dropped, in cohort order.
[[nodiscard]] double total_weight(std::span<const ClientReport> reports);

/// weights + sums / total of one piece, rounded once to what the run computes with. With total = 0 (all dropped) the
/// weights stay.
/// @param sums of s_k (theta_k - theta), as many as weights
void add_mean_change(std::span<const double> sums, double total, bool round_to_fp32, std::span<double> weights);

}  // namespace hetlora
