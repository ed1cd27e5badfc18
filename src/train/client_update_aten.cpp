// update_client for many clients at once from ATen's ops: what a GPU runs, and tests compare with the CPU's loops.
//
// Every operation works on the arenas [C, P] of a group; what belongs to one client (norms, tails) is one value of a
// column [C, 1]. Values are selected, never multiplied by 0, so that a client's NaN stays its own, and a frozen element
// keeps its bits.
#include <algorithm>
#include <cmath>

#include "hetlora/base/error.hpp"
#include "hetlora/train/client_update.hpp"

namespace hetlora {
namespace {

/// Host values as a tensor on the device, without waiting for it.
template <typename T>
at::Tensor on_device(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
    at::Tensor tensor =
        at::empty({std::ssize(values)}, at::TensorOptions().dtype(dtype).pinned_memory(device.is_cuda()));
    std::copy(values.begin(), values.end(), tensor.data_ptr<T>());
    return tensor.to(device, /*non_blocking=*/true);
}

/// Which elements of a client's row belong to which factor and slot.
struct RowMap {
    at::Tensor factor_P;  ///< int64: 2 m for A, 2 m + 1 for B of matrix m
    at::Tensor slot_P;    ///< int64; the gaps between factors have a slot that nobody has
};

RowMap make_row_map(const AdapterGroup& adapters, const AdapterLayout& layout) {
    std::vector<std::int64_t> factor(static_cast<std::size_t>(adapters.row_size()), 0);
    std::vector<std::int64_t> slot(factor.size(), adapters.width());
    const auto mark = [&](std::int64_t offset, std::int64_t columns, std::size_t which) {
        for (std::int64_t i = 0; i < adapters.width() * columns; ++i) {
            factor[static_cast<std::size_t>(offset + i)] = static_cast<std::int64_t>(which);
            slot[static_cast<std::size_t>(offset + i)] = i / columns;
        }
    };
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        mark(adapters.offset_a(m), layout.matrices[m].d_in, 2 * m);
        mark(adapters.offset_b(m), layout.matrices[m].d_out, 2 * m + 1);
    }
    const at::Device device = adapters.theta_CP.device();
    return {.factor_P = on_device(factor, at::kLong, device), .slot_P = on_device(slot, at::kLong, device)};
}

/// gradient += d/dtheta of lambda * sum_m ||B_m tail|| ||A_m tail||, with subgradient 0 where a tail is 0.
void add_tail_gradients(const AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                        std::span<const ClientStep> clients, const LocalOptions& options) {
    const std::int64_t C = std::ssize(clients);
    if (!state.factor_P.defined()) {
        RowMap map = make_row_map(adapters, layout);
        state.factor_P = std::move(map.factor_P);
        state.slot_P = std::move(map.slot_P);
    }
    std::vector<std::int64_t> starts;
    std::vector<std::int64_t> ends;
    for (const ClientStep& client : clients) {
        starts.push_back(client.tail_start);
        ends.push_back(client.lora_rank);
    }
    const at::Tensor theta = adapters.theta_CP.narrow(0, 0, C);
    const at::Tensor slot_1P = state.slot_P.unsqueeze(0);
    const at::Tensor tail_CP = slot_1P.ge(on_device(starts, at::kLong, theta.device()).unsqueeze(1))
                                   .logical_and_(slot_1P.lt(on_device(ends, at::kLong, theta.device()).unsqueeze(1)));
    const at::Tensor values_CP = theta.masked_fill(tail_CP.logical_not(), 0.0);
    const auto M = static_cast<std::int64_t>(layout.matrices.size());
    at::Tensor norm_C2M = at::empty({C, M, 2}, theta.options().dtype(at::kDouble));
    for (std::int64_t m = 0; m < M; ++m) {
        const auto& matrix = layout.matrices[static_cast<std::size_t>(m)];
        const auto norm = [&](std::int64_t offset, std::int64_t columns, std::int64_t which) {
            at::Tensor target = norm_C2M.select(1, m).select(1, which);
            at::linalg_vector_norm_out(target, values_CP.narrow(1, offset, adapters.width() * columns), 2, 1,
                                       /*keepdim=*/false, at::kDouble);
        };
        norm(adapters.offset_a(static_cast<std::size_t>(m)), matrix.d_in, 0);
        norm(adapters.offset_b(static_cast<std::size_t>(m)), matrix.d_out, 1);
    }
    if (options.tail_norm_epsilon > 0.0) norm_C2M.square_().add_(options.tail_norm_epsilon).sqrt_();
    const at::Tensor pull = (norm_C2M.flip({2}) / norm_C2M * options.tail_lambda).masked_fill_(norm_C2M.eq(0.0), 0.0);
    const at::Tensor pull_CP = pull.flatten(1).to(theta.scalar_type()).index_select(1, state.factor_P);
    adapters.gradient_CP.narrow(0, 0, C).add_((pull_CP * values_CP).masked_fill_(tail_CP.logical_not(), 0.0));
}

/// gradient *= min(1, clip / (norm + 1e-6)), the norm over a client's whole row.
void clip(at::Tensor gradient_CP, double largest) {
    const at::Tensor norm =
        at::linalg_vector_norm(gradient_CP, 2, at::IntArrayRef{1}, /*keepdim=*/true, at::kDouble).add_(1e-6);
    const at::Tensor factor = norm.reciprocal().mul_(largest).masked_fill_(norm.gt(largest).logical_not_(), 1.0);
    gradient_CP.mul_(factor.to(gradient_CP.scalar_type()));
}

/// [clients, P], true where an element of a client's row does not train.
at::Tensor make_frozen(const AdapterGroup& adapters, std::span<const TrainedElements> trained) {
    const std::int64_t clients = std::ssize(trained);
    const std::int64_t row = adapters.row_size();
    std::vector<std::uint8_t> frozen(static_cast<std::size_t>(clients * row), 1);
    for (std::int64_t c = 0; c < clients; ++c) {
        const TrainedElements& client = trained[static_cast<std::size_t>(c)];
        const RowRange whole_row{.begin = 0, .end = row};
        for (const auto& [begin, end] : client.all ? std::span(&whole_row, 1) : std::span(client.ranges)) {
            std::fill(frozen.begin() + c * row + begin, frozen.begin() + c * row + end, std::uint8_t{0});
        }
    }
    return on_device(frozen, at::kByte, adapters.theta_CP.device()).to(at::kBool).unflatten(0, {clients, row});
}

/// Clears the gradient where nothing trains. @return the mask [C, P] of what does not; undefined where all trains
at::Tensor clear_frozen(const AdapterGroup& adapters, OptimizerState& state, at::Tensor gradient_CP) {
    if (std::ranges::all_of(state.trained, &TrainedElements::all)) return {};
    if (!state.frozen_CP.defined()) state.frozen_CP = make_frozen(adapters, state.trained);
    at::Tensor frozen = state.frozen_CP.narrow(0, 0, gradient_CP.size(0));
    gradient_CP.masked_fill_(frozen, 0.0);
    return frozen;
}

/// theta = updated where it trains.
void keep_frozen(const at::Tensor& frozen_CP, at::Tensor theta_CP, const at::Tensor& updated_CP) {
    theta_CP.copy_(at::where(frozen_CP, theta_CP, updated_CP));
}

}  // namespace

