// See hetlora/train/head_training.hpp.
#include "hetlora/train/head_training.hpp"

#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/kernels.hpp"

namespace hetlora {
namespace {

template <typename T>
void clip(T* gradient, std::int64_t size, double clip_norm) {
    const double norm = std::sqrt(kernels<T>().sum_of_squares(gradient, size));
    if (norm + 1e-6 <= clip_norm) return;
    const T factor = static_cast<T>(clip_norm / (norm + 1e-6));
    for (std::int64_t i = 0; i < size; ++i) gradient[i] *= factor;
}

}  // namespace

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
    AT_DISPATCH_FLOATING_TYPES(group_.theta_CP.scalar_type(), "head_update", [&] {
        const std::int64_t size = group_.theta_CP.size(1);
        const std::int64_t first = static_cast<std::int64_t>(client) * size;
        scalar_t* theta = group_.theta_CP.data_ptr<scalar_t>() + first;
        scalar_t* gradient = group_.gradient_CP.data_ptr<scalar_t>() + first;
        if (options_.clip_norm > 0.0) clip(gradient, size, options_.clip_norm);
        if (options_.optimizer == OptimizerKind::adamw) {
            kernels<scalar_t>().adamw(theta, gradient, moment1_CP.data_ptr<scalar_t>() + first,
                                      moment2_CP.data_ptr<scalar_t>() + first, size, options_.head_learning_rate,
                                      options_.weight_decay, options_.beta1, options_.beta2, options_.epsilon, step);
            return;
        }
        const scalar_t rate = static_cast<scalar_t>(options_.head_learning_rate);
        const scalar_t decay = static_cast<scalar_t>(options_.weight_decay);
        for (std::int64_t i = 0; i < size; ++i) theta[i] -= rate * (gradient[i] + decay * theta[i]);
    });
}

}  // namespace hetlora
