// See hetlora/train/head_training.hpp.
#include "hetlora/train/head_training.hpp"

#include "hetlora/base/error.hpp"
#include "hetlora/train/dense_update.hpp"

namespace hetlora {

HeadTraining::HeadTraining(const ClassHeadShape& shape, std::span<const ClientTask> tasks, const LocalOptions& options,
                           const at::TensorOptions& tensors)
    : options_(options), group_(shape, std::ssize(tasks), /*with_gradient=*/true, tensors) {
    if (!group_.theta_CP.is_cpu()) throw bug_error("classification heads are trained on the CPU only");
    for (std::size_t t = 0; t < tasks.size(); ++t) group_.set(static_cast<std::int64_t>(t), tasks[t].received_head);
    if (options.optimizer != OptimizerKind::adamw) return;
    moment1_CP = at::zeros_like(group_.theta_CP);
    moment2_CP = at::zeros_like(group_.theta_CP);
}

void HeadTraining::update(std::size_t client, std::int64_t step) {
    const auto row = [client](const at::Tensor& values_CP) {
        return values_CP.defined() ? values_CP[static_cast<std::int64_t>(client)] : values_CP;
    };
    const DenseTensor head{.theta = row(group_.theta_CP),
                           .gradient = row(group_.gradient_CP),
                           .moment1 = row(moment1_CP),
                           .moment2 = row(moment2_CP)};
    update_dense(std::span(&head, 1), options_, options_.head_learning_rate, step);
}

}  // namespace hetlora
