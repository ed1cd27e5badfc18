// Clients with hashed adapters and sequences, models with random weights, and autograd's answer for them: what the
// engine's tests share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hetlora/base/random.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/model/reference.hpp"

namespace hetlora::testing_engine {

inline constexpr double scale = 1.7;

inline ModelConfig small_config() {
    ModelConfig config;
    config.vocab_size = 53;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.layers = 3;
    config.heads = 4;
    config.kv_heads = 2;
    config.head_size = 6;
    config.max_positions = 64;
    config.tied_head = true;
    return config;
}

inline LlamaWeights random_weights(at::ScalarType dtype, ModelConfig config = small_config()) {
    LlamaWeights weights = allocate_weights(config, at::TensorOptions().dtype(dtype));
    at::manual_seed(3);
    for (const auto& [name, tensor] : named_weights(weights)) {
        at::Tensor target = tensor;
        target.copy_(at::randn(tensor.sizes(), at::kDouble) * (tensor.dim() == 1 ? 0.3 : 0.2) +
                     (tensor.dim() == 1 ? 1.0 : 0.0));
    }
    return weights;
}

/// A client's adapter and sequences, all hashed from its number.
struct TestClient {
    std::int64_t lora_rank = 4;
    std::vector<double> factors;
    std::vector<std::vector<std::int32_t>> inputs;
    std::vector<std::vector<std::int32_t>> targets;
};

inline TestClient make_client(const AdapterLayout& layout, int number, std::int64_t lora_rank,
                              const std::vector<std::int64_t>& lengths, std::uint64_t vocabulary = 53) {
    TestClient client{.lora_rank = lora_rank, .factors = {}, .inputs = {}, .targets = {}};
    for (std::int64_t i = 0; i < layout.parameters(lora_rank); ++i) {
        client.factors.push_back(0.1 * standard_normal(hash_seed(1, Purpose::test, number, i)));
    }
    for (std::size_t s = 0; s < lengths.size(); ++s) {
        auto& inputs = client.inputs.emplace_back();
        auto& targets = client.targets.emplace_back();
        for (std::int64_t i = 0; i < lengths[s]; ++i) {
            inputs.push_back(static_cast<std::int32_t>(hash_seed(2, Purpose::test, number, s, i) % vocabulary));
            const bool counts = hash_seed(3, Purpose::test, number, s, i) % 3 != 0 || i == lengths[s] - 1;
            targets.push_back(counts ? static_cast<std::int32_t>(hash_seed(4, Purpose::test, number, s, i) % vocabulary)
                                     : -1);
        }
    }
    return client;
}

/// Adapters of clients of one width, loaded.
inline std::unique_ptr<AdapterGroup> make_group(const AdapterLayout& layout,
                                                const std::vector<const TestClient*>& clients,
                                                const LlamaWeights& weights) {
    auto group = std::make_unique<AdapterGroup>(layout, std::ssize(clients), lora_width(clients.front()->lora_rank),
                                                true, weights.options());
    for (std::size_t c = 0; c < clients.size(); ++c) {
        group->set(static_cast<std::int64_t>(c), clients[c]->factors, clients[c]->lora_rank);
    }
    return group;
}

inline BatchClient batch_client(const TestClient& client, AdapterGroup* group, std::int64_t index) {
    BatchClient entry{.group = group, .client_in_group = index, .scale = scale, .dropout_seed = 0, .sequences = {}};
    for (std::size_t s = 0; s < client.inputs.size(); ++s)
        entry.sequences.push_back({client.inputs[s], client.targets[s]});
    return entry;
}

/// Mean loss of a client by the reference; gradients by autograd in canonical form where asked for.
inline double reference_loss(const LlamaWeights& weights, const AdapterLayout& layout, const TestClient& client,
                             std::vector<double>* gradient) {
    ReferenceAdapter adapter;
    const double* values = client.factors.data();
    for (const auto& matrix : layout.matrices) {
        const auto take = [&](std::int64_t columns) {
            at::Tensor t = at::empty({client.lora_rank, columns}, at::kDouble);
            std::copy_n(values, t.numel(), t.data_ptr<double>());
            values += t.numel();
            return t.to(weights.options()).requires_grad_(true);
        };
        adapter.a_WD.push_back(take(matrix.d_in));
        adapter.bt_WO.push_back(take(matrix.d_out));
    }
    at::Tensor sum = at::zeros({}, weights.options());
    std::int64_t count = 0;
    for (std::size_t s = 0; s < client.inputs.size(); ++s) {
        const at::Tensor tokens =
            at::tensor(std::vector<std::int64_t>(client.inputs[s].begin(), client.inputs[s].end()), at::kLong);
        const at::Tensor logits = reference_logits(weights, tokens.unsqueeze(0), layout, &adapter, scale).squeeze(0);
        const at::Tensor log_p = at::log_softmax(logits, 1);
        for (std::size_t i = 0; i < client.targets[s].size(); ++i) {
            if (client.targets[s][i] < 0) continue;
            sum = sum - log_p[static_cast<std::int64_t>(i)][client.targets[s][i]];
            ++count;
        }
    }
    const at::Tensor loss = sum / static_cast<double>(count);
    if (gradient != nullptr) {
        loss.backward();
        for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
            for (const at::Tensor& leaf : {adapter.a_WD[m], adapter.bt_WO[m]}) {
                const at::Tensor g = leaf.grad().to(at::kDouble).contiguous();
                gradient->insert(gradient->end(), g.const_data_ptr<double>(), g.const_data_ptr<double>() + g.numel());
            }
        }
    }
    return loss.item<double>();
}

inline double client_mean(const RowLosses& losses, std::size_t begin, std::size_t count) {
    double sum = 0.0;
    for (std::size_t i = begin; i < begin + count; ++i) sum += losses.loss_L[i];
    return sum / static_cast<double>(count);
}

inline std::size_t n_targets(const TestClient& client) {
    std::size_t count = 0;
    for (const auto& targets : client.targets)
        count += static_cast<std::size_t>(std::ranges::count_if(targets, [](auto t) { return t >= 0; }));
    return count;
}

inline double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double difference = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return std::sqrt(difference / norm);
}

}  // namespace hetlora::testing_engine
