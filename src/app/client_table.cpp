// See hetlora/app/client_table.hpp.
#include "hetlora/app/client_table.hpp"

#include <algorithm>
#include <memory>

namespace hetlora {
namespace {

constexpr std::int64_t names_block = 1 << 14;  // names in memory at once

struct ClientTable {
    const Corpus& corpus;
    const Population& population;
    std::vector<ClientSize> sizes;
    std::vector<std::int64_t> loss_tokens;
    std::vector<std::string> names{};  ///< of the clients from `first` on
    std::int64_t first = 0;

    ClientRow row(std::int64_t client) {
        if (client < first || client >= first + std::ssize(names)) {
            first = client;
            names = corpus.client_names({first, std::min(first + names_block, corpus.n_clients())});
        }
        const auto k = static_cast<std::size_t>(client);
        return {.name = names[static_cast<std::size_t>(client - first)],
                .n_train_sequences = sizes[k].n_train_sequences,
                .n_train_tokens = loss_tokens[k],
                .initial_lora_rank = population.initial_lora_rank(client)};
    }
};

}  // namespace

std::function<ClientRow(std::int64_t)> client_table(const Corpus& corpus, const Population& population) {
    // A std::function is copied; the table is not.
    auto table = std::make_shared<ClientTable>(ClientTable{.corpus = corpus,
                                                           .population = population,
                                                           .sizes = corpus.client_sizes(),
                                                           .loss_tokens = corpus.client_loss_tokens()});
    return [table](std::int64_t client) { return table->row(client); };
}

}  // namespace hetlora
