#include "hetlora/fed/population.hpp"

#include <utility>

#include "hetlora/base/error.hpp"

namespace hetlora {

Population::Population(std::vector<RegisteredClient> clients) : clients_(std::move(clients)) {
    for (std::size_t client = 0; client < clients_.size(); ++client) {
        const auto& record = clients_[client];
        if (record.lora_rank < 1 || record.lora_rank > record.initial_lora_rank) {
            throw bug_error("client {}: lora_rank {} (initially {})", client, record.lora_rank,
                            record.initial_lora_rank);
        }
        if (!record.eligible) continue;
        if (record.n_windows < 1) throw bug_error("client {} is eligible but has no training window", client);
        eligible_.push_back(static_cast<std::int64_t>(client));
    }
    private_rounds_.resize(clients_.size());
}

const RegisteredClient& Population::at(std::int64_t client) const {
    if (client < 0 || client >= size()) throw bug_error("client {} of {}", client, size());
    return clients_[static_cast<std::size_t>(client)];
}

std::vector<std::int64_t> Population::lora_ranks() const {
    std::vector<std::int64_t> ranks;
    ranks.reserve(clients_.size());
    for (const auto& record : clients_) ranks.push_back(record.lora_rank);
    return ranks;
}

void Population::shrink_lora_rank(std::int64_t client, std::int64_t lora_rank) {
    const auto& record = at(client);
    if (lora_rank < 1 || lora_rank > record.lora_rank) {
        throw bug_error("client {}: lora_rank {} cannot become {}", client, record.lora_rank, lora_rank);
    }
    clients_[static_cast<std::size_t>(client)].lora_rank = lora_rank;
}

std::int64_t Population::private_round(std::int64_t client) const {
    (void)at(client);
    return private_rounds_[static_cast<std::size_t>(client)];
}

void Population::set_private_round(std::int64_t client, std::int64_t round) {
    (void)at(client);
    private_rounds_[static_cast<std::size_t>(client)] = round;
}

void Population::restore_private_rounds(std::span<const std::int64_t> rounds) {
    if (rounds.size() != private_rounds_.size()) {
        throw input_error("the checkpoint knows {} clients but the data has {} - resume with the same data",
                          rounds.size(), private_rounds_.size());
    }
    private_rounds_.assign(rounds.begin(), rounds.end());
}

void Population::restore_lora_ranks(std::span<const std::int64_t> lora_ranks) {
    if (lora_ranks.size() != clients_.size()) {
        throw input_error("the checkpoint has lora_ranks of {} clients but the data has {} - resume with the same data",
                          lora_ranks.size(), clients_.size());
    }
    for (std::size_t client = 0; client < clients_.size(); ++client) {
        if (lora_ranks[client] < 1 || lora_ranks[client] > clients_[client].initial_lora_rank) {
            throw input_error(
                "the checkpoint gives client {} lora_rank {}, but it starts with {} here - resume with the same config",
                client, lora_ranks[client], clients_[client].initial_lora_rank);
        }
    }
    for (std::size_t client = 0; client < clients_.size(); ++client) clients_[client].lora_rank = lora_ranks[client];
}

}  // namespace hetlora
