// The rows of a run's log: what one round, one participation, one client and the slots of a round say.
//
// A floating-point field that was not measured is NaN. Names and units of the columns are in
// store/run_log_columns.hpp; both follow the schema "hetlora-run" version 1 (docs/run-log.md).
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace hetlora {

/// "Not measured".
inline constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

/// One row of /rounds. Row 0 is the state before training (evaluation only).
struct RoundRow {
    std::int64_t round = 0;
    double train_loss = not_measured;
    double eval_loss = not_measured;
    double eval_perplexity = not_measured;
    double eval_accuracy = not_measured;
    std::vector<double> extra_metrics{};  ///< in the order of RunLogHeader::extra_metrics; empty = not measured
    std::int64_t n_clients = 0;
    std::int64_t tokens = 0;
    double t_round_s = not_measured;
    double t_train_s = not_measured;
    double t_comm_s = not_measured;
    double t_aggregate_s = not_measured;
    double t_eval_s = not_measured;
    double t_io_s = not_measured;
    std::int64_t bytes_up_true = 0;
    std::int64_t bytes_up_padded = 0;
    std::int64_t bytes_down_true = 0;
    std::int64_t bytes_down_padded = 0;
    std::int64_t peak_memory_bytes = 0;
    double adapter_norm = not_measured;
    double effective_rank = not_measured;
    std::int64_t slots_alive = 0;
};

/// One row of /participation: one client in one round.
struct ParticipationRow {
    std::int64_t round = 0;
    std::int64_t client = 0;
    std::int64_t mpi_rank = 0;
    std::int64_t pack = 0;
    std::int64_t lora_rank_before = 0;
    std::int64_t lora_rank_after = 0;
    std::int64_t n_steps = 0;
    std::int64_t n_tokens = 0;
    double weight = not_measured;
    double loss_first = not_measured;
    double loss_last = not_measured;
    double t_train_s = not_measured;
    bool dropped = false;
};

/// One row of /slots: both vectors have rank_max elements.
struct SlotRow {
    std::vector<double> energy{};                ///< share of the global product's squared norm
    std::vector<std::int64_t> n_contributors{};  ///< clients of the cohort that had the slot
};

/// One adapted matrix in one round of /layers. W is the scaled global product, scale * B A.
struct LayerRow {
    std::string name{};                    ///< the matrix, e.g. model.layers.0.self_attn.q_proj
    double update_norm = not_measured;     ///< ||W - W of the round before||_F
    double product_norm = not_measured;    ///< ||W||_F
    double effective_rank = not_measured;  ///< participation ratio of W's singular values
    double leading_energy = not_measured;  ///< share of the rank_min largest of them in the sum of squares
    double client_cosine = not_measured;   ///< mean pairwise cosine of the clients' updates
    std::vector<double> singular_value{};  ///< [rank_max], largest first
};

/// One row of /clients.
struct ClientRow {
    std::string name{};
    std::int64_t n_train_sequences = 0;
    std::int64_t n_train_tokens = 0;
    std::int64_t initial_lora_rank = 0;
    double eval_loss_base = not_measured;
    double eval_loss_final = not_measured;
};

/// One row of /groups: the evaluation set's sequences of one group, after the last round.
struct GroupRow {
    std::string name{};
    double eval_loss = not_measured;
    std::int64_t tokens = 0;  ///< loss tokens
    double eval_accuracy = not_measured;
    double eval_choice_accuracy = not_measured;
};

/// Everything that one committed round adds to the log.
struct RoundRecord {
    RoundRow round{};
    std::vector<ParticipationRow> participation{};
    SlotRow slots{};
    std::vector<LayerRow> layers{};  ///< one per adapted matrix, the same in every round; empty: not measured
};

/// Where a run came from: attributes of /provenance (resolved config, command line, git commit and dirty flag,
/// versions, hosts, devices, threads, SHA-256 of base and data, start times, resumes).
struct Provenance {
    std::map<std::string, std::string> texts{};
    std::map<std::string, std::int64_t> integers{};
};

}  // namespace hetlora
