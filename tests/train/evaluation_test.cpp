// Evaluation: each window once, the same sums however windows are batched, and the loss of the plain reference.
#include "hetlora/train/evaluation.hpp"

#include <gtest/gtest.h>

#include "hetlora/model/reference.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::hashed_factors;
using testing_train::World;

constexpr double scale = 1.7;

std::vector<WindowRef> all_windows(const Corpus& corpus) {
    auto windows = corpus.evaluation_windows(Part::valid);
    for (std::int64_t client = 0; client < 5; ++client) {
        for (const auto& window : corpus.client_evaluation_windows(client, Part::valid)) windows.push_back(window);
    }
    return windows;
}

TEST(EvaluationBatches, cover_each_window_once_longest_first) {
    const testing_train::SmallCorpus data;
    const auto windows = all_windows(data.get());
    ASSERT_GT(windows.size(), 20U);
    for (const std::int64_t batch_rows : {1, 7, 30, 100, 100000}) {
        const auto batches = evaluation_batches(windows, batch_rows);
        std::vector<int> seen(windows.size());
        std::int32_t last = std::numeric_limits<std::int32_t>::max();
        for (const auto& batch : batches) {
            ASSERT_FALSE(batch.empty());
            std::int64_t rows = 0;
            for (const std::size_t index : batch) {
                ++seen.at(index);
                EXPECT_LE(windows[index].rows, last);
                last = windows[index].rows;
                rows += windows[index].rows;
            }
            EXPECT_TRUE(rows <= batch_rows || batch.size() == 1U) << rows << " rows in a batch of " << batch_rows;
        }
        EXPECT_TRUE(std::ranges::all_of(seen, [](int count) { return count == 1; }));
    }
    EXPECT_EQ(evaluation_batches(windows, 1).size(), windows.size());
    EXPECT_EQ(evaluation_batches(windows, 100000).size(), 1U);
    EXPECT_TRUE(evaluation_batches({}, 10).empty());
}

EvaluationSums evaluate_all(World& world, std::span<const WindowRef> windows, std::int64_t batch_rows,
                            AdapterGroup* adapter) {
    EvaluationSums sums;
    for (const auto& batch : evaluation_batches(windows, batch_rows)) {
        sums += evaluate_batch(world.engine, world.data.get(), windows, batch,
                               {.adapter = adapter, .scale = scale, .head = nullptr});
    }
    return sums;
}

/// The same sums window by window through reference_logits.
EvaluationSums by_reference(const World& world, std::span<const WindowRef> windows, const ReferenceAdapter* adapter) {
    EvaluationSums sums;
    for (const WindowRef& ref : windows) {
        const WindowTokens window = world.data.get().read(ref);
        const at::Tensor token_ST =
            at::tensor(std::vector<std::int64_t>(window.inputs.begin(), window.inputs.end()), at::kLong).unsqueeze(0);
        const at::Tensor logits = reference_logits(world.weights, token_ST, world.layout, adapter, scale).squeeze(0);
        const at::Tensor log_p = at::log_softmax(logits, 1);
        for (std::size_t i = 0; i < window.targets.size(); ++i) {
            if (window.targets[i] < 0) continue;
            const auto row = static_cast<std::int64_t>(i);
            sums.loss -= log_p[row][window.targets[i]].item<double>();
            sums.correct += log_p[row].argmax().item<std::int64_t>() == window.targets[i] ? 1 : 0;
            ++sums.tokens;
        }
    }
    return sums;
}

void expect_near(const EvaluationSums& a, const EvaluationSums& b) {
    EXPECT_NEAR(a.loss, b.loss, 1e-12 * b.loss);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.correct, b.correct);
}

TEST(Evaluation, equals_the_reference_at_every_batch_size) {
    World world(at::kDouble);
    const auto windows = all_windows(world.data.get());
    constexpr std::int64_t lora_rank = 5;
    const auto factors = hashed_factors(world.layout, 1, lora_rank);
    AdapterGroup group(world.layout, 1, lora_width(lora_rank), false, world.weights.options());
    group.set(0, factors, lora_rank);
    ReferenceAdapter adapter;
    for (std::size_t m = 0; m < world.layout.matrices.size(); ++m) {
        const auto part = [&](std::int64_t offset, std::int64_t width) {
            at::Tensor values = at::empty({lora_rank, width}, at::kDouble);
            std::copy_n(factors.begin() + offset, lora_rank * width, values.data_ptr<double>());
            return values;
        };
        adapter.a_WD.push_back(part(world.layout.offset_a(m, lora_rank), world.layout.matrices[m].d_in));
        adapter.bt_WO.push_back(part(world.layout.offset_b(m, lora_rank), world.layout.matrices[m].d_out));
    }
    const EvaluationSums adapted = by_reference(world, windows, &adapter);
    const EvaluationSums base = by_reference(world, windows, nullptr);
    EXPECT_GT(std::abs(adapted.loss - base.loss), 1e-3 * base.loss);
    for (const std::int64_t batch_rows : {1, 25, 60, 100000}) {
        expect_near(evaluate_all(world, windows, batch_rows, &group), adapted);
        expect_near(evaluate_all(world, windows, batch_rows, nullptr), base);
    }
}

TEST(Evaluation, counts_every_loss_token_of_the_windows) {
    World world(at::kFloat, {"q_proj"});
    const auto windows = all_windows(world.data.get());
    std::int64_t n_loss = 0;
    for (const auto& window : windows) n_loss += window.n_loss;
    const EvaluationSums sums = evaluate_all(world, windows, 50, nullptr);
    EXPECT_EQ(sums.tokens, n_loss);
    EXPECT_LE(sums.correct, sums.tokens);
    EXPECT_GE(sums.correct, 0);
}

TEST(Evaluation, of_nothing_is_not_a_number) {
    const EvaluationSums none;
    EXPECT_TRUE(std::isnan(none.mean_loss()));
    EXPECT_TRUE(std::isnan(none.accuracy()));
    EvaluationSums sums{.loss = 6.0, .tokens = 4, .correct = 1};
    sums += {.loss = 2.0, .tokens = 4, .correct = 3};
    EXPECT_DOUBLE_EQ(sums.mean_loss(), 1.0);
    EXPECT_DOUBLE_EQ(sums.accuracy(), 0.5);
}

}  // namespace
}  // namespace hetlora
