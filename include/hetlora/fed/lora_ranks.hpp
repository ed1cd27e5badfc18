// Which lora_rank every registered client starts with (docs/methods.md, section "Ranks").
//
// The hashed laws draw client k's rank by inverting the cumulated probabilities at
//     u_k = uniform01(hash_seed(seed_ranks, Purpose::lora_rank, k)),
// so that it depends on the seed and on k alone, not on the number of clients.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "hetlora/config/settings.hpp"

namespace hetlora {

/// The section [lora] of a config, as far as ranks go.
///   fixed          every client has rank_max
///   uniform        p(r) = 1 / (rank_max - rank_min + 1)
///   powerlaw       p(r) ~ r^(power - 1) on the integers rank_min..rank_max
///   powerlaw_unit  r = rank_min + floor(x (rank_max - rank_min + 1)), x in (0, 1) with density power * x^(power - 1)
///   list           client k has list[k mod size]
///   file           one integer per line, one line per client ("#" starts a comment)
struct LoraRankLaw {
    RankDistribution distribution = RankDistribution::powerlaw;
    std::int64_t rank_min = 2;
    std::int64_t rank_max = 32;
    double power = 0.1;
    std::vector<std::int64_t> list;
    std::filesystem::path file;
    std::uint64_t seed_ranks = 0;
};

[[nodiscard]] LoraRankLaw lora_rank_law(const Settings& settings);

/// Probability of every rank of a hashed law or of `fixed`: element i belongs to rank_min + i.
/// @throws Error (usage) if the law's parameters make no sense; Error (bug) for list and file
[[nodiscard]] std::vector<double> lora_rank_probabilities(const LoraRankLaw& law);

/// The starting lora_rank of clients 0..n_clients-1, each within [rank_min, rank_max].
/// @throws Error (usage) for senseless parameters or list entries, Error (input) for a file that does not fit
[[nodiscard]] std::vector<std::int64_t> draw_lora_ranks(const LoraRankLaw& law, std::int64_t n_clients);

}  // namespace hetlora
