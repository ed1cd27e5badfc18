// Small adapters with random content, a whole round of uploads, and an independent dense reference of the merge.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "hetlora/base/adapter_layout.hpp"
#include "hetlora/comm/transport.hpp"
#include "hetlora/fed/exchange.hpp"
#include "hetlora/fed/merge.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora::testing_fed {

/// Three matrices of different, odd shapes.
inline AdapterLayout small_layout() {
    return {{{"model.layers.0.self_attn.q_proj", 0, "q_proj", 5, 7},
             {"model.layers.0.self_attn.v_proj", 0, "v_proj", 3, 7},
             {"model.layers.1.self_attn.q_proj", 1, "q_proj", 13, 11}}};
}

/// Values that are exact in fp32, as adapters of an fp32 run are.
inline std::vector<double> random_values(std::int64_t n, std::uint64_t seed, double size = 1.0) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal(0.0, size);
    std::vector<double> values(static_cast<std::size_t>(n));
    for (auto& value : values) value = static_cast<double>(static_cast<float>(normal(generator)));
    return values;
}

inline double element(const AdapterLayout& layout, const std::vector<double>& factors, std::int64_t lora_rank,
                      std::size_t m, char which, std::int64_t slot, std::int64_t column) {
    if (slot >= lora_rank) return 0.0;
    const auto width = which == 'A' ? layout.matrices[m].d_in : layout.matrices[m].d_out;
    const auto first = which == 'A' ? layout.offset_a(m, lora_rank) : layout.offset_b(m, lora_rank);
    return factors[static_cast<std::size_t>(first + slot * width + column)];
}

/// ||B A||_F^2 of one matrix by forming B A.
inline double dense_norm_squared(const AdapterLayout& layout, const std::vector<double>& factors,
                                 std::int64_t lora_rank, std::size_t m) {
    double total = 0.0;
    for (std::int64_t row = 0; row < layout.matrices[m].d_out; ++row) {
        for (std::int64_t column = 0; column < layout.matrices[m].d_in; ++column) {
            double value = 0.0;
            for (std::int64_t slot = 0; slot < lora_rank; ++slot) {
                value += element(layout, factors, lora_rank, m, 'B', slot, row) *
                         element(layout, factors, lora_rank, m, 'A', slot, column);
            }
            total += value * value;
        }
    }
    return total;
}

/// One client of a test round.
struct TestClient {
    std::int64_t lora_rank_before = 0;
    std::int64_t lora_rank_after = 0;
    std::vector<double> factors;  ///< at lora_rank_after
    double n_samples = 1.0;
    bool dropped = false;
};

/// A whole round: what was sent out and what the clients made of it.
struct TestRound {
    AdapterLayout layout = small_layout();
    std::int64_t rank_max = 8;
    Strategy strategy = resolve_strategy(Settings{});  // hetlora
    bool fp32 = false;
    ReductionKind reduction = ReductionKind::exact;
    std::vector<double> previous;
    std::vector<TestClient> clients;

    [[nodiscard]] std::vector<double> received(std::int64_t lora_rank) const {
        std::vector<double> slice(static_cast<std::size_t>(layout.parameters(lora_rank)));
        resize_adapter<double>(layout, previous, rank_max, slice, lora_rank);
        return slice;
    }
    [[nodiscard]] std::vector<double> weights(std::size_t k) const {
        const auto& client = clients[k];
        return client_weights(strategy, layout,
                              {.factors = client.factors,
                               .lora_rank = client.lora_rank_after,
                               .n_samples = client.n_samples,
                               .lora_scale = 2.0});
    }
    [[nodiscard]] RoundPlan plan() const {
        RoundPlan plan;
        plan.round = 4;
        for (std::size_t k = 0; k < clients.size(); ++k) {
            plan.cohort.push_back(
                {.client = static_cast<std::int64_t>(10 * k), .lora_rank = clients[k].lora_rank_before});
        }
        return plan;
    }
    [[nodiscard]] ClientReport report(std::size_t k) const {
        ClientReport report;
        report.cohort_index = static_cast<std::int64_t>(k);
        report.client = static_cast<std::int64_t>(10 * k);
        report.lora_rank_before = clients[k].lora_rank_before;
        report.lora_rank_after = clients[k].lora_rank_after;
        report.n_samples = clients[k].n_samples;
        report.dropped = clients[k].dropped;
        if (!report.dropped) report.weights = weights(k);
        return report;
    }
    [[nodiscard]] AdapterInitLaw init() const { return {AdapterInit::kaiming_uniform, 9, rank_max, fp32}; }
};

/// A random round. Uploads are not close to what was received, so that a mistake shows.
inline TestRound random_round(std::uint64_t seed, std::size_t n_clients, std::int64_t rank_max = 8) {
    std::mt19937_64 generator(seed);
    TestRound round;
    round.rank_max = rank_max;
    round.previous = random_values(round.layout.parameters(rank_max), seed + 1);
    for (std::size_t k = 0; k < n_clients; ++k) {
        TestClient client;
        client.lora_rank_before = 1 + static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(rank_max));
        client.lora_rank_after =
            std::max<std::int64_t>(1, client.lora_rank_before - static_cast<std::int64_t>(generator() % 2));
        client.factors = random_values(round.layout.parameters(client.lora_rank_after), generator(),
                                       0.1 * (1.0 + static_cast<double>(k)));
        client.n_samples = 1.0 + static_cast<double>(generator() % 50);
        round.clients.push_back(std::move(client));
    }
    return round;
}

