// Everybody who could take part: the registered clients with their present lora_rank and the size of their data.
// O(1) per client and the same on every mpi_rank; adapters are never kept here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hetlora {

/// One registered client. Counts are over its training windows.
struct RegisteredClient {
    std::int64_t lora_rank = 0;          ///< present rank; pruning makes it smaller for good
    std::int64_t initial_lora_rank = 0;  ///< rank at the start of the run
    std::int64_t n_windows = 0;          ///< training windows: the "samples" of client_weight = samples
    std::int64_t n_loss_tokens = 0;      ///< loss tokens in them
    std::int64_t n_rows = 0;             ///< input rows in them
    bool eligible = false;               ///< may be sampled (trains at all, has data.min_windows)
};

class Population {
public:
    /// @throws Error (bug) if a lora_rank is below 1 or an eligible client has no window
    explicit Population(std::vector<RegisteredClient> clients);

    [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(clients_.size()); }
    [[nodiscard]] const RegisteredClient& at(std::int64_t client) const;
    /// Indices of the clients that may be sampled, ascending.
    [[nodiscard]] const std::vector<std::int64_t>& eligible() const { return eligible_; }
    /// Present lora_rank of every client: what a checkpoint keeps.
    [[nodiscard]] std::vector<std::int64_t> lora_ranks() const;
    /// Sets a pruned client's rank. @throws Error (bug) if it would grow or fall below 1
    void shrink_lora_rank(std::int64_t client, std::int64_t lora_rank);
    /// Round after which a client stored private factors for the last time; 0: it never did (shared_factors = a).
    [[nodiscard]] std::int64_t private_round(std::int64_t client) const;
    void set_private_round(std::int64_t client, std::int64_t round);
    [[nodiscard]] const std::vector<std::int64_t>& private_rounds() const { return private_rounds_; }
    /// Restores those of a checkpoint. @throws Error (input) if the number of clients differs
    void restore_private_rounds(std::span<const std::int64_t> rounds);
    /// Restores all ranks of a checkpoint.
    /// @throws Error (input) if the number of clients differs or a rank is not in [1, initial rank]
    void restore_lora_ranks(std::span<const std::int64_t> lora_ranks);

private:
    std::vector<RegisteredClient> clients_;
    std::vector<std::int64_t> eligible_;
    std::vector<std::int64_t> private_rounds_;
};

}  // namespace hetlora
