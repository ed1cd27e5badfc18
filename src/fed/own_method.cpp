#include "hetlora/fed/own_method.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/random.hpp"
#include "hetlora/fed/round.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

std::uint64_t round_seed(const AdapterInitLaw& law, std::int64_t round) {
    // Python's generators take 63 bits.
    return hash_seed(law.seed_init, Purpose::plugin, round) >> 1;
}

/// [C] of one number per item, float64 or int64.
template <typename Value, typename Items, typename Number>
at::Tensor column(const Items& items, Number number) {
    std::vector<Value> values;
    for (const auto& item : items) values.push_back(static_cast<Value>(number(item)));
    return at::tensor(values, c10::CppTypeToScalarType<Value>::value);
}

/// Copies of the factors of an adapter in canonical form at lora_rank.
plugin::Factors factors_of(const AdapterLayout& layout, std::span<const double> adapter, std::int64_t lora_rank,
                           std::size_t matrix) {
    const auto& shape = layout.matrices[matrix];
    const auto part = [&](std::int64_t offset, std::int64_t width) {
        // from_blob takes no const pointer; the clone is made before anybody could write.
        return at::from_blob(const_cast<double*>(adapter.data()) + offset, {lora_rank, width}, at::kDouble).clone();
    };
    return {.a = part(layout.offset_a(matrix, lora_rank), shape.d_in),
            .b = part(layout.offset_b(matrix, lora_rank), shape.d_out).t()};
}

std::vector<plugin::Factors> all_factors(const AdapterLayout& layout, std::span<const double> adapter,
                                         std::int64_t lora_rank) {
    std::vector<plugin::Factors> factors;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        factors.push_back(factors_of(layout, adapter, lora_rank, m));
    }
    return factors;
}

std::vector<const ClientReport*> counted(std::span<const ClientReport> reports) {
    std::vector<const ClientReport*> clients;
    for (const ClientReport& report : reports) {
        if (!report.dropped) clients.push_back(&report);
    }
    return clients;
}

/// Which places of the global adapter each client's slots have, [C, R].
at::Tensor places(std::span<const ClientReport* const> clients, std::int64_t rank_max) {
    at::Tensor has_slot_CR = at::zeros({std::ssize(clients), rank_max}, at::kBool);
    auto has = has_slot_CR.accessor<bool, 2>();
    for (std::int64_t c = 0; c < std::ssize(clients); ++c) {
        for (std::int64_t slot = 0; slot < rank_max; ++slot) {
            has[c][slot] = clients[static_cast<std::size_t>(c)]->has_slot(slot);
        }
    }
    return has_slot_CR;
}

/// What the clients sent, each slot at its place in the global adapter and 0 elsewhere.
std::vector<plugin::Factors> padded_uploads(const GatheredMerge& input) {
    const std::int64_t rank_max = input.init.rank_max;
    std::vector<std::vector<double>> adapters;
    for (std::size_t i = 0; i < input.reports.size(); ++i) {
        const ClientReport& report = input.reports[i];
        if (report.dropped) continue;
        auto& adapter = adapters.emplace_back(static_cast<std::size_t>(input.layout.parameters(rank_max)));
        const std::vector<double>& sent = input.uploads[i].factors;
        if (report.slots.empty()) {
            resize_adapter<double>(input.layout, sent, report.lora_rank_after, adapter, rank_max);
        } else {
            const std::vector<std::int64_t> slots(report.slots.begin(), report.slots.end());
            place_slots<double>(input.layout, sent, slots, adapter, rank_max);
        }
    }
    std::vector<plugin::Factors> by_matrix;
    for (std::size_t m = 0; m < input.layout.matrices.size(); ++m) {
        std::vector<at::Tensor> a, b;
        for (const auto& adapter : adapters) {
            plugin::Factors factors = factors_of(input.layout, adapter, rank_max, m);
            a.push_back(std::move(factors.a));
            b.push_back(std::move(factors.b));
        }
        by_matrix.push_back({.a = at::stack(a), .b = at::stack(b)});
    }
    return by_matrix;
}

/// s of a client's product, at the lora_rank that it sent.
double scale_of(const GatheredMerge& input, const ClientReport& report) {
    const double scale = lora_scale(input.lora, report.lora_rank_after);
    if (input.strategy.slot_scale != SlotScale::sketch) return scale;
    return scale * static_cast<double>(input.init.rank_max) / static_cast<double>(report.lora_rank_before);
}

/// Weights far from 1 would leave the exact sum's range, or lose bits in it: they are scaled by a power of two, which
/// keeps their proportions to the bit.
void scale_into_range(std::vector<double>& weights) {
    const double largest = std::ranges::max(weights);
    if (largest == 0.0 || (largest >= smallest_own_weight && largest <= largest_own_weight)) return;
    const int exponent = std::ilogb(largest) + 1;
    for (double& weight : weights) weight = std::ldexp(weight, -exponent);
}

