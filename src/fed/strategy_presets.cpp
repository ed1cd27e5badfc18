// The table of methods. A new one is a row here (and its name in config/strategy_names.cpp, which a test compares).
#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/fed/strategy.hpp"

namespace hetlora {

const std::vector<StrategyPreset>& strategy_presets() {
    static const std::vector<StrategyPreset> presets{
        {.name = "hetlora",
         .aliases = {},
         .policies = {.local_extra = LocalExtra::tail_prune, .client_weight = ClientWeight::sparsity},
         .paper = "Cho et al., EMNLP 2024, arXiv:2401.06432",
         .description = "truncation, rank self-pruning, zero-padding, weights ||B A||_F",
         .notes = {"prune_lambda .01 is not the paper's (not published there as far as known): a common choice of "
                   "re-implementations.",
                   "Many published \"HetLoRA\" columns are zero-padding alone: that is preset zeropad here."}},
        {.name = "hetlora-agg",
         .aliases = {},
         .policies = {.client_weight = ClientWeight::sparsity},
         .paper = "Cho et al., EMNLP 2024, arXiv:2401.06432 (aggregation only)",
         .description = "HetLoRA's weighted aggregation without regulariser and pruning",
         .notes = {}},
        {.name = "zeropad",
         .aliases = {},
         .policies = {},
         .paper = "common baseline (\"HeteroLoRA\", \"FedIT (zero-pad)\")",
         .description = "truncation, zero-padding, sample-weighted mean of A and of B",
         .notes =
             {"Published zero-padding rows differ by the LoRA scale of the padded adapter; here it is one scale for "
              "all (lora.scale_rule = constant)."}},
        {.name = "fedavg",
         .aliases = {"homlora", "fedit"},
         .policies = {},
         .requires_equal_lora_ranks = true,
         .paper = "Zhang et al., 2023, arXiv:2305.05644 (FedIT)",
         .description = "one rank for all: sample-weighted mean of A and of B",
         .notes =
             {"Equal lora_ranks are required (lora.rank_distribution = fixed); with equal ranks zeropad and rbla are "
              "the same.",
              "The FedIT branch of FLoRA's public repository sums into a misspelt variable, so that its average is "
              "client 0 alone: its FedIT rows are no measure of this method."}},
        {.name = "fedprox",
         .aliases = {},
         .policies = {.local_extra = LocalExtra::proximal},
         .paper = "Li et al., MLSys 2020, arXiv:1812.06127, applied to the factors of LoRA",
         .description = "zeropad with a pull of every client towards the adapter it received",
         .notes =
             {"prox_mu .01 is one of the values of the paper's grid; local_extra = proximal gives any other method "
              "the same pull."}},
        {.name = "rbla",
         .aliases = {},
         .policies = {.slot_norm = SlotNorm::contributors},
         .paper = "Chen et al., ICWS 2024, arXiv:2408.08699",
         .description = "every slot is the sample-weighted mean of the clients that have it",
         .notes = {"Deviation: the published code masks missing slots as NaN and leaves uncovered ones undefined; here "
                   "keep_uncovered decides."}},
        {.name = "replicate",
         .aliases = {},
         .policies = {.slot_norm = SlotNorm::replicate},
         .paper = "Byun & Lee, NAACL 2025, arXiv:2406.17477",
         .description = "clients without a slot count with the mean of the largest clients in it",
         .notes =
             {"The paper has two rank levels; here the largest lora_rank of the cohort plays the high level, whatever "
              "the number of levels.",
              "Left out: the paper's choice of who gets the high rank (validation scores after round 1); ranks come "
              "from lora.rank_distribution."}},
        {.name = "flexlora",
         .aliases = {"recon-svd"},
         .policies = {.merge = Merge::product},
         .paper = "Bai et al., NeurIPS 2024, arXiv:2402.11505",
         .description = "mean of the products B A, cut to rank_max by one SVD per matrix",
         .notes =
             {"The SVD is that of the stacked factors (QR and a small core), in fp64: the same result as the dense "
              "one, which is never formed.",
              "B carries the singular values (factor_split left), as in the public code."}},
        {.name = "hlora",
         .aliases = {},
         .policies = {.merge = Merge::product, .factor_split = FactorSplit::right},
         .paper = "Liu et al., 2025, arXiv:2503.00813",
         .description = "flexlora with the singular values on A",
         .notes = {"Known from reviews of the paper: B = U, A = S V^T.",
                   "B of a client is then not zero where A is: slots of singular value 0 keep an orthonormal B."}},
        {.name = "raflora",
         .aliases = {},
         .policies = {.merge = Merge::product, .slot_norm = SlotNorm::levels, .factor_split = FactorSplit::sqrt},
         .paper = "Wu et al., 2026, arXiv:2602.13486",
         .description = "product mean by rank levels: each level over the clients that reach it, then one SVD",
         .notes =
             {"The levels are those of all clients (or rank_levels), not of the cohort: with the cohort's the global "
              "adapter would shrink in silence.",
              "Where every lora_rank is a level the weights are those of rb-lora; what differs is how the factors "
              "share "
              "the singular values, and that lora_ranks off the levels are refused."}},
        {.name = "rb-lora",
         .aliases = {},
         .policies = {.merge = Merge::product, .slot_norm = SlotNorm::contributors},
         .paper = "Ha et al., Findings of EACL 2026 (RB-LoRA)",
         .description = "product mean with every slot over the clients that have it, then one SVD",
         .notes = {"Follows the paper's rank-balanced weights. In the released code the registered path averages with "
                   "zero-padding before the SVD; its rank-balanced weights are not called."}},
        {.name = "flora",
         .aliases = {},
         .policies = {.merge = Merge::stack, .base_update = BaseUpdate::merge},
         .paper = "Wang et al., NeurIPS 2024, arXiv:2409.05976",
         .description = "stacked factors go into the base, every round starts from a fresh adapter",
         .notes =
             {"The fresh A of every client and round is drawn on its own (hashed), B = 0; the weight is on A alone.",
              "Bytes down: the stack of the round before, once per client of the cohort.",
              "adapter/ is empty (B = 0): the result is in the base (`base_delta` of the checkpoint)."}},
        {.name = "florist",
         .aliases = {},
         .policies = {.merge = Merge::stack, .base_update = BaseUpdate::truncated},
         .paper = "FLoRIST, MLSys 2026, arXiv:2506.09199",
         .description = "flora with the stack cut to the directions that hold keep_energy of it",
         .notes =
             {"keep_energy .95 lies in the paper's range (.80 to .99); the smallest number of directions is kept, for "
              "each matrix on its own."}},
        {.name = "fedex",
         .aliases = {},
         .policies = {.base_update = BaseUpdate::residual},
         .requires_equal_lora_ranks = true,
         .paper = "Singhal et al., ACL 2025, arXiv:2410.09432 (FedEx-LoRA)",
         .description = "fedavg, and what the mean of the factors misses goes into the base",
         .notes = {"Bytes down: the adapter and the residual as stacked factors (lora_rank times clients)."}},
        {.name = "ffa",
         .aliases = {},
         .policies = {.trainable = Trainable::b},
         .paper = "Sun et al., ICLR 2024, arXiv:2403.12313 (FFA-LoRA)",
         .description = "A stays as it was drawn, B is trained and averaged",
         .notes =
             {"Defined for equal ranks; with mixed ones a client takes the leading rows of A, and zero-padding of B "
              "keeps the mean of the products exact."}},
        {.name = "rolora",
         .aliases = {"deer"},
         .policies = {.trainable = Trainable::alternate},
         .paper = "Chen et al., NeurIPS 2025, arXiv:2502.01755 (RoLoRA); DEeR without privacy, arXiv:2410.12926",
         .description = "B is trained and averaged in odd rounds, A in even ones",
         .notes = {}},
        {.name = "fslora",
         .aliases = {},
         .policies = {.slot_select = SlotSelect::random,
                      .slot_scale = SlotScale::sketch,
                      .client_weight = ClientWeight::uniform,
                      .aggregate = Aggregate::deltas},
         .paper = "Fang et al., 2025, arXiv:2501.19389 (FSLoRA)",
         .description = "a random choice of slots per client and round, scaled by rank_max / lora_rank",
         .notes = {"The server takes the mean change as it is (SGD with rate 1). The public code steps AdamW at 3e-4 "
                   "instead: "
                   "server_optimizer = adam, server_learning_rate = 3e-4."}},
        {.name = "fed-plora",
         .aliases = {},
         .policies = {.slot_select = SlotSelect::random,
                      .receive = Receive::all,
                      .client_weight = ClientWeight::uniform,
                      .slot_norm = SlotNorm::contributors,
                      .keep_uncovered = KeepUncovered::last},
         .paper = "Zhang et al., ICLR 2026, arXiv:2602.16936 (Fed-PLoRA)",
         .description = "all slots are received, a random choice is trained, the others stay frozen",
         .notes =
             {"The paper folds the other slots into the client's base; keeping them frozen in the adapter is the same "
              "function.",
              "Known from notes on the paper, not from its text."}},
        {.name = "lora-a2",
         .aliases = {},
         .policies = {.slot_select = SlotSelect::scored,
                      .receive = Receive::all,
                      .trainable = Trainable::alternate,
                      .aggregate = Aggregate::deltas},
         .paper = "Koo, Jang & Ok, Findings of ACL 2025, arXiv:2410.22815 (LoRA-A2)",
         .description = "one factor a round; a first pass scores all slots, the best lora_rank x matrices are trained",
         .notes =
             {"lora_rank is the client's budget: lora_rank times the number of adapted matrices (matrix, slot) pairs.",
              "The first pass is one epoch; its result is thrown away. The paper's learning rate of B is 5 times that "
              "of "
              "A: here both are local.learning_rate.",
              "The paper counts bytes up only; here a client also receives the live factor at rank_max."}},
        {.name = "fedsa",
         .aliases = {},
         .policies = {.shared_factors = SharedFactors::a},
         .paper = "Guo et al., ICLR 2025, arXiv:2410.01463 (FedSA-LoRA)",
         .description = "both factors are trained, only A is averaged; every client keeps its own B",
         .notes = {"Evaluation is each client's own B with the shared A on its own held-out data."}},
        {.name = "sa-fedlora",
         .aliases = {},
         .policies = {.local_extra = LocalExtra::proximal, .rank_schedule = RankSchedule::annealing},
         .paper = "SA-FedLoRA, 2024, arXiv:2405.09394",
         .description = "one rank for all that falls over the rounds, with a pull to the received adapter at first",
         .notes = {"Only the abstract was at hand: the course of the rank (geometric, from rank_max to rank_min after "
                   "anneal_start of the rounds) and prox_mu are choices of ours. The pull acts before the fall only."}},
        {.name = "full",
         .aliases = {},
         .policies = {.trainable = Trainable::base, .aggregate = Aggregate::deltas},
         .paper = "FedAvg: McMahan et al., AISTATS 2017, arXiv:1602.05629; HetLoRA's \"full fine-tuning\"",
         .description = "full fine-tuning of the base without adapters, one client after another: the upper line",
         .notes =
             {"All keys of [lora] are read and checked, and have no effect: there is no adapter. lora_rank in the log "
              "is "
              "what was drawn, and nobody uses it.",
              "Weight decay and clipping are as for adapters: of all weights alike, by the norm of the whole gradient.",
              "A weight that training leaves as it was sends a change of 0. A learning rate for all weights is far "
              "below "
              "one for adapters: begin with 1e-4.",
              "In memory, per MPI rank and weight: 4 bytes each for the base, a client's copy, its gradient and each "
              "moment of AdamW, and 16 for the exact sum (8 with comm.reduction = fast); fp64 doubles the first four.",
              "No adapter/ is written: the result is the last checkpoint (base/*), and `hetlora export --merged` makes "
              "a "
              "Hugging Face folder of it.",
              "Refused: bf16, cuda, classification, plugins, model.adapter, log.spectra."}},
    };
    return presets;
}

const StrategyPreset& find_strategy_preset(std::string_view name) {
    std::vector<std::string> known;
    for (const auto& preset : strategy_presets()) {
        if (preset.name == name || std::ranges::find(preset.aliases, name) != preset.aliases.end()) return preset;
        known.emplace_back(preset.name);
        known.insert(known.end(), preset.aliases.begin(), preset.aliases.end());
    }
    throw usage_error("strategy.preset: \"{}\" is not a known method{} - 'hetlora strategies' lists them: {}", name,
                      did_you_mean(name, known), join(known, ", "));
}

}  // namespace hetlora
