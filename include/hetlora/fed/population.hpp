// Everybody who could take part: the registered clients with their present lora_rank. O(1) per client (12 bytes, and 8
// more where clients keep private factors) and the same on every mpi_rank; adapters are never kept here, and the size
// of a client's data is asked for when the client is sampled.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace hetlora {

/// What a client has to train on. Counts are over its training windows.
struct ClientData {
    std::int64_t n_windows = 0;      ///< training windows: the "samples" of client_weight = samples
    std::int64_t n_loss_tokens = 0;  ///< loss tokens in them
    std::int64_t n_rows = 0;         ///< input rows in them
};

/// One registered client, with its data.
struct RegisteredClient {
    std::int64_t lora_rank = 0;          ///< present rank; pruning makes it smaller for good
    std::int64_t initial_lora_rank = 0;  ///< rank at the start of the run
    std::int64_t n_windows = 0;          ///< as ClientData
    std::int64_t n_loss_tokens = 0;      ///< as ClientData
    std::int64_t n_rows = 0;             ///< as ClientData
    bool eligible = false;               ///< may be sampled (trains at all, has data.min_windows)
};

/// Looks at an eligible client's data.
using ClientDataOf = std::function<ClientData(std::int64_t client)>;

class Population {
public:
    /// All clients with the size of their data.
    /// @throws Error (bug) if a lora_rank is below 1 or an eligible client has no window
    explicit Population(const std::vector<RegisteredClient>& clients);
    /// @param lora_ranks [n_clients] initial lora_rank of everybody
    /// @param eligible   clients that may be sampled, ascending
    /// @param data_of    called when the data of an eligible client is asked for; at least one window
    /// @throws Error (bug) if a lora_rank is below 1
    Population(std::span<const std::int64_t> lora_ranks, std::vector<std::int32_t> eligible, ClientDataOf data_of);

    [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(lora_ranks_.size()); }
    /// Looks at the client's data, if it is eligible. @throws Error (bug) if it then has no window
    [[nodiscard]] RegisteredClient at(std::int64_t client) const;
    [[nodiscard]] std::int64_t lora_rank(std::int64_t client) const;
    [[nodiscard]] std::int64_t initial_lora_rank(std::int64_t client) const;
    /// Indices of the clients that may be sampled, ascending.
    [[nodiscard]] const std::vector<std::int32_t>& eligible() const { return eligible_; }
    /// Present lora_rank of every client: what a checkpoint keeps.
    [[nodiscard]] std::vector<std::int64_t> lora_ranks() const;
    /// Sets a pruned client's rank. @throws Error (bug) if it would grow or fall below 1
    void shrink_lora_rank(std::int64_t client, std::int64_t lora_rank);
    /// Round after which a client stored private factors for the last time; 0: it never did (shared_factors = a).
    [[nodiscard]] std::int64_t private_round(std::int64_t client) const;
    void set_private_round(std::int64_t client, std::int64_t round);
    [[nodiscard]] std::vector<std::int64_t> private_rounds() const;
    /// Restores those of a checkpoint. @throws Error (input) if the number of clients differs
    void restore_private_rounds(std::span<const std::int64_t> rounds);
    /// Restores all ranks of a checkpoint.
    /// @throws Error (input) if the number of clients differs or a rank is not in [1, initial rank]
    void restore_lora_ranks(std::span<const std::int64_t> lora_ranks);

private:
    [[nodiscard]] std::size_t index(std::int64_t client) const;

    std::vector<std::int32_t> lora_ranks_;
    std::vector<std::int32_t> initial_lora_ranks_;
    std::vector<std::int32_t> eligible_;
    ClientDataOf data_of_;
    std::vector<std::int64_t> private_rounds_;  ///< empty until the first is set
};

}  // namespace hetlora
