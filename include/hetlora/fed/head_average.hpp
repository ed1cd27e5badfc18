// The clients' classification heads, averaged by samples for every method alike:
//
//     head = sum_k n_k head_k / sum_k n_k        n_k: training windows of client k, over the clients not dropped
//
// A head is dense and has no slots, so that no policy of the adapters concerns it.
#pragma once

#include <span>
#include <vector>

#include "hetlora/fed/aggregate.hpp"
#include "hetlora/fed/client_report.hpp"

namespace hetlora {

/// One mpi_rank's share of the weighted sums, exact where comm.reduction is.
class HeadSum {
public:
    HeadSum(ReductionKind kind, std::size_t parameters) : sums_(kind, parameters) {}

    /// False for a head that is not finite or too large to be summed: its training diverged.
    [[nodiscard]] static bool fits(std::span<const double> head, double n_samples);
    /// @pre fits(head, n_samples)
    void add(std::span<const double> head, double n_samples) { sums_.add(n_samples, head, 0); }
    [[nodiscard]] const UploadSum& sums() const { return sums_; }

private:
    UploadSum sums_;
};

/// The next head from the sums of all mpi_ranks; the previous one where every client was dropped.
/// @param round_to_fp32 what a run in fp32 computes with
[[nodiscard]] std::vector<double> average_head(std::span<const double> sums, std::span<const ClientReport> reports,
                                               std::span<const double> previous, bool round_to_fp32);

}  // namespace hetlora