void update_clients_aten(AdapterGroup& adapters, OptimizerState& state, const AdapterLayout& layout,
                         std::span<const ClientStep> clients, const LocalOptions& options) {
    if (clients.empty()) return;
    const at::NoGradGuard no_grad;
    bool any_tail = false;
    for (const ClientStep& client : clients) {
        if (client.step != clients.front().step) throw bug_error("update_clients_aten: clients at different steps");
        any_tail = any_tail || client.tail_start < client.lora_rank;
    }
    const std::int64_t C = std::ssize(clients);
    at::Tensor theta = adapters.theta_CP.narrow(0, 0, C);
    const at::Tensor gradient = adapters.gradient_CP.narrow(0, 0, C);
    if (options.tail_lambda > 0.0 && any_tail) add_tail_gradients(adapters, state, layout, clients, options);
    if (options.prox_mu > 0.0) gradient.add_(theta - state.received_CP.narrow(0, 0, C), options.prox_mu);
    const at::Tensor frozen = clear_frozen(adapters, state, gradient);
    if (options.clip_norm > 0.0) clip(gradient, options.clip_norm);
    if (options.optimizer == OptimizerKind::adamw) {
        const auto step = static_cast<double>(clients.front().step);
        const double step_size = options.learning_rate / (1.0 - std::pow(options.beta1, step));
        const double inverse_root = 1.0 / std::sqrt(1.0 - std::pow(options.beta2, step));
        at::Tensor moment1 = state.moment1_CP.narrow(0, 0, C);
        at::Tensor moment2 = state.moment2_CP.narrow(0, 0, C);
        moment1.mul_(options.beta1).add_(gradient, 1.0 - options.beta1);
        moment2.mul_(options.beta2).addcmul_(gradient, gradient, 1.0 - options.beta2);
        const at::Tensor divisor = moment2.sqrt().mul_(inverse_root).add_(options.epsilon);
        const double decay = 1.0 - options.learning_rate * options.weight_decay;
        if (frozen.defined()) return keep_frozen(frozen, theta, (theta * decay).addcdiv_(moment1, divisor, -step_size));
        theta.mul_(decay).addcdiv_(moment1, divisor, -step_size);
        return;
    }
    const at::Tensor change = gradient + theta * options.weight_decay;
    if (frozen.defined()) return keep_frozen(frozen, theta, theta.sub(change, options.learning_rate));
    theta.sub_(change, options.learning_rate);
}

}  // namespace hetlora
