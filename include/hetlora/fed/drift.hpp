// How far the clients of a round pull apart: the mean pairwise cosine of their updates, per adapted matrix.
//
//     d_k,m  = [A_k' - A_k ; Bt_k' - Bt_k]   what client k sent minus what it received, in the slots that it sent,
//                                            padded with zeros to rank_max
//     u_k,m  = d_k,m / |d_k,m|
//     mean over pairs k != l of u_k . u_l  =  (|sum_k u_k|^2 - n) / (n (n - 1))
//
// so that one sum is enough, whatever the number of clients. With the exact reduction it has the same bits for any
// number of mpi_ranks. n counts the clients that were not dropped and whose d is not 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/fed/aggregate.hpp"

namespace hetlora {

/// Each mpi_rank's share of the sums.
class UpdateDrift {
public:
    UpdateDrift(AdapterLayout layout, std::int64_t rank_max, ReductionKind reduction);

    /// Adds a client that was not dropped.
    /// @param sent canonical form at lora_rank (after pruning)
    /// @param received canonical form at received_lora_rank >= lora_rank
    void add(std::span<const double> sent, std::int64_t lora_rank, std::span<const double> received,
             std::int64_t received_lora_rank);
    /// Forgets the round and keeps the memory.
    void clear();

    /// sum_k u_k, P(rank_max) values in canonical form.
    [[nodiscard]] const UploadSum& sums() const { return sums_; }
    /// n of every matrix.
    [[nodiscard]] const std::vector<std::int64_t>& counts() const { return counts_; }
    /// The mean pairwise cosine of every matrix, from the sums over all mpi_ranks; NaN where n < 2.
    [[nodiscard]] std::vector<double> mean_cosines(std::span<const double> sums,
                                                   std::span<const std::int64_t> counts) const;

private:
    AdapterLayout layout_;
    std::int64_t rank_max_;
    UploadSum sums_;
    std::vector<std::int64_t> counts_;
    std::vector<double> change_;  ///< one client's d of one matrix
};

}  // namespace hetlora
