#include "hetlora/fed/population.hpp"

#include <algorithm>
#include <utility>

#include "hetlora/base/error.hpp"

namespace hetlora {

Population::Population(const std::vector<RegisteredClient>& clients)
    : data_of_([clients](std::int64_t client) {
          const RegisteredClient& record = clients[static_cast<std::size_t>(client)];
          return ClientData{
              .n_windows = record.n_windows, .n_loss_tokens = record.n_loss_tokens, .n_rows = record.n_rows};
      }) {
    for (std::size_t client = 0; client < clients.size(); ++client) {
        const auto& record = clients[client];
        if (record.lora_rank < 1 || record.lora_rank > record.initial_lora_rank) {
            throw bug_error("client {}: lora_rank {} (initially {})", client, record.lora_rank,
                            record.initial_lora_rank);
        }
        lora_ranks_.push_back(static_cast<std::int32_t>(record.lora_rank));
        initial_lora_ranks_.push_back(static_cast<std::int32_t>(record.initial_lora_rank));
        if (!record.eligible) continue;
        if (record.n_windows < 1) throw bug_error("client {} is eligible but has no training window", client);
        eligible_.push_back(static_cast<std::int32_t>(client));
    }
}

Population::Population(std::span<const std::int64_t> lora_ranks, std::vector<std::int32_t> eligible,
                       ClientDataOf data_of)
    : eligible_(std::move(eligible)), data_of_(std::move(data_of)) {
    lora_ranks_.reserve(lora_ranks.size());
    for (const std::int64_t lora_rank : lora_ranks) {
        if (lora_rank < 1) throw bug_error("client {}: lora_rank {}", lora_ranks_.size(), lora_rank);
        lora_ranks_.push_back(static_cast<std::int32_t>(lora_rank));
    }
    initial_lora_ranks_ = lora_ranks_;
}

std::size_t Population::index(std::int64_t client) const {
    if (client < 0 || client >= size()) throw bug_error("client {} of {}", client, size());
    return static_cast<std::size_t>(client);
}

RegisteredClient Population::at(std::int64_t client) const {
    RegisteredClient record{.lora_rank = lora_rank(client), .initial_lora_rank = initial_lora_rank(client)};
    record.eligible = std::ranges::binary_search(eligible_, static_cast<std::int32_t>(client));
    if (!record.eligible) return record;
    const ClientData data = data_of_(client);
    if (data.n_windows < 1) throw bug_error("client {} is eligible but has no training window", client);
    record.n_windows = data.n_windows;
    record.n_loss_tokens = data.n_loss_tokens;
    record.n_rows = data.n_rows;
    return record;
}

std::int64_t Population::lora_rank(std::int64_t client) const { return lora_ranks_[index(client)]; }

std::int64_t Population::initial_lora_rank(std::int64_t client) const { return initial_lora_ranks_[index(client)]; }

std::vector<std::int64_t> Population::lora_ranks() const { return {lora_ranks_.begin(), lora_ranks_.end()}; }

void Population::shrink_lora_rank(std::int64_t client, std::int64_t lora_rank) {
    auto& present = lora_ranks_[index(client)];
    if (lora_rank < 1 || lora_rank > present) {
        throw bug_error("client {}: lora_rank {} cannot become {}", client, present, lora_rank);
    }
    present = static_cast<std::int32_t>(lora_rank);
}

std::int64_t Population::private_round(std::int64_t client) const {
    const std::size_t at = index(client);
    return private_rounds_.empty() ? 0 : private_rounds_[at];
}

void Population::set_private_round(std::int64_t client, std::int64_t round) {
    const std::size_t at = index(client);
    if (private_rounds_.empty()) private_rounds_.resize(lora_ranks_.size());
    private_rounds_[at] = round;
}

std::vector<std::int64_t> Population::private_rounds() const {
    return private_rounds_.empty() ? std::vector<std::int64_t>(lora_ranks_.size()) : private_rounds_;
}

void Population::restore_private_rounds(std::span<const std::int64_t> rounds) {
    if (rounds.size() != lora_ranks_.size()) {
        throw input_error("the checkpoint knows {} clients but the data has {} - resume with the same data",
                          rounds.size(), lora_ranks_.size());
    }
    private_rounds_.assign(rounds.begin(), rounds.end());
}

void Population::restore_lora_ranks(std::span<const std::int64_t> lora_ranks) {
    if (lora_ranks.size() != lora_ranks_.size()) {
        throw input_error("the checkpoint has lora_ranks of {} clients but the data has {} - resume with the same data",
                          lora_ranks.size(), lora_ranks_.size());
    }
    for (std::size_t client = 0; client < lora_ranks_.size(); ++client) {
        if (lora_ranks[client] < 1 || lora_ranks[client] > initial_lora_ranks_[client]) {
            throw input_error(
                "the checkpoint gives client {} lora_rank {}, but it starts with {} here - resume with the same config",
                client, lora_ranks[client], initial_lora_ranks_[client]);
        }
    }
    for (std::size_t client = 0; client < lora_ranks_.size(); ++client) {
        lora_ranks_[client] = static_cast<std::int32_t>(lora_ranks[client]);
    }
}

}  // namespace hetlora
