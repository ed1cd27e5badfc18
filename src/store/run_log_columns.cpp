// The columns of run.h5, schema "hetlora-run" version 1.
#include "hetlora/store/run_log_columns.hpp"

#include <array>

#include "hetlora/base/error.hpp"

namespace hetlora {

namespace {

using enum ColumnType;
constexpr bool differs = false;  // may differ between runs on different numbers of MPI ranks

constexpr auto rounds_table = std::to_array<Column<RoundRow>>({
    {"round", "1", "communication round; 0 is the state before training", i64, &RoundRow::round},
    {"train_loss", "nat", "mean negative log-likelihood per loss token over the cohort's local steps", f64,
     &RoundRow::train_loss},
    {"eval_loss", "nat", "mean negative log-likelihood per loss token of the global adapter on the evaluation set", f64,
     &RoundRow::eval_loss},
    {"eval_perplexity", "1", "exp(eval_loss)", f64, &RoundRow::eval_perplexity},
    {"eval_accuracy", "1", "share of loss tokens that the global adapter predicts first", f64,
     &RoundRow::eval_accuracy},
    {"n_clients", "1", "clients whose updates were aggregated", i32, &RoundRow::n_clients},
    {"tokens", "1", "loss tokens trained on, over the cohort", i64, &RoundRow::tokens},
    {"t_round_s", "s", "wall time of the round", f64, &RoundRow::t_round_s, differs},
    {"t_train_s", "s", "wall time of local training, slowest MPI rank", f64, &RoundRow::t_train_s, differs},
    {"t_comm_s", "s", "wall time of communication", f64, &RoundRow::t_comm_s, differs},
    {"t_aggregate_s", "s", "wall time of aggregation", f64, &RoundRow::t_aggregate_s, differs},
    {"t_eval_s", "s", "wall time of evaluation", f64, &RoundRow::t_eval_s, differs},
    {"t_io_s", "s", "wall time of writing: the trace of this round and the log of the row before", f64,
     &RoundRow::t_io_s, differs},
    {"bytes_up_true", "byte", "adapter bytes that real clients would send, at their own lora_rank", i64,
     &RoundRow::bytes_up_true},
    {"bytes_up_padded", "byte", "adapter bytes that MPI moved to the root", i64, &RoundRow::bytes_up_padded, differs},
    {"bytes_down_true", "byte", "adapter bytes that real clients would receive, at their own lora_rank", i64,
     &RoundRow::bytes_down_true},
    {"bytes_down_padded", "byte", "adapter bytes that MPI moved from the root", i64, &RoundRow::bytes_down_padded,
     differs},
    {"peak_memory_bytes", "byte", "largest resident memory of an MPI rank so far", i64, &RoundRow::peak_memory_bytes,
     differs},
    {"adapter_norm", "1", "Frobenius norm of the global product B A over all adapted matrices", f64,
     &RoundRow::adapter_norm},
    {"effective_rank", "1", "participation ratio of the singular values of B A, mean over matrices that are not 0", f64,
     &RoundRow::effective_rank},
    {"slots_alive", "1", "slots of the global adapter that are not all zero", i32, &RoundRow::slots_alive},
});

constexpr auto participation_table = std::to_array<Column<ParticipationRow>>({
    {"round", "1", "round of the participation", i64, &ParticipationRow::round},
    {"client", "1", "client, an index into /clients", i32, &ParticipationRow::client},
    {"mpi_rank", "1", "MPI rank that trained the client", i32, &ParticipationRow::mpi_rank, differs},
    {"pack", "1", "pack of the round in which the client was trained", i32, &ParticipationRow::pack},
    {"lora_rank_before", "1", "LoRA rank received", i32, &ParticipationRow::lora_rank_before},
    {"lora_rank_after", "1", "LoRA rank sent, after pruning", i32, &ParticipationRow::lora_rank_after},
    {"n_steps", "1", "local optimiser steps", i32, &ParticipationRow::n_steps},
    {"n_tokens", "1", "loss tokens trained on", i64, &ParticipationRow::n_tokens},
    {"weight", "1", "aggregation weight, normalised over the cohort", f64, &ParticipationRow::weight},
    {"loss_first", "nat", "mean negative log-likelihood of the first local step", f64, &ParticipationRow::loss_first},
    {"loss_last", "nat", "mean negative log-likelihood of the last local step", f64, &ParticipationRow::loss_last},
    {"t_train_s", "s", "wall time of local training, the client's share of its pack", f64, &ParticipationRow::t_train_s,
     differs},
    {"dropped", "1", "1 if the update was left out (not finite)", i8, &ParticipationRow::dropped},
});

constexpr auto clients_table = std::to_array<Column<ClientRow>>({
    {"n_train_sequences", "1", "training sequences", i64, &ClientRow::n_train_sequences},
    {"n_train_tokens", "1", "loss tokens in the training sequences", i64, &ClientRow::n_train_tokens},
    {"initial_lora_rank", "1", "LoRA rank before any pruning", i32, &ClientRow::initial_lora_rank},
    {"eval_loss_base", "nat", "loss of the base model on the client's own held-out data", f64,
     &ClientRow::eval_loss_base},
    {"eval_loss_final", "nat", "loss of the final global adapter on the client's own held-out data", f64,
     &ClientRow::eval_loss_final},
});

constexpr auto layers_table = std::to_array<Column<LayerRow>>({
    {"update_norm", "1", "Frobenius norm of the change of W = scale B A against the round before", f64,
     &LayerRow::update_norm},
    {"product_norm", "1", "Frobenius norm of W", f64, &LayerRow::product_norm},
    {"effective_rank", "1", "participation ratio of the singular values of W; NaN where W = 0", f64,
     &LayerRow::effective_rank},
    {"leading_energy", "1", "share of the rank_min largest singular values of W in the sum of squares; NaN where W = 0",
     f64, &LayerRow::leading_energy},
    {"client_cosine", "1", "mean pairwise cosine of the clients' updates of A and B; NaN for fewer than two", f64,
     &LayerRow::client_cosine},
});

constexpr auto special_table = std::to_array<SpecialColumn>({
    {"slots", "round", "1", "communication round; 0 is the state before training", "int64"},
    {"slots", "slot", "1", "slot of the global adapter: row of A, column of B", "int32"},
    {"slots", "energy", "1", "share of the global product's squared Frobenius norm, summed over matrices", "float64"},
    {"slots", "n_contributors", "1", "clients of the cohort whose update had the slot", "int32"},
    {"participation", "event", "1", "running number of the participation", "int64"},
    {"clients", "client", "1", "client index", "int32"},
    {"clients", "name", "1", "name of the client in the prepared data", "string"},
    {"clients", "eval_accuracy_final", "1",
     "share of loss tokens of the client's own held-out data that the final global adapter predicts first", "float64"},
    {"clients", "eval_loss_own_rank", "nat",
     "loss on the client's own held-out data of the final global adapter's first slots, as many as its LoRA rank",
     "float64"},
    {"clients", "eval_accuracy_own_rank", "1",
     "share of loss tokens of the client's own held-out data that these slots predict first", "float64"},
    {"groups", "group", "1", "group index", "int32"},
    {"groups", "name", "1", "name of the group in the prepared data", "string"},
    {"groups", "tokens", "1", "loss tokens of the group in the evaluation set", "int64"},
    {"groups", "eval_loss", "nat", "mean negative log-likelihood per loss token of the group after the last round",
     "float64"},
    {"groups", "eval_accuracy", "1", "share of the group's loss tokens that the final adapter predicts first",
     "float64"},
    {"groups", "eval_choice_accuracy", "1",
     "share of the group's questions whose right answer is the most likely one; NaN where it was not measured",
     "float64"},
    {"labels", "client", "1", "client index", "int32"},
    {"labels", "label", "1", "class index", "int32"},
    {"labels", "name", "1", "name of the class (label or group) in the prepared data", "string"},
    {"labels", "n_train_sequences", "1", "training sequences of the client in the class", "int32"},
    {"layers", "round", "1", "communication round that was looked at", "int64"},
    {"layers", "layer", "1", "adapted matrix", "int32"},
    {"layers", "index", "1", "place in the order of size, from 0", "int32"},
    {"layers", "name", "1", "name of the matrix in the model", "string"},
    {"layers", "singular_value", "1", "singular values of W, largest first", "float64"},
});

}  // namespace

std::string_view column_type_name(ColumnType type) noexcept {
    switch (type) {
        case i8:
            return "int8";
        case i32:
            return "int32";
        case i64:
            return "int64";
        case f64:
            return "float64";
    }
    return "?";
}

std::span<const Column<RoundRow>> round_columns() noexcept { return rounds_table; }
std::span<const Column<ParticipationRow>> participation_columns() noexcept { return participation_table; }
std::span<const Column<ClientRow>> client_columns() noexcept { return clients_table; }
std::span<const Column<LayerRow>> layer_columns() noexcept { return layers_table; }
std::span<const SpecialColumn> special_columns() noexcept { return special_table; }

const SpecialColumn& special_column(std::string_view group, std::string_view name) {
    for (const SpecialColumn& column : special_table) {
        if (column.group == group && column.name == name) return column;
    }
    throw bug_error("no column '{}' in group '{}' - table of run.h5's columns - add it in run_log_columns.cpp", name,
                    group);
}

}  // namespace hetlora
