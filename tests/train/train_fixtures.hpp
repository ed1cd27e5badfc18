// A micro model with hashed weights, a small corpus and hashed adapters: what the tests of local training share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "hetlora/base/random.hpp"
#include "hetlora/data/corpus.hpp"
#include "hetlora/model/engine.hpp"
#include "hetlora/tensor/ops.hpp"
#include "hetlora/train/local_training.hpp"
#include "make_corpus.hpp"

namespace hetlora::testing_train {

inline ModelConfig micro_config() {
    ModelConfig config;
    config.vocab_size = 31;
    config.hidden_size = 16;
    config.intermediate_size = 24;
    config.layers = 2;
    config.heads = 2;
    config.kv_heads = 1;
    config.head_size = 8;
    config.max_positions = 32;
    config.tied_head = true;
    return config;
}

inline LlamaWeights hashed_weights(at::ScalarType dtype) {
    LlamaWeights weights = allocate_weights(micro_config(), at::TensorOptions().dtype(dtype));
    int number = 0;
    for (const auto& [name, tensor] : named_weights(weights)) {
        const bool norm = tensor.dim() == 1;
        at::Tensor values = at::empty(tensor.sizes(), at::kDouble);
        for (std::int64_t i = 0; i < values.numel(); ++i) {
            const double draw = standard_normal(hash_seed(5, Purpose::test, number, i));
            values.data_ptr<double>()[i] = norm ? 1.0 + 0.1 * draw : 0.3 * draw;
        }
        at::Tensor target = tensor;
        target.copy_(values);
        ++number;
    }
    return weights;
}

/// Canonical factors of a client, none of them 0.
inline std::vector<double> hashed_factors(const AdapterLayout& layout, int number, std::int64_t lora_rank,
                                          double size = 0.1) {
    std::vector<double> factors(static_cast<std::size_t>(layout.parameters(lora_rank)));
    for (std::size_t i = 0; i < factors.size(); ++i)
        factors[i] = size * standard_normal(hash_seed(6, Purpose::test, number, i));
    return factors;
}

/// Two matrices of odd shapes.
inline AdapterLayout odd_layout() { return {{{"layer.0.q", 0, "q_proj", 5, 7}, {"layer.0.v", 0, "v_proj", 3, 9}}}; }

/// A value and its two moments under torch.optim.AdamW and SGD as documented, with decay apart from the gradient.
struct ValueByHand {
    double theta = 0.0;
    double moment1 = 0.0;
    double moment2 = 0.0;

    /// Step t (from 1): both moments are corrected for their start at 0.
    void adamw(double g, int t, const LocalOptions& o) {
        moment1 = o.beta1 * moment1 + (1.0 - o.beta1) * g;
        moment2 = o.beta2 * moment2 + (1.0 - o.beta2) * g * g;
        const double m = moment1 / (1.0 - std::pow(o.beta1, t));
        const double v = moment2 / (1.0 - std::pow(o.beta2, t));
        theta -= o.learning_rate * (o.weight_decay * theta + m / (std::sqrt(v) + o.epsilon));
    }
    void sgd(double g, const LocalOptions& o) { theta -= o.learning_rate * (g + o.weight_decay * theta); }
    void step(double g, int t, const LocalOptions& o) {
        o.optimizer == OptimizerKind::adamw ? adamw(g, t, o) : sgd(g, o);
    }
};

inline std::vector<ValueByHand> by_hand(const std::vector<double>& start) {
    std::vector<ValueByHand> values;
    for (const double theta : start) values.push_back({.theta = theta});
    return values;
}

/// Writes a client's gradient from its canonical form; padded slots become 0, as the engine leaves them.
inline void set_gradient(AdapterGroup& group, const AdapterLayout& layout, std::int64_t client,
                         const std::vector<double>& canonical, std::int64_t lora_rank) {
    AdapterGroup scratch(layout, 1, group.width(), false, group.theta_CP.options());
    scratch.set(0, canonical, lora_rank);
    group.gradient_CP.select(0, client).copy_(scratch.theta_CP.select(0, 0));
}

/// Which elements of the canonical form train, asked of each of them: a slot and its factor must.
inline std::vector<bool> trains_by_element(const AdapterLayout& layout, std::int64_t lora_rank, TrainedFactors factors,
                                           const std::vector<std::uint8_t>& slots) {
    std::vector<bool> trains;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        for (const TrainedFactors only : {TrainedFactors::a_only, TrainedFactors::b_only}) {
            const auto& matrix = layout.matrices[m];
            const std::int64_t width = only == TrainedFactors::a_only ? matrix.d_in : matrix.d_out;
            for (std::int64_t i = 0; i < lora_rank * width; ++i) {
                const auto slot = m * static_cast<std::size_t>(lora_rank) + static_cast<std::size_t>(i / width);
                const bool factor_trains = factors == TrainedFactors::both || factors == only;
                trains.push_back(factor_trains && (slots.empty() || slots[slot] != 0));
            }
        }
    }
    return trains;
}

/// A mask [matrix, slot] of hashed 0 and 1.
inline std::vector<std::uint8_t> hashed_mask(const AdapterLayout& layout, int number, std::int64_t lora_rank) {
    std::vector<std::uint8_t> mask(layout.matrices.size() * static_cast<std::size_t>(lora_rank));
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = hash_seed(7, Purpose::test, number, i) % 2;
    return mask;
}

/// Runs ATen's ops on the CPU while it lives, as a GPU would.
struct AtenForced {
    AtenForced() { ops::force_aten(true); }
    ~AtenForced() { ops::force_aten(false); }
    AtenForced(const AtenForced&) = delete;
    AtenForced& operator=(const AtenForced&) = delete;
};

/// Five training clients (0 to 4) with ragged windows, and two held-out ones.
class SmallCorpus {
public:
    SmallCorpus() : corpus_(write(folder_ / "small.h5"), {.sequence_length = 12, .overlap = 4}) {}
    [[nodiscard]] const Corpus& get() const { return corpus_; }

private:
    static std::filesystem::path write(const std::filesystem::path& path) {
        test::write_corpus(path, test::synthetic_corpus({.n_clients = 7,
                                                         .n_held_out = 2,
                                                         .n_train = 3,
                                                         .n_valid = 3,
                                                         .min_length = 6,
                                                         .max_length = 30,
                                                         .token_begin = 3,
                                                         .token_end = 31,
                                                         .vocab_size = 31,
                                                         .seed = 8}));
        return path;
    }
    test::TemporaryFolder folder_;
    Corpus corpus_;
};

/// A model, an engine on it and data.
struct World {
    explicit World(at::ScalarType dtype, const std::vector<std::string>& targets = {"all-linear"})
        : weights(hashed_weights(dtype)),
          layout(make_adapter_layout(weights.config, targets)),
          engine(weights, layout) {}
    LlamaWeights weights;
    AdapterLayout layout;
    Engine engine;
    SmallCorpus data;
};

/// ||a - b|| / ||b||; NaN if anything in them is.
inline double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return INFINITY;
    double difference = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return std::sqrt(difference / norm);
}

}  // namespace hetlora::testing_train
