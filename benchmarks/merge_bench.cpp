// merge_bench [--repeats N] [--threads N] [--dense-repeats N]
// Time of the server's merge at the shapes of SmolLM2-135M (q and v of 30 layers) and of one 4,096 x 4,096 matrix (the
// size of q_proj in a 7B model), for 10 and 100 clients with lora_ranks 2, 4, 8, 16, 32 in turn, beside the dense SVD
// of one such matrix in the same process. Prints a Markdown table of medians; sums over 64 large matrices are modelled
// as 64 times one. Random factors: the cost does not depend on the values. Not a test:
//     cmake --build build --target merge_bench && build/benchmarks/merge_bench
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/fed/aggregate.hpp"
#include "hetlora/fed/product_merge.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

constexpr std::int64_t levels[] = {2, 4, 8, 16, 32};
constexpr std::int64_t rank_max = 32;
constexpr int modelled_matrices = 64;

/// Clients with random factors; equal_rank > 0: all have it.
struct Cohort {
    AdapterLayout layout;
    std::vector<std::vector<double>> factors;
    std::vector<double> weights;
    std::vector<UploadedFactors> uploads;

    Cohort(AdapterLayout shapes, int n_clients, std::int64_t equal_rank) : layout(std::move(shapes)) {
        weights.assign(layout.matrices.size(), 1.0);
        for (int k = 0; k < n_clients; ++k) {
            const std::int64_t lora_rank = equal_rank > 0 ? equal_rank : levels[k % std::ssize(levels)];
            auto& values = factors.emplace_back(static_cast<std::size_t>(layout.parameters(lora_rank)));
            for (std::size_t i = 0; i < values.size(); ++i) {
                values[i] = uniform01(hash_seed(1, Purpose::test, k, i)) - 0.5;
            }
            uploads.push_back({.client = k, .factors = {}, .lora_rank = lora_rank, .scale = 2.0, .weights = weights});
        }
        for (std::size_t k = 0; k < uploads.size(); ++k) uploads[k].factors = factors[k];
    }
};

double median_seconds(int repeats, const std::function<void()>& work) {
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        work();
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::ranges::sort(seconds);
    const std::size_t half = seconds.size() / 2;
    return seconds.size() % 2 == 1 ? seconds[half] : 0.5 * (seconds[half - 1] + seconds[half]);
}

void print_row(const std::string& shapes, int n_clients, const std::string& what, double seconds, bool one_matrix) {
    const std::string modelled =
        one_matrix ? fmt::format("{:.1f} (modelled)", modelled_matrices * seconds) : std::string("-");
    fmt::print("| {} | {} | {} | {:.4f} | {} |\n", shapes, n_clients > 0 ? std::to_string(n_clients) : "-", what,
               seconds, modelled);
    std::fflush(stdout);
}

void bench_merges(const std::string& name, const AdapterLayout& layout, int n_clients, int repeats) {
    const bool one_matrix = layout.matrices.size() == 1;
    const Cohort cohort(layout, n_clients, 0);
    const auto report = [&](const std::string& what, const std::function<void()>& work) {
        print_row(name, n_clients, what, median_seconds(repeats, work), one_matrix);
    };
    report("sum of factors (zero-pad, exact sum)", [&] {
        UploadAccumulator sum(layout, {.rank_max = rank_max});
        for (const auto& upload : cohort.uploads) {
            sum.add({.client = upload.client,
                     .factors = upload.factors,
                     .lora_rank = upload.lora_rank,
                     .received_lora_rank = upload.lora_rank,
                     .weights = upload.weights});
        }
    });
    const auto product = [&](const std::string& what, SlotWeighting weighting, FactorSplit split) {
        report(what, [&, weighting, split] {
            const auto weights = slot_weights(layout, cohort.uploads, weighting, levels);
            (void)merge_by_product({.layout = layout, .uploads = cohort.uploads, .weights = weights},
                                   {.rank_max = rank_max, .scale = 2.0, .split = split});
        });
    };
    product("product, B = U S (flexlora)", SlotWeighting::all, FactorSplit::left);
    product("product, A = S V^T (hlora)", SlotWeighting::all, FactorSplit::right);
    product("product, slot weights (rb-lora)", SlotWeighting::contributors, FactorSplit::left);
    product("product, rank levels, sqrt (raflora)", SlotWeighting::levels, FactorSplit::sqrt);
    report("stack (flora)", [&] {
        const auto weights = slot_weights(layout, cohort.uploads, SlotWeighting::all);
        (void)stack_updates({.layout = layout, .uploads = cohort.uploads, .weights = weights});
    });
    report("stack cut to 90 % of the energy (florist)", [&] {
        const auto weights = slot_weights(layout, cohort.uploads, SlotWeighting::all);
        (void)truncate_by_energy(stack_updates({.layout = layout, .uploads = cohort.uploads, .weights = weights}), 0.9);
    });
    const Cohort equal(layout, n_clients, 16);
    std::vector<double> mean(equal.factors[0].size());
    for (const auto& factors : equal.factors) {
        for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += factors[i] / static_cast<double>(n_clients);
    }
    report("residual, lora_rank 16 (fedex)", [&] {
        const auto weights = slot_weights(layout, equal.uploads, SlotWeighting::all);
        (void)residual_delta({.layout = layout, .uploads = equal.uploads, .weights = weights}, mean, 16, 2.0);
    });
}

void bench_dense(const std::string& name, std::int64_t d_out, std::int64_t d_in, int repeats, bool modelled) {
    const at::Tensor matrix = at::rand({d_out, d_in}, at::kDouble);
    const double seconds = median_seconds(repeats, [&] { (void)at::linalg_svd(matrix, false); });
    print_row(name, 0, fmt::format("dense SVD of one {} x {} matrix", d_out, d_in), seconds, modelled);
}

int option(int argc, char** argv, const char* name, int fallback) {
    for (int i = 1; i + 1 < argc; i += 2) {
        if (std::strcmp(argv[i], name) == 0) return std::max(1, std::atoi(argv[i + 1]));
    }
    return fallback;
}

void run(int argc, char** argv) {
    const int repeats = option(argc, argv, "--repeats", 3);
    at::set_num_threads(option(argc, argv, "--threads", at::get_num_threads()));
    AdapterLayout smollm2;
    for (int layer = 0; layer < 30; ++layer) {
        smollm2.matrices.push_back({.name = "q", .layer = layer, .target = "q_proj", .d_out = 576, .d_in = 576});
        smollm2.matrices.push_back({.name = "v", .layer = layer, .target = "v_proj", .d_out = 192, .d_in = 576});
    }
    const AdapterLayout large{{{.name = "q", .layer = 0, .target = "q_proj", .d_out = 4096, .d_in = 4096}}};
    fmt::print("fp64, {} threads, rank_max {}, medians of {}\n\n", at::get_num_threads(), rank_max, repeats);
    fmt::print("| shapes | clients | merge | s | {} such matrices, s |\n|---|---|---|---|---|\n", modelled_matrices);
    for (const int n_clients : {10, 100}) bench_merges("SmolLM2-135M, 60 matrices", smollm2, n_clients, repeats);
    bench_dense("SmolLM2-135M, q_proj", 576, 576, repeats, false);
    for (const int n_clients : {10, 100}) bench_merges("7B, one matrix", large, n_clients, repeats);
    bench_dense("7B, one matrix", 4096, 4096, option(argc, argv, "--dense-repeats", 1), true);
}

}  // namespace
}  // namespace hetlora

int main(int argc, char** argv) {
    try {
        hetlora::run(argc, argv);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
