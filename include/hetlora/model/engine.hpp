// The training step of a pack: forward and explicit backward of a frozen model over flat token rows.
//
// Sequences of many clients lie one after another; every frozen matrix is passed once, as one GEMM over all rows. The
// backward is written out: no gradient of a frozen weight is ever formed, it stops at the first adapted layer, and the
// head runs only on rows that carry loss, in chunks. Autograd over model/reference.hpp is its oracle in the tests.
//
// A decoder's branch b adds to the stream as it is, x + b(norm(x)); an encoder's adds to the normed one, norm(x) +
// b(norm(x)), so that both orders of norm and branch are the same sequence of norms and products (weights.hpp).
//
// Two dtypes: activations and frozen matrices have the embedding's (float32, float64 or bfloat16); the residual stream,
// adapters, gradients, optimiser and losses have the norms' (float32 beside bfloat16, else the same).
// Shape letters: N token rows, D hidden, X = H*E + 2*K*E stacked q, k, v, I feed-forward, L loss rows, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "hetlora/model/class_head.hpp"
#include "hetlora/model/lora.hpp"
#include "hetlora/model/weights.hpp"
#include "hetlora/tensor/arena.hpp"
#include "hetlora/tensor/frozen_linear.hpp"

namespace hetlora {

/// Keys and values of the tokens that each sequence has seen so far, for generation.
struct KeyValueCache {
    KeyValueCache(const LlamaWeights& weights, std::int64_t sequences, std::int64_t max_length);

    std::vector<at::Tensor> k_SMK;  ///< per layer [sequences, max_length, K*E], keys after rotary
    std::vector<at::Tensor> v_SMK;
    std::vector<std::int64_t> length;  ///< tokens held, per sequence; advanced by Engine::logits
};

/// One pass over a pack. Rows of a client are consecutive, and sequences do not cross clients.
struct TokenBatch {
    at::Tensor token_N;                ///< int64
    at::Tensor position_N;             ///< int32
    std::vector<AttentionSpan> spans;  ///< the sequences
    at::Tensor place_N;                ///< aten::span_places of the spans; undefined on the CPU
    at::Tensor loss_row_L;             ///< int64, the rows whose prediction counts, ascending
    at::Tensor target_L;               ///< int64, the token that follows each of them
    at::Tensor row_scale_L;    ///< weight of each row's loss in its client's objective: 1 / loss tokens of the client
    std::vector<RowRun> runs;  ///< which rows belong to which adapters
    /// Classification: whose head judges which of the L pooled rows, all of them in order; target_L are classes then.
    /// Empty: the vocabulary's head.
    std::vector<ClassHeadRun> class_heads;
    /// Generation only: span i continues sequence i of the cache, either from nothing or by one token.
    KeyValueCache* cache = nullptr;
};

/// Losses of the loss rows (natural logarithm), and whether the target was the most likely token.
struct RowLosses {
    std::vector<double> loss_L;
    std::vector<std::uint8_t> correct_L;
};

/// The same on the engine's device, valid until its next pass.
struct RowLossTensors {
    at::Tensor loss_L;     ///< float64
    at::Tensor correct_L;  ///< uint8
    /// Copies them to the host: the one place where a step waits for the device.
    [[nodiscard]] RowLosses to_host() const;
};

class Engine;

/// Runs an engine's training steps in its place, for instance by replaying recorded ones (cuda/graph_step.hpp).
class StepRunner {
public:
    virtual ~StepRunner() = default;
    [[nodiscard]] virtual RowLossTensors train(Engine& engine, const TokenBatch& batch, double dropout) = 0;
};

/// Rows of logits that exist at a time: V can be 50,000 and more.
inline constexpr std::int64_t head_chunk_rows = 256;

struct EngineOptions {
    GemmPath gemm = GemmPath::mkl;
    /// Keep only each layer's input and run its forward again in the backward: the same bits, less memory, more time.
    bool recompute = false;
    /// Keep a copy of the adapted matrices in the residual stream's dtype, so that add_to_base() can change them.
    bool base_changes = false;
};

class Engine {
public:
    /// @param weights where options.gemm packs, the engine drops its references to the dense layer matrices: hand the
    ///        weights over with std::move to have that memory back
    Engine(LlamaWeights weights, const AdapterLayout& layout, const EngineOptions& options = {});

    /// Forward and backward: fills the gradients of the adapters named in batch.runs, and of the heads in
    /// batch.class_heads, (overwriting them) with those of sum over rows of row_scale * loss. @param dropout
    /// probability on the adapters' inputs
    [[nodiscard]] RowLosses train(const TokenBatch& batch, double dropout = 0.0);
    /// The same without a runner, and without waiting for the device.
    [[nodiscard]] RowLossTensors train_on_device(const TokenBatch& batch, double dropout = 0.0);
    /// Grows the arenas to what the last pass wanted, if it wanted more: the next pass of its shape allocates nothing.
    void settle() { reset_arenas(); }
    /// train() goes through this runner from now on; null: none.
    void set_step_runner(std::unique_ptr<StepRunner> runner) { runner_ = std::move(runner); }
    /// Forward only; runs without adapters (an empty list) evaluate the base.
    [[nodiscard]] RowLosses evaluate(const TokenBatch& batch);
    /// Logits [L, V] of the batch's loss rows (target_L and row_scale_L are not read).
    /// @throws Error (usage), as train() and evaluate() without class heads, for an encoder
    [[nodiscard]] at::Tensor logits(const TokenBatch& batch);
    /// The same of the batch's class_heads: [L, K]. @pre there are some, all of one shape
    [[nodiscard]] at::Tensor class_logits(const TokenBatch& batch);

