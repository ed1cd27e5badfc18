// Rows with values that say where they came from, for the tests of the run's log and for write_sample_log.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "hetlora/store/run_log.hpp"

namespace hetlora::test {

inline RunLogHeader sample_header(std::int64_t rank_max = 4, int n_clients = 3) {
    RunLogHeader header{.run_id = "sample", .creator_version = "0.1.0", .rank_max = rank_max};
    header.extra_metrics = {{"rouge", "1", "ROUGE-L F1"}, {"bits", "bit", "bits per byte"}};
    for (int i = 0; i < n_clients; ++i) {
        header.clients.push_back({.name = "client " + std::to_string(i) + (i == 1 ? " ü" : ""),
                                  .n_train_sequences = 10 + i,
                                  .n_train_tokens = 1000 + i,
                                  .initial_lora_rank = 1 + i});
    }
    header.provenance.texts = {
        {"config", "[experiment]\nname = sample\n"}, {"git_commit", "0123abcd"}, {"hosts", "node1"}};
    header.provenance.integers = {{"git_dirty", 1}, {"threads", 2}};
    return header;
}

/// Round 0 has no participations, round t has clients 0 .. (t-1) % 3.
inline RoundRecord sample_round(std::int64_t round, std::int64_t rank_max = 4) {
    RoundRecord record;
    const auto t = static_cast<double>(round);
    record.round = {.round = round,
                    .eval_loss = 3.0 - 0.1 * t,
                    .eval_perplexity = 20.0 - t,
                    .eval_accuracy = 0.1 * t,
                    .extra_metrics = {0.5 + t, 0.25 + t},
                    .tokens = 100 * round,
                    .t_round_s = 0.5 + t,
                    .bytes_up_true = 1000 + round,
                    .bytes_up_padded = 4000 + round,
                    .peak_memory_bytes = (std::int64_t{1} << 33) + round,
                    .adapter_norm = 1.0 / 3.0 * t,
                    .slots_alive = round == 0 ? 0 : rank_max};
    if (round > 0) {
        record.round.train_loss = 3.5 - 0.1 * t;
        record.round.n_clients = (round - 1) % 3 + 1;
        for (std::int64_t client = 0; client < record.round.n_clients; ++client) {
            record.participation.push_back({.round = round,
                                            .client = client,
                                            .mpi_rank = client % 2,
                                            .pack = client / 2,
                                            .lora_rank_before = 1 + client,
                                            .lora_rank_after = 1 + client,
                                            .n_steps = 5,
                                            .n_tokens = 50 + client,
                                            .weight = 1.0 / static_cast<double>(record.round.n_clients),
                                            .loss_first = 3.6,
                                            .loss_last = client == 2 ? not_measured : 3.4,
                                            .t_train_s = 0.01,
                                            .dropped = client == 2});
        }
    }
    record.slots.energy.assign(static_cast<std::size_t>(rank_max), round == 0 ? 0.0 : 0.25);
    for (std::int64_t slot = 0; slot < rank_max; ++slot) {
        record.slots.n_contributors.push_back(std::max<std::int64_t>(record.round.n_clients - slot, 0));
    }
    return record;
}

/// The matrices of sample_layers().
inline std::vector<std::string> sample_layer_names() {
    return {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"};
}

/// Row of /layers of each matrix in this round.
inline std::vector<LayerRow> sample_layers(std::int64_t round, std::int64_t rank_max = 4) {
    std::vector<LayerRow> rows;
    for (const std::string& name : sample_layer_names()) {
        const double value = static_cast<double>(round) + 0.125 * static_cast<double>(rows.size());
        LayerRow row{.name = name,
                     .update_norm = value,
                     .product_norm = 2.0 * value,
                     .effective_rank = 1.5,
                     .leading_energy = 0.75,
                     .client_cosine = round == 4 ? 0.5 : not_measured};
        for (std::int64_t i = 0; i < rank_max; ++i) row.singular_value.push_back(value / static_cast<double>(i + 1));
        rows.push_back(std::move(row));
    }
    return rows;
}

inline void append(RunLog& log, const RoundRecord& record) {
    log.append_round(record.round, record.participation, record.slots, record.layers);
}

}  // namespace hetlora::test
