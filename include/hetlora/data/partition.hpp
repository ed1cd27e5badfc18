// Dealing sequences to simulated clients: iid, skewed by class (Dirichlet), or skewed by size. Every draw is a hash of
// (seed, purpose, coordinates), so a deal depends on the data and the options alone, on no order of calls.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/store/corpus_file.hpp"

namespace hetlora {

/// Who the clients are.
enum class PartitionKind {
    natural,    ///< the people in the file
    iid,        ///< sequences in hashed order, dealt like cards: sizes differ by at most one
    dirichlet,  ///< every class' sequences are shared out by Dirichlet(alpha) proportions over the clients
    quantity,   ///< sequences in hashed order, shared out by log-normal proportions: alike, but of unequal size
};

/// "natural", "iid", "dirichlet" or "quantity".
[[nodiscard]] const char* partition_name(PartitionKind kind) noexcept;

struct DealOptions {
    PartitionKind kind = PartitionKind::iid;
    std::int64_t n_clients = 1;
    double dirichlet_alpha = 0.5;  ///< > 0; small: each class sits with few clients; large: nearly iid
    double quantity_sigma = 1.0;   ///< > 0; standard deviation of the logarithm of a client's share
    std::uint64_t seed = 0;
};

/// A sequence to deal; `label` is its class (label or group), and -1 (none) counts as a class of its own.
struct LabelledSequence {
    std::int32_t sequence = 0;
    std::int32_t label = -1;
};

/// Which sequences each client got.
struct Deal {
    std::vector<std::int64_t> offset;     ///< [n_clients + 1]
    std::vector<std::int32_t> sequences;  ///< by client, then rising

    [[nodiscard]] std::span<const std::int32_t> of(std::int64_t client) const {
        const auto c = static_cast<std::size_t>(client);
        return std::span(sequences).subspan(static_cast<std::size_t>(offset[c]),
                                            static_cast<std::size_t>(offset[c + 1] - offset[c]));
    }
};

/// Proportions [n_clients] of one label: normalised Gamma(alpha, 1) draws (Marsaglia and Tsang 2000, from hashed
/// uniforms; for alpha < 1 boosted by U^(1/alpha), in logarithms so that a tiny alpha does not underflow).
/// Independent of the part: a client's evaluation data is distributed like its training data.
[[nodiscard]] std::vector<double> dirichlet_shares(std::int32_t label, const DealOptions& options);

/// Proportions [n_clients] of all sequences: normalised exp(quantity_sigma * z) with standard normal z, so the same in
/// every part.
[[nodiscard]] std::vector<double> quantity_shares(const DealOptions& options);

/// Deals the sequences of one part. Each is given to exactly one client; a client may get none.
/// iid: position i in hashed order goes to client i mod n. dirichlet: the N sequences of a label, in hashed order, are
/// cut at round(N * cumulative share). quantity: the same cut of all sequences at once.
/// @throws Error (usage) for n_clients < 1, a bad alpha or sigma, kind natural
[[nodiscard]] Deal deal_sequences(std::span<const LabelledSequence> sequences, Part part, const DealOptions& options);

}  // namespace hetlora
