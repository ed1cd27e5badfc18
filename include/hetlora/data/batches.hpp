// Which training windows a local step uses: a pure function of seed, client, round and step.
//
// A client with n windows and batch size b has ceil(n / b) steps an epoch. Step s of round t is step j = s mod E of
// epoch e = s div E (E steps an epoch); the epoch's permutation sorts the indices i = 0..n-1 by
//     (hash_seed(seed_data, Purpose::data_order, client, t, e, i), i)
// and the batch is perm[j b .. min(n, (j + 1) b)). A batch never repeats a window, the last one of an epoch may be
// smaller, steps wrap around.
#pragma once

#include <cstdint>
#include <vector>

namespace hetlora {

/// Everything that the order of one client's batches in one round depends on.
struct BatchOrder {
    std::uint64_t seed_data = 0;
    std::int64_t client = 0;
    std::int64_t round = 0;
    std::int64_t n_windows = 0;   ///< n > 0
    std::int64_t batch_size = 1;  ///< b > 0, in windows
};

/// ceil(n / b). @throws Error (bug) unless n > 0 and b > 0
[[nodiscard]] std::int64_t steps_per_epoch(const BatchOrder& order);

/// All n indices in the order of an epoch. A loop over many steps calls this once an epoch and slices it.
[[nodiscard]] std::vector<std::int64_t> epoch_permutation(const BatchOrder& order, std::int64_t epoch);

/// Indices into the client's train windows of local step `step` (0-based, may exceed an epoch).
[[nodiscard]] std::vector<std::int64_t> batch_windows(const BatchOrder& order, std::int64_t step);

}  // namespace hetlora