void write_factor(const AdapterInitLaw& law, const at::Tensor& rows, std::int64_t offset, std::vector<double>& global) {
    const at::Tensor values = rows.contiguous();
    const double* from = values.const_data_ptr<double>();
    std::transform(from, from + values.numel(), global.begin() + static_cast<std::ptrdiff_t>(offset),
                   [&](double x) { return law.round_to_fp32 ? static_cast<double>(static_cast<float>(x)) : x; });
}

}  // namespace

void choose_own_slots(plugin::Method& method, const AdapterLayout& layout, const AdapterInitLaw& law,
                      std::span<const double> global, RoundPlan& plan) {
    const at::Tensor chosen_CR =
        method.select({.round = plan.round,
                       .seed = round_seed(law, plan.round),
                       .client_C = column<std::int64_t>(plan.cohort, [](const auto& c) { return c.client; }),
                       .lora_rank_C = column<std::int64_t>(plan.cohort, [](const auto& c) { return c.lora_rank; }),
                       .global = all_factors(layout, global, law.rank_max)});
    const auto chosen = chosen_CR.accessor<bool, 2>();
    for (std::size_t c = 0; c < plan.cohort.size(); ++c) {
        auto& slots = plan.cohort[c].own_slots;
        slots.clear();
        for (std::int64_t slot = 0; slot < law.rank_max; ++slot) {
            if (chosen[static_cast<std::int64_t>(c)][slot]) slots.push_back(slot);
        }
    }
}

std::vector<double> own_weights(plugin::Method& method, std::int64_t round, std::span<const ClientReport> reports) {
    std::vector<double> weights(reports.size());
    const auto clients = counted(reports);
    if (clients.empty()) return weights;
    const auto numbers = [&](auto number) { return column<double>(clients, number); };
    const auto integers = [&](auto number) { return column<std::int64_t>(clients, number); };
    const std::int64_t n_matrices = std::ssize(clients.front()->product_norms_squared);
    at::Tensor norms_CM = at::empty({std::ssize(clients), n_matrices}, at::kDouble);
    for (std::size_t c = 0; c < clients.size(); ++c) {
        std::ranges::copy(clients[c]->product_norms_squared,
                          norms_CM.mutable_data_ptr<double>() + static_cast<std::int64_t>(c) * n_matrices);
    }
    const at::Tensor weight_C = method.weight(
        {.round = round,
         .client_C = integers([](const auto* r) { return r->client; }),
         .n_samples_C = numbers([](const auto* r) { return r->n_samples; }),
         .n_tokens_C = integers([](const auto* r) { return r->n_tokens; }),
         .lora_rank_before_C = integers([](const auto* r) { return r->lora_rank_before; }),
         .lora_rank_after_C = integers([](const auto* r) { return r->lora_rank_after; }),
         .loss_first_C = numbers([](const auto* r) { return r->loss_first; }),
         .loss_last_C = numbers([](const auto* r) { return r->loss_last; }),
         .train_loss_C = numbers([](const auto* r) { return r->loss_sum / static_cast<double>(r->n_tokens); }),
         .product_norm_squared_CM = norms_CM});
    std::int64_t c = 0;
    for (std::size_t i = 0; i < reports.size(); ++i) {
        if (!reports[i].dropped) weights[i] = weight_C[c++].item<double>();
    }
    scale_into_range(weights);
    return weights;
}

MergeResult own_merge(plugin::Method& method, const GatheredMerge& input, std::int64_t round) {
    MergeResult result = keep_adapter(input);
    if (!result.changed) return result;
    const std::int64_t rank_max = input.init.rank_max;
    const auto clients = counted(input.reports);
    std::vector<double> weights;
    for (std::size_t i = 0; i < input.reports.size(); ++i) {
        if (!input.reports[i].dropped) weights.push_back(result.client_weight[i]);
    }
    const auto merged =
        method.merge({.round = round,
                      .seed = round_seed(input.init, round),
                      .client_C = column<std::int64_t>(clients, [](const auto* r) { return r->client; }),
                      .lora_rank_C = column<std::int64_t>(clients, [](const auto* r) { return r->lora_rank_after; }),
                      .n_samples_C = column<double>(clients, [](const auto* r) { return r->n_samples; }),
                      .scale_C = column<double>(clients, [&](const auto* r) { return scale_of(input, *r); }),
                      .weight_C = at::tensor(weights, at::kDouble),
                      .has_slot_CR = places(clients, rank_max),
                      .factors = padded_uploads(input),
                      .global = all_factors(input.layout, input.previous, rank_max)});
    const Factors sent = sent_factors(input.strategy, round);
    for (std::size_t m = 0; m < merged.size(); ++m) {
        if (sent.a) write_factor(input.init, merged[m].a, input.layout.offset_a(m, rank_max), result.global);
        if (sent.b) write_factor(input.init, merged[m].b.t(), input.layout.offset_b(m, rank_max), result.global);
    }
    result.slots = slot_statistics(input.layout, result.global, rank_max, input.reports);
    return result;
}

}  // namespace hetlora
