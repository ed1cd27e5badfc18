#include "hetlora/app/run_records.hpp"

#include <cmath>

#include "hetlora/app/task_metrics.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/fed/spectra.hpp"
#include "hetlora/fed/weights.hpp"

namespace hetlora {
void write_trace(TraceWriter& trace, const Experiment& experiment, const RoundOutcome& outcome,
                 const ServerState& server, std::int64_t round) {
    // Of the adapters themselves: with receive = all a client holds more slots than its lora_rank.
    const auto slots_of = [&](const std::vector<double>& adapter) {
        return std::ssize(adapter) / experiment.layout.parameters_per_slot();
    };
    for (std::size_t i = 0; i < outcome.traced.size(); ++i) {
        const ClientReport& report = outcome.reports[i];
        std::vector<TraceStep> steps;
        for (const StepRecord& record : outcome.traced[i].steps) {
            TraceStep step{.loss = record.loss, .n_loss_tokens = record.n_loss_tokens, .windows = {}};
            for (const WindowRef& window : record.windows) step.windows.push_back({window.sequence, window.window});
            steps.push_back(std::move(step));
        }
        trace.append_event({.round = round,
                            .client = report.client,
                            .lora_rank = report.lora_rank_before,
                            .lora_rank_before = slots_of(outcome.traced[i].received),
                            .lora_rank_after = slots_of(outcome.traced[i].sent),
                            .dropped = report.dropped,
                            .weight = outcome.merge.client_weight[i],
                            .learning_rate = outcome.learning_rate,
                            .received = outcome.traced[i].received,
                            .sent = outcome.traced[i].sent,
                            .slots = outcome.traced[i].slots,
                            .steps = steps,
                            .head = outcome.traced[i].head,
                            .n_samples = report.n_samples});
    }
    trace.append_global(round, server.global, server.head);
}

/// The columns of /rounds that come from the clients' reports.
void fill_from_reports(RoundRow& row, const RoundOutcome& outcome, std::int64_t delta_before) {
    double loss_sum = 0.0;
    for (const ClientReport& report : outcome.reports) {
        row.bytes_down_true += report.bytes_down + delta_before;
        if (report.dropped) continue;
        ++row.n_clients;
        row.tokens += report.n_tokens;
        loss_sum += report.loss_sum;
        row.bytes_up_true += report.bytes_up;
    }
    if (row.tokens > 0) row.train_loss = loss_sum / static_cast<double>(row.tokens);
    row.t_train_s = outcome.t_train_s;
    row.t_comm_s = outcome.t_comm_s;
    row.t_aggregate_s = outcome.t_aggregate_s;
}

std::vector<ParticipationRow> participation_rows(const RoundOutcome& outcome) {
    std::vector<ParticipationRow> rows;
    for (std::size_t i = 0; i < outcome.reports.size(); ++i) {
        const ClientReport& report = outcome.reports[i];
        rows.push_back({.round = outcome.plan.round,
                        .client = report.client,
                        .mpi_rank = report.mpi_rank,
                        .pack = report.pack,
                        .lora_rank_before = report.lora_rank_before,
                        .lora_rank_after = report.lora_rank_after,
                        .n_steps = report.n_steps,
                        .n_tokens = report.n_tokens,
                        .weight = outcome.merge.client_weight[i],
                        .loss_first = report.loss_first,
                        .loss_last = report.loss_last,
                        .t_train_s = report.t_train_s,
                        .dropped = report.dropped});
    }
    return rows;
}

void fill_from_global(RoundRow& row, const Experiment& experiment, std::span<const double> global,
                      const SlotStatistics& slots) {
    const ProductSummary summary = summarize_product(experiment.layout, global, experiment.settings.lora.rank_max);
    row.adapter_norm = summary.norm;
    row.effective_rank = summary.effective_rank;
    row.slots_alive = slots.slots_alive;
}

bool is_spectra_round(const Settings& settings, std::int64_t round) {
    const std::int64_t every = settings.log.spectra;
    return every > 0 && round > 0 && (round % every == 0 || round == settings.experiment.rounds);
}

std::vector<LayerRow> layer_rows(const Experiment& experiment, std::span<const double> before,
                                 std::span<const double> global, std::span<const double> client_cosines) {
    const LoraSettings& lora = experiment.settings.lora;
    const std::vector<MatrixSpectrum> spectra = matrix_spectra({.layout = experiment.layout,
                                                                .global = global,
                                                                .previous = before,
                                                                .rank_max = lora.rank_max,
                                                                .rank_min = lora.rank_min,
                                                                .scale = experiment.global_scale});
    std::vector<LayerRow> rows;
    for (std::size_t m = 0; m < spectra.size(); ++m) {
        rows.push_back({.name = experiment.layout.matrices[m].name,
                        .update_norm = spectra[m].update_norm,
                        .product_norm = spectra[m].product_norm,
                        .effective_rank = spectra[m].effective_rank,
                        .leading_energy = spectra[m].leading_energy,
                        .client_cosine = client_cosines[m],
                        .singular_value = spectra[m].singular_values});
    }
    return rows;
}

void fill_from_evaluation(RoundRow& row, const EvaluationSums& sums) {
    row.eval_loss = sums.mean_loss();
    row.eval_perplexity = std::exp(row.eval_loss);
    row.eval_accuracy = sums.accuracy();
}

std::string closing_table(const Experiment& experiment, const RoundRow& first, const RoundRow& last,
                          const RunTotals& totals) {
    double rank_before = 0.0;
    double rank_after = 0.0;
    for (const std::int64_t client : experiment.population->eligible()) {
        rank_before += static_cast<double>(experiment.population->initial_lora_rank(client));
        rank_after += static_cast<double>(experiment.population->lora_rank(client));
    }
    const auto n = static_cast<double>(experiment.population->eligible().size());
    const bool labels = experiment.settings.model.task == Task::classification;
    std::string more;
    const auto metrics = extra_metrics(experiment.settings);
    for (std::size_t i = 0; i < metrics.size(); ++i) {
        const auto value = [i](const RoundRow& row) {
            return i < row.extra_metrics.size() ? row.extra_metrics[i] : not_measured;
        };
        if (metrics[i].name.starts_with("test_")) continue;
        more += fmt::format("  {:<16} {:>10.4f} {:>10.4f}\n", metrics[i].name, value(first), value(last));
    }
    const std::string adapters =
        experiment.strategy.trains_base()
            ? std::string()
            : fmt::format("  mean lora_rank   {:>10.2f} {:>10.2f}\n  slots alive      {:>10} {:>10}\n", rank_before / n,
                          rank_after / n, first.slots_alive, last.slots_alive);
    return fmt::format(
        "\n                       before      after\n"
        "  {:<16} {:>10.3f} {:>10.3f}\n"
        "  accuracy         {:>10.4f} {:>10.4f}\n"
        "{}"
        "{}"
        "  true bytes up {} and down {} in {}\n"
        "  results in {}",
        labels ? "loss" : "perplexity", labels ? first.eval_loss : first.eval_perplexity,
        labels ? last.eval_loss : last.eval_perplexity, first.eval_accuracy, last.eval_accuracy, more, adapters,
        human_bytes(static_cast<double>(totals.bytes_up)), human_bytes(static_cast<double>(totals.bytes_down)),
        human_seconds(totals.seconds), experiment.settings.output.dir.string());
}

}  // namespace hetlora
