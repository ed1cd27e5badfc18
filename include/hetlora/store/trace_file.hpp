// trace.h5: everything that a replay needs to repeat a run elsewhere, client by client.
//
// Schema "hetlora-trace" version 1, described in docs/run-log.md. Per participation the adapter received, the windows
// of each local step and the adapter sent; per round the global adapter. Adapters are in the canonical form of
// base/adapter_layout.hpp, as float64. Written by the MPI root only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"

namespace hetlora {

inline constexpr const char* trace_schema_name = "hetlora-trace";
inline constexpr int trace_schema_version = 1;

/// A window of a prepared sequence (index into /sequences of the data file, number of the window in it).
struct TraceWindow {
    std::int32_t sequence = 0;
    std::int32_t window = 0;
};

/// One local step of one client.
struct TraceStep {
    double loss = 0.0;  ///< mean negative log-likelihood over the step's loss tokens, before the update
    std::int64_t n_loss_tokens = 0;
    std::vector<TraceWindow> windows{};  ///< in the order of the batch
};

/// One participation. The spans must stay valid during the call only.
struct TraceEvent {
    std::int64_t round = 0;
    std::int64_t client = 0;
    std::int64_t lora_rank = 0;         ///< the client's, before pruning
    std::int64_t lora_rank_before = 0;  ///< slots of the adapter received: all of them where the others are frozen
    std::int64_t lora_rank_after = 0;   ///< slots of the adapter sent
    bool dropped = false;
    double weight = 0.0;  ///< normalised over the cohort; with weight_scope = matrix the mean over matrices
    double learning_rate = 0.0;
    std::span<const double> received{};     ///< P(lora_rank_before) values
    std::span<const double> sent{};         ///< P(lora_rank_after) values
    std::span<const std::int64_t> slots{};  ///< chosen for the client, ascending; empty: the leading ones
    std::span<const TraceStep> steps{};
    std::span<const double> head{};  ///< classification: the head sent (as trained where the client was dropped)
    double n_samples = 0.0;          ///< what the head counts in the server's average
};

/// Writes trace.h5. Move-only. Events in the order (round, cohort); the global adapter of round 0 first, then after the
/// events of each round its result.
class TraceWriter {
public:
    /// Creates the file. @throws Error (environment) if it exists or cannot be written; a half-made file is removed.
    [[nodiscard]] static TraceWriter create(const std::filesystem::path& path, const std::string& run_id,
                                            const AdapterLayout& layout, std::int64_t rank_max);
    /// Opens an existing trace to go on after round `last_round`; what is later is cut off.
    /// @throws Error (input) if it is no trace of this schema or its adapters do not belong to this layout.
    [[nodiscard]] static TraceWriter reopen(const std::filesystem::path& path, const AdapterLayout& layout,
                                            std::int64_t rank_max, std::int64_t last_round);
    TraceWriter(TraceWriter&&) noexcept;
    TraceWriter& operator=(TraceWriter&&) noexcept;
    /// Closes without reporting; call close() to learn of failures.
    ~TraceWriter();

    /// Appends a participation. @pre received and sent have P(lora_rank) values; round is the one after the last global
    void append_event(const TraceEvent& event);
    /// Appends the global adapter after `round` (0 = the initial one), P(rank_max) values, and flushes the file.
    /// @param head  classification: the global head, of the same size in every round; a trace whose first global has
    ///              none has no group /heads
    void append_global(std::int64_t round, std::span<const double> values, std::span<const double> head = {});
    /// Flushes and closes. @throws Error (environment)
    void close();

private:
    struct Impl;
    explicit TraceWriter(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace hetlora