    /// W0 <- W0 + sum_i b_i a_i^T of one adapted matrix, added in float64 and rounded once.
    /// @param a_RI [slots, d_in] row-major @param bt_RO [slots, d_out] row-major @pre options().base_changes
    void add_to_base(std::size_t matrix, std::span<const double> a_RI, std::span<const double> bt_RO);
    /// The present W0 of an adapted matrix, [d_out, d_in] row-major. @pre options().base_changes
    [[nodiscard]] std::vector<double> base_matrix(std::size_t matrix) const;
    /// Puts back what base_matrix() gave. @pre options().base_changes
    void set_base_matrix(std::size_t matrix, std::span<const double> weight_OI);

    /// All weights of a decoder from place `first` of FlatWeights(weights()) on take these values, adapted or not.
    /// @pre options().gemm == mkl, on the CPU: then every pass computes on weights() themselves
    void set_weights(std::size_t first, std::span<const double> values);
    /// The same for one tensor of named_weights(weights()).
    void set_weight(std::string_view name, std::span<const double> values);

    /// The weights; the dense layer matrices are undefined where options.gemm packs.
    [[nodiscard]] const LlamaWeights& weights() const { return weights_; }
    [[nodiscard]] const AdapterLayout& layout() const { return layout_; }
    [[nodiscard]] const EngineOptions& options() const { return options_; }
    /// Bytes of the frozen matrices as they are held for computing, and of the rotary table.
    [[nodiscard]] std::int64_t frozen_bytes() const;
    /// Bytes of activations and temporaries at their largest so far.
    [[nodiscard]] std::int64_t activation_bytes() const { return arena_.peak_bytes() + scratch_.peak_bytes(); }

private:
    struct Saved;  // activations of one layer that its backward needs
    struct FrozenLayer {
        FrozenLinear qkv, o, gate_up, down;
    };
    /// A stacked matrix that may change, in full precision.
    struct Changeable {
        at::Tensor master_OI;
        FrozenLinear* frozen = nullptr;
        at::Tensor* dense = nullptr;
    };
    /// The rows of one adapted matrix in its stacked one.
    struct BaseRows {
        std::size_t changeable = 0;
        std::int64_t first = 0;
    };
    void check_all_may_change() const;
    void keep_changeable();
    [[nodiscard]] at::Tensor base_rows(std::size_t matrix) const;
    void refreeze(const Changeable& changeable);

    [[nodiscard]] at::Tensor forward(const TokenBatch& batch, const LoraPass& pass, std::vector<Saved>* saved);
    [[nodiscard]] at::Tensor layer_forward(std::size_t l, const TokenBatch& batch, const LoraPass& pass,
                                           const at::Tensor& x_ND, Saved* saved);
    void layer_backward(std::size_t l, const TokenBatch& batch, const LoraPass& pass, const Saved& saved,
                        at::Tensor dx_ND);
    /// silu(gate) * up, or activation(up): what the down matrix reads, as a temporary.
    [[nodiscard]] at::Tensor activated(const at::Tensor& gate_up);
    /// Losses of the loss rows; with dx the gradient with respect to the last layer's output is written there.
    [[nodiscard]] RowLossTensors head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND);
    /// head() with batch.class_heads.
    [[nodiscard]] RowLossTensors class_head(const TokenBatch& batch, const at::Tensor& x_ND, at::Tensor dx_ND);
    /// What the heads read of the batch's loss rows: after the final norm and the pooler, where there is one.
    struct PooledRows {
        at::Tensor rows_LD;    // of the residual stream
        at::Tensor rstd_L;     // of the final norm
        at::Tensor pooled_LD;  // in the residual stream's dtype
    };
    [[nodiscard]] PooledRows pooled_rows(const TokenBatch& batch, const at::Tensor& x_ND);
    /// The gradient with respect to the rows of the residual stream.
    [[nodiscard]] at::Tensor pooled_rows_backward(const PooledRows& rows, const at::Tensor& d_pooled_LD);
    /// The tensor in another dtype (itself where it has it), as a temporary.
    [[nodiscard]] at::Tensor as(const at::Tensor& x, at::ScalarType dtype);
    [[nodiscard]] bool adapted(std::size_t l, std::initializer_list<int> targets) const;
    void reset_arenas();

    LlamaWeights weights_;
    AdapterLayout layout_;
    EngineOptions options_;
    std::vector<FrozenLayer> frozen_;
    FrozenLinear head_;                        // the vocabulary's; of decoders only
    FrozenLinear pooler_;                      // of families that have one
    std::vector<std::vector<int>> placement_;  // [layer][LayerMatrix] -> matrix or -1
    std::size_t first_adapted_ = 0;
    at::ScalarType residual_dtype_;
    at::ScalarType activation_dtype_;
    Arena arena_;    // what the backward needs, for the whole step
    Arena scratch_;  // temporaries of a phase
    std::unique_ptr<StepRunner> runner_;
    std::vector<Changeable> changeable_;
    std::vector<BaseRows> base_rows_;  // by adapted matrix
};

}  // namespace hetlora
