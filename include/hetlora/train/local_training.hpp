// Local training of a pack: several clients' adapters, each on its own data, in one pass through the frozen model.
//
// A client cannot tell that it was batched: loss normalisation, tail regulariser, clipping, optimiser state, dropout
// mask, learning rate and number of steps are its own. HetLoRA's local objective (methods, step 2):
//     L_k = F_k(W0 + s B_k A_k) + lambda * sum_m ||B_m[:, g:r]|| * ||A_m[g:r, :]||
// FedProx adds mu/2 * ||theta - theta_received||^2. A client may train a part of its adapter only: one factor, or some
// slots of each matrix; the rest takes part in the forward pass and leaves bit for bit as it came.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hetlora/config/settings.hpp"
#include "hetlora/data/corpus.hpp"
#include "hetlora/model/engine.hpp"
#include "hetlora/plugin/method.hpp"

namespace hetlora {

/// What all clients of a round share.
struct LocalOptions {
    OptimizerKind optimizer = OptimizerKind::adamw;
    double learning_rate = 1e-3;      ///< of this round, schedule applied
    double head_learning_rate = 0.0;  ///< of classification heads, schedule applied
    double weight_decay = 0.0;
    double clip_norm = 0.0;  ///< largest norm of a client's whole adapter gradient, and of its head's; 0: no clipping
    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double tail_lambda = 0.0;        ///< lambda of the tail regulariser
    double tail_norm_epsilon = 0.0;  ///< e in sqrt(sum x^2 + e); 0: subgradient 0 at 0
    double prox_mu = 0.0;            ///< mu of FedProx; 0: off
    double dropout = 0.0;
    std::int64_t batch_size = 1;
    std::uint64_t seed_data = 0;  ///< order of batches and dropout masks
    std::int64_t round = 1;
    plugin::Method* penalty = nullptr;  ///< adds its penalty to every local step; null: none
    std::string penalty_name;           ///< of the plugin, for messages
};

/// One client's work in a round.
struct ClientTask {
    std::int64_t client = 0;
    std::int64_t lora_rank = 0;
    std::int64_t tail_start = 0;  ///< g: slots from here to lora_rank are regularised; lora_rank: none
    std::int64_t n_steps = 0;
    double scale = 1.0;                ///< s in W0 + s B A
    std::span<const double> received;  ///< canonical form at lora_rank
    TrainedFactors trained_factors = TrainedFactors::both;
    /// [matrix, slot], matrices * lora_rank values: not 0 where a slot of a matrix trains. Empty: all train. With
    /// nothing trained, the client's losses are computed and its adapter stays.
    std::span<const std::uint8_t> trained_slots = {};
    std::span<const double> received_head = {};  ///< classification: the head's values; empty: next tokens
};

/// One local step of one client.
struct StepRecord {
    double loss = 0.0;  ///< mean over the batch's loss tokens, without regulariser and proximal term
    std::int64_t n_loss_tokens = 0;
    std::vector<WindowRef> windows;
};

struct ClientOutcome {
    std::int64_t client = 0;
    std::vector<double> trained;  ///< canonical form at the task's lora_rank
    std::vector<double> head;     ///< trained head; empty without one
    std::vector<StepRecord> steps;
    std::int64_t n_tokens = 0;  ///< input rows of all steps
    bool finite = true;         ///< losses, adapter and head
    double time_s = 0.0;        ///< this client's share of the pack's time, by rows
};

/// Trains all tasks of a pack; outcomes in the order of the tasks.
/// @param head of the tasks' received_head: all have one, or none has
/// @throws Error (input) for tokens or sequences that the model cannot take
[[nodiscard]] std::vector<ClientOutcome> train_pack(Engine& engine, const Corpus& corpus,
                                                    std::span<const ClientTask> tasks, const LocalOptions& options,
                                                    const ClassHeadShape* head = nullptr);

/// Learning rate of a round (1..rounds): peak * round / warmup up to round `warmup`, then constant, or falling linearly
/// or as a cosine of (round - warmup) / (rounds - warmup) to `final_fraction` of the peak, which the last round uses.
[[nodiscard]] double scheduled_rate(LearningRateSchedule schedule, double peak, std::int64_t round, std::int64_t rounds,
                                    std::int64_t warmup, double final_fraction);

}  // namespace hetlora
