// What root learns about each client of a round, besides the sums: one small record per participation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace hetlora {

struct ClientReport {
    std::int64_t cohort_index = 0;
    std::int64_t client = 0;
    std::int64_t lora_rank_before = 0;
    std::int64_t lora_rank_after = 0;
    std::int64_t n_steps = 0;
    std::int64_t n_tokens = 0;  ///< loss tokens seen in all steps
    std::int64_t n_rows = 0;    ///< input rows seen in all steps
    double n_samples = 0.0;     ///< training windows of the client
    double loss_sum = 0.0;      ///< sum over steps of the summed loss; / n_tokens = the client's train loss
    double loss_first = std::numeric_limits<double>::quiet_NaN();  ///< mean loss of the first step
    double loss_last = std::numeric_limits<double>::quiet_NaN();   ///< mean loss of the last step
    double learning_rate = std::numeric_limits<double>::quiet_NaN();
    double tail_before = 0.0;
    double tail_after = 0.0;
    double t_train_s = std::numeric_limits<double>::quiet_NaN();
    std::int64_t pack = 0;
    std::int64_t mpi_rank = 0;
    std::int64_t bytes_up = 0;    ///< what a real client would send (true_bytes_up())
    std::int64_t bytes_down = 0;  ///< what it would receive
    bool dropped = false;         ///< non-finite: counts for nothing in the merge
    /// Weight before normalisation, per matrix (see client_weights()); may be empty if dropped.
    std::vector<double> weights{};
    /// ||B_m A_m||_F^2 of what it sent, per matrix; only where a plugin weighs the clients.
    std::vector<double> product_norms_squared{};
    /// Places of its slots in the global adapter, ascending; empty: the leading lora_rank_after ones.
    std::vector<std::int32_t> slots{};

    [[nodiscard]] bool has_slot(std::int64_t slot) const {
        if (slots.empty()) return slot < lora_rank_after;
        return std::ranges::binary_search(slots, static_cast<std::int32_t>(slot));
    }
};

/// Byte form of reports, for a gather between processes of one run (same machine type, not a file format).
[[nodiscard]] std::vector<std::byte> pack_reports(std::span<const ClientReport> reports);
/// @throws Error (bug) if the bytes are not whole reports
[[nodiscard]] std::vector<ClientReport> unpack_reports(std::span<const std::byte> bytes);

}  // namespace hetlora
