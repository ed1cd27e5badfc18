#include "hetlora/model/generate.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

/// Index of the largest logit (the first of equals), or a draw from softmax(logits / temperature).
std::int32_t choose(const at::Tensor& logits_V, const GenerationOptions& options, std::size_t prompt,
                    std::int64_t step) {
    if (options.temperature <= 0.0) return static_cast<std::int32_t>(logits_V.argmax().item<std::int64_t>());
    const at::Tensor p = at::softmax(logits_V.to(at::kCPU, at::kDouble) / options.temperature, 0).contiguous();
    double left = uniform01(hash_seed(options.seed, Purpose::generation, prompt, step));
    for (std::int64_t i = 0; i < p.numel(); ++i) {
        left -= p.const_data_ptr<double>()[i];
        if (left < 0) return static_cast<std::int32_t>(i);
    }
    return static_cast<std::int32_t>(p.numel() - 1);
}

/// Rows for one step: the given tokens of each sequence, each sequence's last row asks for logits.
TokenBatch step_batch(const LlamaWeights& weights, const std::vector<std::vector<std::int32_t>>& tokens,
                      const std::vector<std::int64_t>& first_position, AdapterGroup* adapter, double scale,
                      KeyValueCache& cache) {
    TokenBatch batch;
    std::vector<std::int64_t> flat;
    std::vector<std::int32_t> positions;
    std::vector<std::int64_t> last_rows;
    for (std::size_t s = 0; s < tokens.size(); ++s) {
        batch.spans.push_back({.row0 = std::ssize(flat), .length = std::ssize(tokens[s])});
        for (std::size_t i = 0; i < tokens[s].size(); ++i) {
            flat.push_back(tokens[s][i]);
            positions.push_back(static_cast<std::int32_t>(first_position[s]) + static_cast<std::int32_t>(i));
        }
        last_rows.push_back(std::ssize(flat) - 1);
    }
    const at::Device device = weights.options().device();
    batch.token_N = at::tensor(flat, at::kLong).to(device);
    batch.position_N = at::tensor(positions, at::kInt).to(device);
    batch.loss_row_L = at::tensor(last_rows, at::kLong).to(device);
    if (adapter != nullptr) {
        batch.runs.push_back({.group = adapter,
                              .first_client = 0,
                              .clients = 1,
                              .row0 = 0,
                              .rows_per_client = std::ssize(flat),
                              .scale = scale,
                              .dropout_seed = {}});
    }
    batch.cache = &cache;
    return batch;
}

}  // namespace

std::vector<std::vector<std::int32_t>> generate(Engine& engine, AdapterGroup* adapter, double scale,
                                                const std::vector<std::vector<std::int32_t>>& prompts,
                                                const GenerationOptions& options) {
    const at::NoGradGuard no_grad;
    std::vector<std::vector<std::int32_t>> replies(prompts.size());
    const std::int64_t positions = engine.weights().config.usable_positions();
    std::int64_t longest = 0;
    for (std::size_t s = 0; s < prompts.size(); ++s) {
        if (prompts[s].empty() || std::ssize(prompts[s]) >= positions) {
            throw input_error(
                "generation: prompt {} has {} tokens; it needs at least 1 and fewer than the model's {} positions", s,
                prompts[s].size(), positions);
        }
        longest = std::max(longest, std::ssize(prompts[s]));
    }
    if (prompts.empty() || options.max_new_tokens <= 0) return replies;
    KeyValueCache cache(engine.weights(), std::ssize(prompts), std::min(positions, longest + options.max_new_tokens));
    std::vector<std::vector<std::int32_t>> next = prompts;
    std::vector<bool> done(prompts.size(), false);
    for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
        const at::Tensor logits =
            engine.logits(step_batch(engine.weights(), next, cache.length, adapter, scale, cache));
        for (std::size_t s = 0; s < prompts.size(); ++s) {
            const std::int32_t token = choose(logits.select(0, static_cast<std::int64_t>(s)), options, s, step);
            next[s] = {token};  // a finished sequence goes on idly: its rows cost little and change nobody else's
            if (done[s]) continue;
            if (std::ranges::find(options.stop_ids, token) != options.stop_ids.end()) {
                done[s] = true;
            } else {
                replies[s].push_back(token);
                done[s] = std::ssize(prompts[s]) + std::ssize(replies[s]) >= positions;
            }
        }
        const bool full = std::ranges::any_of(cache.length, [&](std::int64_t length) { return length >= positions; });
        if (full || std::ranges::all_of(done, [](bool d) { return d; })) break;
    }
    return replies;
}

}  // namespace hetlora
