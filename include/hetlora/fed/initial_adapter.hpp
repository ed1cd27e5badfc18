// The adapter that a run starts with, and fresh rows for slots that are refilled later: hashed, so that every mpi_rank
// and every resumed run draws the same values.
//
// A[m][slot][column] from  u = hash_seed(seed_init, Purpose::adapter_init, m, slot, column):
//   kaiming_uniform   (2 uniform01(u) - 1) / sqrt(d_in)     (torch's kaiming_uniform_ with a = sqrt(5), as PEFT uses
//   it) gaussian          standard_normal(u) / rank_max         (PEFT's "gaussian")
// B = 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/config/settings.hpp"

namespace hetlora {

struct AdapterInitLaw {
    AdapterInit init = AdapterInit::kaiming_uniform;
    std::uint64_t seed_init = 0;
    std::int64_t rank_max = 0;
    bool round_to_fp32 = true;  ///< what a run in fp32 computes with
};

[[nodiscard]] AdapterInitLaw adapter_init_law(const Settings& settings);

/// The global adapter of round 0, canonical form at rank_max.
[[nodiscard]] std::vector<double> initial_adapter(const AdapterLayout& layout, const AdapterInitLaw& law);

/// Whose fresh adapter.
struct FreshAdapter {
    std::int64_t round = 0;
    std::int64_t client = 0;
};
/// An adapter of a client's own for one round, of methods that start afresh in each (hashed with
/// Purpose::fresh_adapter, round and client): A by the law, B = 0.
/// @param adapter canonical form at lora_rank
void fresh_adapter(const AdapterLayout& layout, const AdapterInitLaw& law, const FreshAdapter& whose,
                   std::int64_t lora_rank, std::span<double> adapter);

/// Writes a fresh row of A for a slot that nobody covered in this round (hashed with Purpose::refill and the round).
/// @param row [d_in]
void refill_row(const AdapterInitLaw& law, std::int64_t round, std::size_t matrix, std::int64_t slot,
                std::span<double> row);

}  // namespace hetlora
