// One mpi_rank's share of the weighted sums of what its clients send densely: classification heads (head_average.hpp),
// changes of all weights of the base (base_average.hpp). Exact where comm.reduction is: any order gives the same bits.
#pragma once

#include <cstddef>
#include <span>

#include "hetlora/fed/aggregate.hpp"

namespace hetlora {

class DenseSum {
public:
    DenseSum(ReductionKind kind, std::size_t n_values) : sums_(kind, n_values) {}

    /// False for values that are not finite or too large to be summed: their client's training diverged.
    [[nodiscard]] static bool fits(std::span<const double> values, double weight);
    /// sum[first + i] += weight * values[i]. @pre fits(values, weight)
    void add(std::span<const double> values, double weight, std::size_t first = 0) { sums_.add(weight, values, first); }
    [[nodiscard]] const UploadSum& sums() const { return sums_; }

private:
    UploadSum sums_;
};

}  // namespace hetlora
