#include "hetlora/train/evaluation.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "hetlora/base/stop_request.hpp"
#include "hetlora/model/batch.hpp"

namespace hetlora {

EvaluationSums& EvaluationSums::operator+=(const EvaluationSums& other) {
    loss += other.loss;
    tokens += other.tokens;
    correct += other.correct;
    return *this;
}

double EvaluationSums::mean_loss() const {
    return tokens == 0 ? std::numeric_limits<double>::quiet_NaN() : loss / static_cast<double>(tokens);
}

double EvaluationSums::accuracy() const {
    return tokens == 0 ? std::numeric_limits<double>::quiet_NaN()
                       : static_cast<double>(correct) / static_cast<double>(tokens);
}

std::vector<std::vector<std::size_t>> evaluation_batches(std::span<const WindowRef> windows, std::int64_t batch_rows) {
    std::vector<std::size_t> order(windows.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return windows[a].rows > windows[b].rows; });
    std::vector<std::vector<std::size_t>> batches;
    std::int64_t rows = 0;
    for (const std::size_t index : order) {
        if (batches.empty() || rows + windows[index].rows > batch_rows) {
            batches.emplace_back();
            rows = 0;
        }
        batches.back().push_back(index);
        rows += windows[index].rows;
    }
    return batches;
}

namespace {

/// One batch of windows as one client's, kept alive together.
struct WindowBatch {
    std::vector<WindowTokens> tokens;
    TokenBatch batch;
};

WindowBatch window_batch(const Engine& engine, const Corpus& corpus, std::span<const WindowRef> windows,
                         std::span<const std::size_t> batch, const EvaluatedModel& model) {
    throw_if_stop_requested();
    WindowBatch made;
    made.tokens.reserve(batch.size());
    BatchClient client{.group = model.adapter,
                       .client_in_group = 0,
                       .scale = model.scale,
                       .dropout_seed = 0,
                       .head = model.head,
                       .sequences = {}};
    for (const std::size_t index : batch) made.tokens.push_back(corpus.read(windows[index]));
    for (const WindowTokens& window : made.tokens)
        client.sequences.push_back({.inputs = window.inputs, .targets = window.targets});
    made.batch = make_batch(engine.weights(), std::span(&client, 1));
    return made;
}

}  // namespace

EvaluationSums evaluate_batch(Engine& engine, const Corpus& corpus, std::span<const WindowRef> windows,
                              std::span<const std::size_t> batch, const EvaluatedModel& model) {
    const RowLosses losses = engine.evaluate(window_batch(engine, corpus, windows, batch, model).batch);
    EvaluationSums sums{.loss = 0.0, .tokens = std::ssize(losses.loss_L), .correct = 0};
    for (const double loss : losses.loss_L) sums.loss += loss;
    for (const std::uint8_t correct : losses.correct_L) sums.correct += correct;
    return sums;
}

std::vector<std::int64_t> predicted_labels(Engine& engine, const Corpus& corpus, std::span<const WindowRef> windows,
                                           std::span<const std::size_t> batch, const EvaluatedModel& model) {
    const at::Tensor best_L =
        engine.class_logits(window_batch(engine, corpus, windows, batch, model).batch).argmax(1).to(at::kCPU);
    return {best_L.const_data_ptr<std::int64_t>(), best_L.const_data_ptr<std::int64_t>() + best_L.numel()};
}

}  // namespace hetlora