/// Runs accumulate, gather, reduce and merge over a transport; client k is on mpi_rank owner[k], added in `order`.
/// @return the result on root
inline MergeResult run_round(Transport& transport, const TestRound& round, const std::vector<int>& owner,
                             const std::vector<std::size_t>& order) {
    UploadAccumulator accumulator(round.layout, {.rank_max = round.rank_max,
                                                 .slot_norm = round.strategy.slot_norm,
                                                 .aggregate = round.strategy.aggregate,
                                                 .reduction = round.reduction});
    std::vector<ClientReport> mine;
    for (const auto k : order) {
        if (owner[k] != transport.mpi_rank()) continue;
        mine.push_back(round.report(k));
        const auto& client = round.clients[k];
        if (client.dropped) continue;
        const auto weights = round.weights(k);
        const auto received = round.received(client.lora_rank_before);
        accumulator.add({.client = static_cast<std::int64_t>(k),
                         .factors = client.factors,
                         .lora_rank = client.lora_rank_after,
                         .received = received,
                         .received_lora_rank = client.lora_rank_before,
                         .weights = weights});
    }
    const auto reports = gather_reports(transport, round.plan(), mine);
    const auto sums = reduce_uploads(transport, accumulator);
    if (!transport.is_root()) return {};
    return merge_uploads({.layout = round.layout,
                          .strategy = round.strategy,
                          .round = 4,
                          .reports = reports,
                          .sums = sums,
                          .previous = round.previous,
                          .init = round.init()});
}

/// run_round in this process, clients in cohort order.
inline MergeResult run_local(const TestRound& round) {
    LocalTransport transport;
    std::vector<std::size_t> order(round.clients.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    return run_round(transport, round, std::vector<int>(round.clients.size(), 0), order);
}

/// The merge written down plainly, element by element, with weights from dense products.
inline std::vector<double> reference_merge(const TestRound& round) {
    const auto& layout = round.layout;
    const auto& s = round.strategy;
    const std::size_t n = layout.matrices.size();
    std::vector<std::vector<double>> weight(round.clients.size(), std::vector<double>(n, 1.0));
    for (std::size_t k = 0; k < round.clients.size(); ++k) {
        const auto& client = round.clients[k];
        double squares = 0.0;
        double norms = 0.0;
        for (std::size_t m = 0; m < n; ++m) {
            const double square = dense_norm_squared(layout, client.factors, client.lora_rank_after, m);
            squares += square;
            norms += std::sqrt(square);
            if (s.weight_scope == WeightScope::matrix) weight[k][m] = std::sqrt(square);
        }
        for (std::size_t m = 0; m < n; ++m) {
            if (s.client_weight == ClientWeight::uniform) weight[k][m] = 1.0;
            if (s.client_weight == ClientWeight::samples) weight[k][m] = client.n_samples;
            if (s.client_weight == ClientWeight::sparsity && s.weight_scope == WeightScope::client) {
                weight[k][m] = s.weight_norm == WeightNorm::sum ? norms : std::sqrt(squares);
            }
        }
    }
    std::vector<double> global = round.previous;
    std::size_t at = 0;
    for (std::size_t m = 0; m < n; ++m) {
        for (const char which : {'A', 'B'}) {
            const auto width = which == 'A' ? layout.matrices[m].d_in : layout.matrices[m].d_out;
            for (std::int64_t slot = 0; slot < round.rank_max; ++slot) {
                for (std::int64_t column = 0; column < width; ++column, ++at) {
                    double z = 0.0, sum = 0.0, plain = 0.0;
                    int counted = 0, covering = 0;
                    for (std::size_t k = 0; k < round.clients.size(); ++k) {
                        const auto& client = round.clients[k];
                        if (client.dropped) continue;
                        const bool has = client.lora_rank_after > slot;
                        covering += has;
                        if (s.slot_norm == SlotNorm::contributors && !has) continue;
                        ++counted;
                        z += weight[k][m];
                        double value = element(layout, client.factors, client.lora_rank_after, m, which, slot, column);
                        if (has && s.aggregate == Aggregate::deltas) value -= round.previous[at];
                        sum += weight[k][m] * value;
                        plain += value;
                    }
                    if (counted == 0 && std::ranges::all_of(round.clients, &TestClient::dropped)) continue;
                    double result = 0.0;
                    if (covering > 0) result = z > 0.0 ? sum / z : plain / counted;
                    if (s.aggregate == Aggregate::deltas) {
                        result += round.previous[at];
                    } else if (covering == 0 && s.keep_uncovered == KeepUncovered::last) {
                        result = round.previous[at];
                    }
                    global[at] = result;
                }
            }
        }
    }
    return global;
}

}  // namespace hetlora::testing_fed
