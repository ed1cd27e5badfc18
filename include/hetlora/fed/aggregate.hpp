// Each mpi_rank's share of the server's weighted sums: memory O(rank_max (d_in + d_out)) per adapted matrix, whatever
// the number of clients.
//
//     sum[m, i] += s_k,m * slot_i(k, m)          for the slots i < lora_rank_after of client k, for A and Bt alike
//
// with the client's factors (aggregate = parameters) or their change against what it received (deltas), and slot_i the
// client's slot that stands at place i of the global adapter (its leading ones, or those chosen for it). Only the
// factors that are sent in the round are summed. slot_norm = replicate keeps a second sum, over the clients of the
// largest lora_rank alone, behind the first one. The weights s are not normalised here: Z is only known once every
// client has reported (merge.hpp divides).
//
// If every weight that could reach a slot is 0 (all B A are zero), the merge falls back to uniform weights. Clients
// with weight 0 are therefore also summed without weight, in a second sum that exists only once there is such a client.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/comm/exact_sum.hpp"
#include "hetlora/config/settings.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

/// Sums of n values, exact (any order gives the same bits) or in plain fp64 (comm.reduction = fast).
class UploadSum {
public:
    UploadSum(ReductionKind kind, std::size_t n);
    void add(double weight, std::span<const double> values, std::size_t first);
    /// Adds n sums of another one of the same kind and size.
    void add_sums(const UploadSum& other, std::size_t first, std::size_t n);
    void clear();
    [[nodiscard]] ReductionKind kind() const { return kind_; }
    [[nodiscard]] std::size_t size() const { return kind_ == ReductionKind::exact ? exact_.size() : fast_.size(); }
    [[nodiscard]] const ExactSum& exact() const { return exact_; }
    [[nodiscard]] std::span<const double> fast() const { return fast_; }

private:
    ReductionKind kind_;
    ExactSum exact_;
    std::vector<double> fast_;
};

/// One client's contribution, in canonical form.
struct ClientUpload {
    std::int64_t client = 0;            ///< for messages
    std::span<const double> factors{};  ///< at lora_rank
    std::int64_t lora_rank = 0;         ///< after pruning
    /// Places of the client's slots in the global adapter, ascending; empty: the leading lora_rank ones.
    std::span<const std::int32_t> slots{};
    std::span<const double> received{};  ///< at received_lora_rank; used by deltas only
    std::int64_t received_lora_rank = 0;
    std::span<const double> weights{};  ///< one per matrix, >= 0 (client_weights())
};

struct AggregationOptions {
    std::int64_t rank_max = 0;
    SlotNorm slot_norm = SlotNorm::all;
    Aggregate aggregate = Aggregate::parameters;
    ReductionKind reduction = ReductionKind::exact;
};

/// What the sums of one round are about.
struct RoundScope {
    Factors sent;                        ///< the other factor is not summed
    std::int64_t largest_lora_rank = 0;  ///< of the cohort; used by slot_norm = replicate only
};

class UploadAccumulator {
public:
    UploadAccumulator(AdapterLayout layout, const AggregationOptions& options);

    /// Adds a client that was not dropped. The caller may forget its factors afterwards.
    /// @throws Error (training) naming the client if a contribution is not finite or too large for the sum; the
    ///         accumulator is then as before
    void add(const ClientUpload& upload);
    /// Forgets the last round, keeps the memory, and starts a new one.
    void begin(const RoundScope& scope = {});

    /// [n_matrices * rank_max]: 1 where a client of this mpi_rank has a positive weight for the slot (slot_norm =
    /// contributors) or for the matrix (all), else 0.
    [[nodiscard]] const std::vector<std::int64_t>& has_weight() const { return has_weight_; }
    /// Replaces the sums of slots without any positive weight anywhere by the unweighted ones.
    /// @param has_weight the element-wise maximum of has_weight() over all mpi_ranks
    void settle(std::span<const std::int64_t> has_weight);
    /// The sums, P(rank_max) values in canonical form at rank_max (twice that for slot_norm = replicate).
    [[nodiscard]] const UploadSum& sums() const { return weighted_; }
    [[nodiscard]] const AdapterLayout& layout() const { return layout_; }
    [[nodiscard]] std::int64_t rank_max() const { return options_.rank_max; }

private:
    void check(const ClientUpload& upload) const;
    void mark_weight(const ClientUpload& upload, std::size_t matrix);
    void add_rows(const ClientUpload& upload, double weight, std::span<const double> values, std::size_t first);

    AdapterLayout layout_;
    AggregationOptions options_;
    RoundScope scope_;
    UploadSum weighted_;
    std::unique_ptr<UploadSum> unweighted_;
    std::vector<std::int64_t> has_weight_;
    std::vector<double> contribution_;  ///< one client's deltas
};

/// True if no value is infinite or NaN.
[[nodiscard]] bool all_finite(std::span<const double> values);

}  // namespace hetlora
