#include "hetlora/train/penalty.hpp"

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// The views [C, W, D] of A and [C, W, O] of B^T of every matrix into rows laid out like the adapters'.
std::vector<plugin::Factors> rows_of(const at::Tensor& rows_CP, const AdapterLayout& layout,
                                     const AdapterGroup& adapters) {
    const std::int64_t width = adapters.width();
    std::vector<plugin::Factors> rows;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto view = [&](std::int64_t offset, std::int64_t values) {
            return rows_CP.narrow(1, offset, width * values).unflatten(1, {width, values});
        };
        rows.push_back({.a = view(adapters.offset_a(m), layout.matrices[m].d_in),
                        .b = view(adapters.offset_b(m), layout.matrices[m].d_out)});
    }
    return rows;
}

/// Copies of them to differentiate by. Each is a leaf of its own: the gradients of views into one common leaf would
/// each be as large as all adapters together.
std::vector<plugin::Factors> leaves_of(const at::Tensor& theta_CP, const AdapterLayout& layout,
                                       const AdapterGroup& adapters) {
    std::vector<plugin::Factors> leaves = rows_of(theta_CP.detach(), layout, adapters);
    for (plugin::Factors& leaf : leaves) {
        leaf.a = leaf.a.clone().set_requires_grad(true);
        leaf.b = leaf.b.clone().set_requires_grad(true);
    }
    return leaves;
}

/// The same with B [C, O, W] in the place of B^T.
std::vector<plugin::Factors> with_b(std::vector<plugin::Factors> rows) {
    for (plugin::Factors& factors : rows) factors.b = factors.b.transpose(1, 2);
    return rows;
}

void check_finite(const PenaltyStep& step, const at::Tensor& gradient_CWD) {
    if (gradient_CWD.isfinite().all().item<bool>()) return;
    const at::Tensor finite_C = gradient_CWD.isfinite().flatten(1).all(1).cpu();
    for (std::int64_t c = 0; c < finite_C.size(0); ++c) {
        if (finite_C[c].item<bool>()) continue;
        throw training_error(
            "strategy.plugin {}: penalty in round {}: its gradient for client {} is not finite in step {}: a root of "
            "factors that are 0 has none (B is 0 at the start); add a small number under it",
            step.name, step.round, step.clients[static_cast<std::size_t>(c)], step.steps.front().step);
    }
}

/// Autograd calls back into the plugin where that has functions with a backward of their own.
void differentiate(const PenaltyStep& step, const at::Tensor& penalty_C) {
    try {
        penalty_C.sum().backward();
    } catch (const std::exception& error) {
        const std::string text = error.what();  // LibTorch adds a C++ stack
        throw training_error("strategy.plugin {}: penalty in round {}: its gradient: {}", step.name, step.round,
                             text.substr(0, text.find("\nException raised from")));
    }
}

}  // namespace

void add_penalty(const PenaltyStep& step, const AdapterLayout& layout, AdapterGroup& adapters) {
    const std::int64_t C = std::ssize(step.steps);
    const auto device = adapters.theta_CP.device();
    std::vector<std::int64_t> lora_ranks;
    for (const ClientStep& client : step.steps) lora_ranks.push_back(client.lora_rank);
    const c10::AutoGradMode with_graph(true);
    const std::vector<plugin::Factors> leaves = leaves_of(adapters.theta_CP.narrow(0, 0, C), layout, adapters);
    const plugin::PenaltyContext context{
        .round = step.round,
        .step = step.steps.front().step,
        .client_C = at::tensor(at::ArrayRef<std::int64_t>(step.clients.data(), step.clients.size()), at::kLong),
        .lora_rank_C = at::tensor(lora_ranks, at::kLong),
        .factors = with_b(leaves),
        .received = with_b(rows_of(step.received_CP.narrow(0, 0, C), layout, adapters))};
    const at::Tensor penalty_C = step.method.penalty(context);
    if (!penalty_C.requires_grad()) return;  // 0: CheckedMethod refuses other constants
    differentiate(step, penalty_C);
    const at::NoGradGuard no_grad;
    const at::Tensor padding_CW1 =
        (at::arange(adapters.width(), device) >= context.lora_rank_C.to(device).unsqueeze(1)).unsqueeze(2);
    const std::vector<plugin::Factors> gradients = rows_of(adapters.gradient_CP.narrow(0, 0, C), layout, adapters);
    for (std::size_t m = 0; m < leaves.size(); ++m) {
        for (const auto& [leaf, gradient] :
             {std::pair(leaves[m].a, gradients[m].a), std::pair(leaves[m].b, gradients[m].b)}) {
            if (!leaf.grad().defined()) continue;  // the penalty does not look at this factor
            const at::Tensor own = leaf.grad().masked_fill(padding_CW1, 0.0);
            check_finite(step, own);
            gradient.add_(own);
        }
    }
}

}  // namespace hetlora
