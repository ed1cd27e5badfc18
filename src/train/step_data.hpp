// Which windows a client trains on in which of its local steps: the same for every kind of training.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hetlora/data/batches.hpp"
#include "hetlora/train/local_training.hpp"

namespace hetlora {

/// A client's windows in the order of its local steps.
class StepData {
public:
    StepData(const Corpus& corpus, std::int64_t client, const LocalOptions& options)
        : windows_(corpus.train_windows(client)),
          order_{.seed_data = options.seed_data,
                 .client = client,
                 .round = options.round,
                 .n_windows = std::ssize(windows_),
                 .batch_size = options.batch_size} {}

    [[nodiscard]] std::vector<WindowRef> windows_of(std::int64_t step) {
        const std::int64_t per_epoch = steps_per_epoch(order_);
        if (step / per_epoch != epoch_) {
            epoch_ = step / per_epoch;
            permutation_ = epoch_permutation(order_, epoch_);
        }
        const std::int64_t begin = step % per_epoch * order_.batch_size;
        const std::int64_t end = std::min(order_.n_windows, begin + order_.batch_size);
        std::vector<WindowRef> batch;
        for (std::int64_t i = begin; i < end; ++i) {
            batch.push_back(windows_[static_cast<std::size_t>(permutation_[static_cast<std::size_t>(i)])]);
        }
        return batch;
    }

private:
    std::vector<WindowRef> windows_;
    BatchOrder order_;
    std::int64_t epoch_ = -1;
    std::vector<std::int64_t> permutation_;
};

}  // namespace hetlora
