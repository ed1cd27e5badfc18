// The classification heads of a pack's clients (model/class_head.hpp): a copy each, with an optimiser state each.
//
// A head is trained as its client's adapter is: the same optimiser, weight decay and clipping (of its own gradient's
// norm), at options.head_learning_rate. Tail regulariser and proximal term are about adapters only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hetlora/model/class_head.hpp"
#include "hetlora/train/local_training.hpp"

namespace hetlora {

class HeadTraining {
public:
    /// @param tasks client t of the group starts from tasks[t].received_head
    HeadTraining(const ClassHeadShape& shape, std::span<const ClientTask> tasks, const LocalOptions& options,
                 const at::TensorOptions& tensors);

    [[nodiscard]] ClassHeadGroup& group() { return group_; }
    /// Clips the client's gradient and takes one optimiser step. @param step 1-based, of this participation
    void update(std::size_t client, std::int64_t step);
    [[nodiscard]] std::vector<double> trained(std::size_t client) const {
        return group_.get(static_cast<std::int64_t>(client));
    }

private:
    LocalOptions options_;
    ClassHeadGroup group_;
    at::Tensor moment1_CP;
    at::Tensor moment2_CP;
};

}  // namespace hetlora
