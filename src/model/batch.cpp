#include "hetlora/model/batch.hpp"

#include <algorithm>
#include <cstring>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// The values on the device; pinned memory lets the copy to a GPU go on beside the host's work.
template <typename T>
at::Tensor to_tensor(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
    at::Tensor tensor =
        at::empty({std::ssize(values)}, at::TensorOptions().dtype(dtype).pinned_memory(device.is_cuda()));
    std::memcpy(tensor.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
    return tensor.to(device, /*non_blocking=*/true);
}

/// The class of a sequence, or -1 where it has none (a window of a text whose class stands in another one).
std::int32_t class_of(const BatchClient& client, const BatchSequence& sequence) {
    const std::int64_t labels = client.head->shape().labels;
    std::int32_t label = -1;
    for (const std::int32_t target : sequence.targets) {
        if (target < 0) continue;
        if (label >= 0) throw bug_error("a sequence to classify has two targets, {} and {}", label, target);
        if (target >= labels) {
            throw input_error("class {} of a sequence is outside the head's {} labels: prepare the data again", target,
                              labels);
        }
        label = target;
    }
    return label;
}

}  // namespace

TokenBatch make_batch(const LlamaWeights& weights, std::span<const BatchClient> clients) {
    const ModelConfig& config = weights.config;
    const std::int64_t first_position = config.first_position();
    std::vector<std::int64_t> tokens;
    std::vector<std::int32_t> positions;
    std::vector<std::int64_t> loss_rows;
    std::vector<std::int64_t> targets;
    std::vector<double> scales;
    TokenBatch batch;
    for (const BatchClient& client : clients) {
        const std::int64_t first_row = std::ssize(tokens);
        const std::size_t first_loss = loss_rows.size();
        for (const BatchSequence& sequence : client.sequences) {
            if (std::ssize(sequence.inputs) > config.usable_positions()) {
                throw input_error("a sequence has {} tokens but the model has {} positions: lower data.sequence_length",
                                  sequence.inputs.size(), config.usable_positions());
            }
            batch.spans.push_back({.row0 = std::ssize(tokens), .length = std::ssize(sequence.inputs)});
            for (std::size_t i = 0; i < sequence.inputs.size(); ++i) {
                const std::int32_t token = sequence.inputs[i];
                const std::int32_t target = sequence.targets[i];
                if (token < 0 || token >= config.vocab_size ||
                    (client.head == nullptr && target >= config.vocab_size)) {
                    throw input_error(
                        "token {} is outside the model's vocabulary of {}: the data was prepared with another "
                        "tokenizer; prepare it again with the model's own",
                        token, config.vocab_size);
                }
                if (target >= 0 && client.head == nullptr) {
                    loss_rows.push_back(std::ssize(tokens));
                    targets.push_back(target);
                }
                tokens.push_back(token);
                positions.push_back(static_cast<std::int32_t>(first_position + static_cast<std::int64_t>(i)));
            }
            if (const std::int32_t label = client.head == nullptr ? -1 : class_of(client, sequence); label >= 0) {
                const AttentionSpan& span = batch.spans.back();
                loss_rows.push_back(config.family->encoder ? span.row0 : span.row0 + span.length - 1);
                targets.push_back(label);
            }
        }
        const double scale = 1.0 / static_cast<double>(std::max<std::size_t>(1, loss_rows.size() - first_loss));
        scales.resize(loss_rows.size(), scale);
        if (client.head != nullptr && loss_rows.size() > first_loss) {
            batch.class_heads.push_back({.group = client.head,
                                         .client = client.client_in_head,
                                         .row0 = static_cast<std::int64_t>(first_loss),
                                         .rows = static_cast<std::int64_t>(loss_rows.size() - first_loss)});
        }
        const std::int64_t rows = std::ssize(tokens) - first_row;
        if (client.group == nullptr || rows == 0) continue;
        if (!batch.runs.empty()) {
            RowRun& last = batch.runs.back();
            if (last.group == client.group && last.rows_per_client == rows && last.scale == client.scale &&
                last.first_client + last.clients == client.client_in_group &&
                last.row0 + last.clients * rows == first_row) {
                ++last.clients;
                last.dropout_seed.push_back(client.dropout_seed);
                continue;
            }
        }
        batch.runs.push_back({.group = client.group,
                              .first_client = client.client_in_group,
                              .clients = 1,
                              .row0 = first_row,
                              .rows_per_client = rows,
                              .scale = client.scale,
                              .dropout_seed = {client.dropout_seed}});
    }
    // Up to a whole block of rows, with a sequence that nobody learns from: see gemm_row_block.
    const std::int64_t filled = std::ssize(tokens);
    const std::int64_t spare = (gemm_row_block - filled % gemm_row_block) % gemm_row_block;
    if (spare > 0) batch.spans.push_back({.row0 = filled, .length = spare});
    for (std::int64_t i = 0; i < spare; ++i) {
        tokens.push_back(0);
        positions.push_back(static_cast<std::int32_t>(first_position + std::min(i, config.usable_positions() - 1)));
    }
    const at::TensorOptions options = weights.options();
    const at::Device device = options.device();
    batch.token_N = to_tensor(tokens, at::kLong, device);
    batch.position_N = to_tensor(positions, at::kInt, device);
    if (!device.is_cpu()) batch.place_N = aten::span_places(batch.spans, device);
    batch.loss_row_L = to_tensor(loss_rows, at::kLong, device);
    batch.target_L = to_tensor(targets, at::kLong, device);
    batch.row_scale_L = to_tensor(scales, at::kDouble, device).to(options);
    return batch;
}

}  // namespace hetlora
