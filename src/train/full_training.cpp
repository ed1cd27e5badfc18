// See hetlora/train/full_training.hpp.
#include "hetlora/train/full_training.hpp"

#include <algorithm>
#include <cmath>

#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/model/reference.hpp"
#include "step_data.hpp"

namespace hetlora {
namespace {

at::Tensor index_tensor(const std::vector<std::int64_t>& values) {
    at::Tensor tensor = at::empty({std::ssize(values)}, at::kLong);
    std::ranges::copy(values, tensor.mutable_data_ptr<std::int64_t>());
    return tensor;
}

/// Negative log-likelihood of every loss row of some windows, [L]. Shorter windows are filled up behind their end with
/// their own last token, which no row before it sees.
at::Tensor row_losses(const LlamaWeights& weights, std::span<const WindowTokens> windows) {
    BatchClient client;
    std::int64_t longest = 0;
    for (const WindowTokens& window : windows) {
        client.sequences.push_back({.inputs = window.inputs, .targets = window.targets});
        longest = std::max(longest, std::ssize(window.inputs));
    }
    const TokenBatch batch = make_batch(weights, std::span(&client, 1));  // checks tokens and lengths
    const std::int64_t* loss_row = batch.loss_row_L.const_data_ptr<std::int64_t>();
    std::vector<std::int64_t> source;  // row of the batch of every place [s, t]
    std::vector<std::int64_t> places;  // s * longest + t of every loss row
    std::int64_t l = 0;
    for (std::int64_t s = 0; s < std::ssize(windows); ++s) {
        const AttentionSpan& span = batch.spans[static_cast<std::size_t>(s)];
        for (std::int64_t t = 0; t < longest; ++t) source.push_back(span.row0 + std::min(t, span.length - 1));
        for (; l < batch.loss_row_L.size(0) && loss_row[l] < span.row0 + span.length; ++l)
            places.push_back(s * longest + loss_row[l] - span.row0);
    }
    const at::Tensor token_ST =
        batch.token_N.index_select(0, index_tensor(source)).view({std::ssize(windows), longest});
    const at::Tensor hidden_LD =
        reference_hidden(weights, token_ST).flatten(0, 1).index_select(0, index_tensor(places));
    const at::Tensor logits_LV = at::matmul(hidden_LD, weights.head_VD.t());
    return at::log_softmax(logits_LV, 1).gather(1, batch.target_L.unsqueeze(1)).neg().squeeze(1);
}

}  // namespace

FullTraining::FullTraining(const LlamaWeights& received, OptimizerKind optimizer, std::int64_t pass_rows)
    : received_(received),
      copy_(copy_of_weights(received)),
      flat_received_(received),
      flat_copy_(copy_),
      pass_rows_(pass_rows) {
    for (const auto& [name, weight] : stored_weights(copy_)) {
        DenseTensor& tensor = tensors_.emplace_back(DenseTensor{.theta = weight, .gradient = at::zeros_like(weight)});
        if (optimizer == OptimizerKind::adamw) {
            tensor.moment1 = at::zeros_like(weight);
            tensor.moment2 = at::zeros_like(weight);
        }
        tensor.theta.requires_grad_(true).mutable_grad() = tensor.gradient;
    }
}

double FullTraining::accumulate(const std::vector<WindowTokens>& windows, std::int64_t n_loss_tokens) {
    double sum = 0.0;
    for (std::size_t begin = 0; begin < windows.size();) {
        std::size_t end = begin;
        std::int64_t longest = 0;
        std::int64_t rows = 0;
        do {
            longest = std::max(longest, std::ssize(windows[end].inputs));
            ++end;
            if (end == windows.size()) break;
            rows = std::max(longest, std::ssize(windows[end].inputs)) * static_cast<std::int64_t>(end - begin + 1);
        } while (rows <= pass_rows_);
        const at::Tensor loss_L = row_losses(copy_, std::span(windows).subspan(begin, end - begin));
        (loss_L.sum() / static_cast<double>(n_loss_tokens)).backward();
        sum += loss_L.detach().sum(at::kDouble).item<double>();
        begin = end;
    }
    return sum / static_cast<double>(n_loss_tokens);
}

ClientOutcome FullTraining::train(const Corpus& corpus, std::int64_t client, std::int64_t n_steps,
                                  const LocalOptions& options) {
    const Stopwatch watch;
    copy_weights(received_, copy_);
    {
        const at::NoGradGuard no_grad;
        for (DenseTensor& tensor : tensors_) {
            if (tensor.moment1.defined()) tensor.moment1.zero_(), tensor.moment2.zero_();
        }
    }
    ClientOutcome outcome;
    outcome.client = client;
    StepData data(corpus, client, options);
    for (std::int64_t step = 0; step < n_steps; ++step) {
        throw_if_stop_requested();
        StepRecord record{.loss = 0.0, .n_loss_tokens = 0, .windows = data.windows_of(step)};
        std::vector<WindowTokens> windows;
        for (const WindowRef& window : record.windows) {
            windows.push_back(corpus.read(window));
            record.n_loss_tokens += windows.back().n_loss;
            outcome.n_tokens += std::ssize(windows.back().inputs);
        }
        for (DenseTensor& tensor : tensors_) tensor.gradient.zero_();
        record.loss = accumulate(windows, record.n_loss_tokens);
        outcome.finite = outcome.finite && std::isfinite(record.loss);
        outcome.steps.push_back(std::move(record));
        const at::NoGradGuard no_grad;
        update_dense(tensors_, options, options.learning_rate, step + 1);
    }
    outcome.time_s = watch.seconds();
    return outcome;
}

void FullTraining::read_changes(std::size_t first, std::span<double> changes) const {
    std::vector<double> before(changes.size());
    flat_received_.read(first, before);
    flat_copy_.read(first, changes);
    for (std::size_t i = 0; i < changes.size(); ++i) {
        const bool same = changes[i] == before[i] || (std::isnan(changes[i]) && std::isnan(before[i]));
        changes[i] = same ? 0.0 : changes[i] - before[i];
    }
}

}  // namespace hetlora
