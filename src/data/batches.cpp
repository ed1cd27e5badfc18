// The order of training batches; its definition is in batches.hpp.
#include "hetlora/data/batches.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

void check(const BatchOrder& order) {
    if (order.n_windows <= 0 || order.batch_size <= 0) {
        throw bug_error(
            "client {} has {} training windows and a batch size of {} - batch order - train only eligible clients",
            order.client, order.n_windows, order.batch_size);
    }
}

}  // namespace

std::int64_t steps_per_epoch(const BatchOrder& order) {
    check(order);
    return (order.n_windows - 1) / order.batch_size + 1;
}

std::vector<std::int64_t> epoch_permutation(const BatchOrder& order, std::int64_t epoch) {
    check(order);
    struct Keyed {
        std::uint64_t key;
        std::int64_t index;
    };
    std::vector<Keyed> keyed(static_cast<std::size_t>(order.n_windows));
    for (std::int64_t i = 0; i < order.n_windows; ++i) {
        keyed[static_cast<std::size_t>(i)] = {
            hash_seed(order.seed_data, Purpose::data_order, order.client, order.round, epoch, i), i};
    }
    std::ranges::sort(
        keyed, [](const Keyed& a, const Keyed& b) { return a.key != b.key ? a.key < b.key : a.index < b.index; });
    std::vector<std::int64_t> permutation(keyed.size());
    std::ranges::transform(keyed, permutation.begin(), &Keyed::index);
    return permutation;
}

std::vector<std::int64_t> batch_windows(const BatchOrder& order, std::int64_t step) {
    const std::int64_t steps = steps_per_epoch(order);
    if (step < 0) throw bug_error("step {} of client {} - batch order - steps count from 0", step, order.client);
    const auto permutation = epoch_permutation(order, step / steps);
    const std::int64_t first = (step % steps) * order.batch_size;
    const std::int64_t count = std::min(order.batch_size, order.n_windows - first);
    return {permutation.begin() + first, permutation.begin() + first + count};
}

}  // namespace hetlora
