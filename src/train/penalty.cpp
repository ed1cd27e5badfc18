#include "hetlora/train/penalty.hpp"

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// The views [C, W, D] and [C, O, W] of every matrix into rows laid out like the adapters'.
std::vector<plugin::Factors> factors_of(const at::Tensor& rows_CP, const AdapterLayout& layout,
                                        const AdapterGroup& adapters) {
    const std::int64_t width = adapters.width();
    std::vector<plugin::Factors> factors;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto [d_out, d_in] = std::pair(layout.matrices[m].d_out, layout.matrices[m].d_in);
        factors.push_back(
            {.a = rows_CP.narrow(1, adapters.offset_a(m), width * d_in).unflatten(1, {width, d_in}),
             .b = rows_CP.narrow(1, adapters.offset_b(m), width * d_out).unflatten(1, {width, d_out}).transpose(1, 2)});
    }
    return factors;
}

void check_finite(const PenaltyStep& step, const at::Tensor& gradient_CP) {
    const at::Tensor finite_C = gradient_CP.isfinite().all(1).cpu();
    for (std::int64_t c = 0; c < finite_C.size(0); ++c) {
        if (finite_C[c].item<bool>()) continue;
        throw training_error(
            "strategy.plugin {}: penalty in round {}: its gradient for client {} is not finite in step {}: a root of "
            "factors that are 0 has none (B is 0 at the start); add a small number under it",
            step.name, step.round, step.clients[static_cast<std::size_t>(c)], step.steps.front().step);
    }
}

}  // namespace

void add_penalty(const PenaltyStep& step, const AdapterLayout& layout, AdapterGroup& adapters) {
    const std::int64_t C = std::ssize(step.steps);
    const auto device = adapters.theta_CP.device();
    std::vector<std::int64_t> lora_ranks;
    for (const ClientStep& client : step.steps) lora_ranks.push_back(client.lora_rank);
    const c10::AutoGradMode with_graph(true);
    const at::Tensor leaf_CP = adapters.theta_CP.narrow(0, 0, C).detach().clone().set_requires_grad(true);
    plugin::PenaltyContext context{
        .round = step.round,
        .step = step.steps.front().step,
        .client_C = at::tensor(at::ArrayRef<std::int64_t>(step.clients.data(), step.clients.size()), at::kLong),
        .lora_rank_C = at::tensor(lora_ranks, at::kLong),
        .factors = factors_of(leaf_CP, layout, adapters),
        .received = factors_of(step.received_CP.narrow(0, 0, C), layout, adapters)};
    const at::Tensor penalty_C = step.method.penalty(context);
    if (!penalty_C.requires_grad()) return;  // a constant
    penalty_C.sum().backward();
    const at::Tensor gradient_CP = leaf_CP.grad();
    if (!gradient_CP.defined()) return;
    const at::NoGradGuard no_grad;
    const at::Tensor padding_CW = at::arange(adapters.width(), device) >= context.lora_rank_C.to(device).unsqueeze(1);
    for (const plugin::Factors& gradient : factors_of(gradient_CP, layout, adapters)) {
        gradient.a.masked_fill_(padding_CW.unsqueeze(2), 0.0);
        gradient.b.masked_fill_(padding_CW.unsqueeze(1), 0.0);
    }
    check_finite(step, gradient_CP);
    adapters.gradient_CP.narrow(0, 0, C).add_(gradient_CP);
}

}  // namespace hetlora
