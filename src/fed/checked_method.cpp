#include "hetlora/fed/checked_method.hpp"

#include <fmt/ranges.h>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

/// Where a plugin's result comes from, for messages.
struct Origin {
    const std::string& plugin;
    const char* function;
    std::int64_t round;

    template <typename... Args>
    [[nodiscard]] Error refuse(fmt::format_string<Args...> text, Args&&... args) const {
        return training_error("strategy.plugin {}: {} in round {}: {}", plugin, function, round,
                              fmt::format(text, std::forward<Args>(args)...));
    }
};

/// LibTorch adds a C++ stack to its errors.
std::string first_part(std::string text) { return text.substr(0, text.find("\nException raised from")); }

/// What the function returns; its exceptions as an Error.
template <typename Function>
auto guarded(const Origin& origin, Function function) {
    try {
        return function();
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw origin.refuse("{}", first_part(error.what()));
    } catch (...) {
        throw origin.refuse("threw something that is no std::exception");
    }
}

std::string shape_text(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

void check_shape(const Origin& origin, const std::string& what, const at::Tensor& x, at::IntArrayRef wanted) {
    if (!x.defined()) throw origin.refuse("{} is no tensor: return one of shape {}", what, shape_text(wanted));
    if (x.sizes() != wanted) {
        throw origin.refuse("{} has shape {} instead of {}", what, shape_text(x.sizes()), shape_text(wanted));
    }
}

/// The tensor in float64 on the CPU.
at::Tensor numbers(const Origin& origin, const std::string& what, const at::Tensor& x, at::IntArrayRef wanted) {
    check_shape(origin, what, x, wanted);
    if (x.is_complex()) throw origin.refuse("{} is complex: return real numbers", what);
    const at::Tensor values = x.detach().to(at::kCPU, at::kDouble).contiguous();
    if (!values.isfinite().all().item<bool>()) throw origin.refuse("{} holds NaN or infinite values", what);
    return values;
}

}  // namespace

plugin::Parts CheckedMethod::parts() const {
    plugin::Parts parts;
    try {
        parts = inner_.parts();
    } catch (const std::exception& error) {
        throw input_error("strategy.plugin {}: {}", name_, first_part(error.what()));
    }
    if (!parts.select && !parts.weight && !parts.merge && !parts.penalty) {
        throw input_error("strategy.plugin {}: it has none of select, weight, merge and penalty: define one of them",
                          name_);
    }
    return parts;
}

void CheckedMethod::start(const plugin::RunFacts& facts) {
    try {
        inner_.start(facts);
    } catch (const std::exception& error) {
        throw input_error("strategy.plugin {}: start: {}", name_, first_part(error.what()));
    }
}

at::Tensor CheckedMethod::select(const plugin::SelectContext& context) {
    const Origin origin{name_, "select", context.round};
    const at::Tensor chosen_CR = guarded(origin, [&] { return inner_.select(context); });
    check_shape(origin, "the choice", chosen_CR, {context.client_C.size(0), context.global.front().a.size(0)});
    if (chosen_CR.scalar_type() != at::kBool) {
        throw origin.refuse("the choice is of type {} instead of bool", at::toString(chosen_CR.scalar_type()));
    }
    const at::Tensor count_C = chosen_CR.sum(1).cpu();
    for (std::int64_t c = 0; c < count_C.size(0); ++c) {
        const auto count = count_C[c].item<std::int64_t>();
        const auto lora_rank = context.lora_rank_C[c].item<std::int64_t>();
        if (count == lora_rank) continue;
        throw origin.refuse("{} slots for client {}, whose lora_rank is {}: choose as many", count,
                            context.client_C[c].item<std::int64_t>(), lora_rank);
    }
    return chosen_CR.cpu().contiguous();
}

at::Tensor CheckedMethod::weight(const plugin::WeightContext& context) {
    const Origin origin{name_, "weight", context.round};
    const at::Tensor result = guarded(origin, [&] { return inner_.weight(context); });
    const at::Tensor weight_C = numbers(origin, "the weight", result, {context.client_C.size(0)});
    for (std::int64_t c = 0; c < weight_C.size(0); ++c) {
        if (weight_C[c].item<double>() >= 0.0) continue;
        throw origin.refuse("client {} has weight {}: weights are 0 or larger",
                            context.client_C[c].item<std::int64_t>(), weight_C[c].item<double>());
    }
    return weight_C;
}

std::vector<plugin::Factors> CheckedMethod::merge(const plugin::MergeContext& context) {
    const Origin origin{name_, "merge", context.round};
    std::vector<plugin::Factors> merged = guarded(origin, [&] { return inner_.merge(context); });
    if (merged.size() != context.global.size()) {
        throw origin.refuse("factors of {} matrices instead of {}", merged.size(), context.global.size());
    }
    for (std::size_t m = 0; m < merged.size(); ++m) {
        merged[m].a = numbers(origin, fmt::format("A of matrix {}", m), merged[m].a, context.global[m].a.sizes());
        merged[m].b = numbers(origin, fmt::format("B of matrix {}", m), merged[m].b, context.global[m].b.sizes());
    }
    return merged;
}

at::Tensor CheckedMethod::penalty(const plugin::PenaltyContext& context) {
    const Origin origin{name_, "penalty", context.round};
    at::Tensor penalty_C = guarded(origin, [&] { return inner_.penalty(context); });
    check_shape(origin, "the penalty", penalty_C, {context.client_C.size(0)});
    if (!penalty_C.is_floating_point()) {
        throw origin.refuse("the penalty is of type {}: return floating-point numbers",
                            at::toString(penalty_C.scalar_type()));
    }
    if (!penalty_C.detach().isfinite().all().item<bool>()) throw origin.refuse("the penalty is not finite");
    if (!penalty_C.requires_grad() && penalty_C.any().item<bool>()) {
        throw origin.refuse(
            "the penalty has no gradient with respect to the factors: compute it with torch functions of "
            "context.factors, without detach, numpy or item()");
    }
    return penalty_C;
}

}  // namespace hetlora
