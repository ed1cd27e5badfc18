#include "hetlora/train/client_update.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/ops.hpp"

namespace hetlora {
namespace {

/// A contiguous block of slots and its gradient.
template <typename T>
struct Tail {
    const T* values = nullptr;
    T* gradient = nullptr;
    std::int64_t count = 0;

    /// sqrt(sum x^2 + epsilon)
    [[nodiscard]] double norm(double epsilon) const {
        return std::sqrt(kernels<T>().sum_of_squares(values, count) + epsilon);
    }
    /// gradient += factor * values
    void pull(double factor) const {
        const T f = static_cast<T>(factor);
        for (std::int64_t i = 0; i < count; ++i) gradient[i] += f * values[i];
    }
};

/// d/dA ||A|| ||B|| = ||B|| A / ||A||, and 0 at A = 0 (the subgradient chosen; an epsilon > 0 makes it smooth).
template <typename T>
void add_tail_gradient(const AdapterGroup& adapters, const AdapterLayout& layout, const T* theta, T* gradient,
                       const ClientStep& step, const LocalOptions& options) {
    const std::int64_t slots = step.lora_rank - step.tail_start;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto tail = [&](std::int64_t offset, std::int64_t width) {
            const std::int64_t start = offset + step.tail_start * width;
            return Tail<T>{.values = theta + start, .gradient = gradient + start, .count = slots * width};
        };
        const Tail<T> a = tail(adapters.offset_a(m), layout.matrices[m].d_in);
        const Tail<T> b = tail(adapters.offset_b(m), layout.matrices[m].d_out);
        const double norm_a = a.norm(options.tail_norm_epsilon);
        const double norm_b = b.norm(options.tail_norm_epsilon);
        if (norm_a > 0.0) a.pull(options.tail_lambda * norm_b / norm_a);
        if (norm_b > 0.0) b.pull(options.tail_lambda * norm_a / norm_b);
    }
}

/// gradient += mu (theta - received)
template <typename T>
void add_proximal_gradient(T* gradient, const T* theta, const T* received, std::int64_t count, double mu) {
    const T factor = static_cast<T>(mu);
    for (std::int64_t i = 0; i < count; ++i) gradient[i] += factor * (theta[i] - received[i]);
}

/// gradient = 0 outside the ranges, whatever it was.
template <typename T>
void clear_frozen(T* gradient, std::int64_t count, std::span<const RowRange> trained) {
    std::int64_t frozen_from = 0;
    for (const RowRange& range : trained) {
        std::fill(gradient + frozen_from, gradient + range.begin, T{0});
        frozen_from = range.end;
    }
    std::fill(gradient + frozen_from, gradient + count, T{0});
}

template <typename T>
void update_row(AdapterGroup& adapters, OptimizerState& state, std::int64_t client, const AdapterLayout& layout,
                const ClientStep& step, const LocalOptions& options) {
    const std::int64_t size = adapters.row_size();
    T* theta = adapters.theta_CP.data_ptr<T>() + client * size;
    T* gradient = adapters.gradient_CP.data_ptr<T>() + client * size;
    if (options.tail_lambda > 0.0 && step.tail_start < step.lora_rank) {
        add_tail_gradient(adapters, layout, theta, gradient, step, options);
    }
    if (options.prox_mu > 0.0) {
        add_proximal_gradient(gradient, theta, state.received_CP.const_data_ptr<T>() + client * size, size,
                              options.prox_mu);
    }
    const RowRange whole_row{.begin = 0, .end = size};
    std::span<const RowRange> trained(&whole_row, 1);
    if (!state.trained.empty() && !state.trained[static_cast<std::size_t>(client)].all) {
        trained = state.trained[static_cast<std::size_t>(client)].ranges;
        clear_frozen(gradient, size, trained);
    }
    if (options.clip_norm > 0.0) {
        const double norm = std::sqrt(kernels<T>().sum_of_squares(gradient, size));
        const T factor = static_cast<T>(options.clip_norm / (norm + 1e-6));
        if (norm + 1e-6 > options.clip_norm) {
            for (std::int64_t i = 0; i < size; ++i) gradient[i] *= factor;
        }
    }
    if (options.optimizer == OptimizerKind::adamw) {
        T* moment1 = state.moment1_CP.data_ptr<T>() + client * size;
        T* moment2 = state.moment2_CP.data_ptr<T>() + client * size;
        for (const auto& [begin, end] : trained) {
            kernels<T>().adamw(theta + begin, gradient + begin, moment1 + begin, moment2 + begin, end - begin,
                               options.learning_rate, options.weight_decay, options.beta1, options.beta2,
                               options.epsilon, step.step);
        }
        return;
    }
    const T rate = static_cast<T>(options.learning_rate);
    const T decay = static_cast<T>(options.weight_decay);
    for (const auto& [begin, end] : trained) {
        for (std::int64_t i = begin; i < end; ++i) theta[i] -= rate * (gradient[i] + decay * theta[i]);
    }
}

}  // namespace

OptimizerState::OptimizerState(const AdapterGroup& adapters, OptimizerKind kind) {
    if (kind != OptimizerKind::adamw) return;
    moment1_CP = at::zeros_like(adapters.theta_CP);
    moment2_CP = at::zeros_like(adapters.theta_CP);
}

void update_client(AdapterGroup& adapters, OptimizerState& state, std::int64_t client, const AdapterLayout& layout,
                   const ClientStep& step, const LocalOptions& options) {
    if (!adapters.theta_CP.is_cpu()) throw bug_error("update_client: the adapters are not on the CPU");
    AT_DISPATCH_FLOATING_TYPES(adapters.theta_CP.scalar_type(), "update_client",
                               [&] { update_row<scalar_t>(adapters, state, client, layout, step, options); });
}

void update_clients(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                    std::span<const ClientStep> clients, const LocalOptions& options) {
    if (!ops::has_kernels(adapters.theta_CP)) return update_clients_aten(adapters, state, layout, clients, options);
    for (std::size_t c = 0; c < clients.size(); ++c) {
        update_client(adapters, state, static_cast<std::int64_t>(c), layout, clients[c], options);
    }
}

}  // namespace hetlora
