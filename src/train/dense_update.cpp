#include "hetlora/train/dense_update.hpp"

#include <cmath>

#include "hetlora/tensor/kernels.hpp"

namespace hetlora {
namespace {

template <typename T>
double gradient_norm(std::span<const DenseTensor> tensors) {
    double sum = 0.0;
    for (const DenseTensor& tensor : tensors)
        sum += kernels<T>().sum_of_squares(tensor.gradient.const_data_ptr<T>(), tensor.gradient.numel());
    return std::sqrt(sum);
}

template <typename T>
void clip_to(std::span<const DenseTensor> tensors, double clip_norm) {
    const double norm = gradient_norm<T>(tensors);
    if (norm + 1e-6 <= clip_norm) return;
    const T factor = static_cast<T>(clip_norm / (norm + 1e-6));
    for (const DenseTensor& tensor : tensors) {
        T* gradient = static_cast<T*>(tensor.gradient.mutable_data_ptr());
        for (std::int64_t i = 0; i < tensor.gradient.numel(); ++i) gradient[i] *= factor;
    }
}

template <typename T>
void step_of(const DenseTensor& tensor, const LocalOptions& options, double learning_rate, std::int64_t step) {
    T* theta = static_cast<T*>(tensor.theta.mutable_data_ptr());
    const T* gradient = tensor.gradient.const_data_ptr<T>();
    const std::int64_t size = tensor.theta.numel();
    if (options.optimizer == OptimizerKind::adamw) {
        kernels<T>().adamw(theta, gradient, static_cast<T*>(tensor.moment1.mutable_data_ptr()),
                           static_cast<T*>(tensor.moment2.mutable_data_ptr()), size, learning_rate,
                           options.weight_decay, options.beta1, options.beta2, options.epsilon, step);
        return;
    }
    const T rate = static_cast<T>(learning_rate);
    const T decay = static_cast<T>(options.weight_decay);
    for (std::int64_t i = 0; i < size; ++i) theta[i] -= rate * (gradient[i] + decay * theta[i]);
}

}  // namespace

void update_dense(std::span<const DenseTensor> tensors, const LocalOptions& options, double learning_rate,
                  std::int64_t step) {
    if (tensors.empty()) return;
    AT_DISPATCH_FLOATING_TYPES(tensors.front().theta.scalar_type(), "update_dense", [&] {
        if (options.clip_norm > 0.0) clip_to<scalar_t>(tensors, options.clip_norm);
        for (const DenseTensor& tensor : tensors) step_of<scalar_t>(tensor, options, learning_rate, step);
    });
}

}  // namespace hetlora
