// The loop over rounds and everything that is written about it.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "hetlora/app/evaluate.hpp"
#include "hetlora/app/experiment.hpp"
#include "hetlora/app/group_evaluation.hpp"
#include "hetlora/app/head_export.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/app/private_files.hpp"
#include "hetlora/app/resume.hpp"
#include "hetlora/app/run_checkpoints.hpp"
#include "hetlora/app/run_files.hpp"
#include "hetlora/app/run_records.hpp"
#include "hetlora/app/run_warnings.hpp"
#include "hetlora/app/samples.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/base/timer.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/fed/exchange.hpp"
#include "hetlora/store/progress.hpp"
#include "hetlora/store/progress_clock.hpp"
#include "run_evaluation.hpp"

namespace hetlora {
namespace {

/// The loop itself; `files` is empty except on root.
class Run {
public:
    Run(Transport& transport, Experiment& experiment, Terminal& terminal, std::optional<RunFiles>& files)
        : transport_(transport),
          experiment_(experiment),
          terminal_(terminal),
          files_(files),
          init_(adapter_init_law(experiment.settings)),
          accumulator_(make_accumulator(experiment)),
          checkpoints_(experiment, files ? files->folder.checkpoints() : std::filesystem::path()),
          drift_(make_drift(experiment)),
          private_files_(experiment.settings.output.dir / "private", init_.round_to_fp32),
          evaluation_(transport, experiment, private_files_),
          warnings_(terminal) {
        server_.global = experiment.start;
        if (experiment.head) server_.head = experiment.head->get(0);
    }

    void before_training() {
        Stopwatch watch;
        RoundRecord record;
        const Traffic traffic = transport_.traffic();
        evaluation_.before_training(record.round, server_.global);
        record.round.t_eval_s = watch.seconds();
        finish_round(record, traffic, watch, slot_statistics(experiment_.layout, server_.global, init_.rank_max, {}),
                     nullptr, {});
        first_ = last_ = record.round;
        if (experiment_.settings.evaluation.clients == EvaluationClients::final) {
            base_losses_ = client_scores(transport_, experiment_, server_.global, private_files_, false).loss;
        }
        save_round(0);
    }

    /// Goes on after the checkpoint of `point` instead of before_training().
    void restore(const ResumePoint& point) {
        CarriedState state = restore_checkpoint(transport_, experiment_, point);
        server_ = std::move(state.server);
        base_losses_ = std::move(state.base_losses);
        std::array<double, 2> start_and_best{0.0, std::numeric_limits<double>::infinity()};
        if (transport_.is_root()) {
            const auto rows = std::span(point.committed.records).first(static_cast<std::size_t>(point.round) + 1);
            first_ = rows.front().round;
            last_ = rows.back().round;
            for (const RoundRecord& record : rows) {
                if (record.round.eval_loss < start_and_best[1]) start_and_best[1] = record.round.eval_loss;
                bytes_up_ += record.round.bytes_up_true;
                bytes_down_ += record.round.bytes_down_true;
            }
            start_and_best[0] = first_.eval_loss;
        }
        transport_.broadcast_values(start_and_best);
        evaluation_.restore(start_and_best[0], start_and_best[1]);
        checkpoints_.begin_after(point.round);
        first_own_round_ = point.round + 1;
    }

    /// The first round that this process trains.
    [[nodiscard]] std::int64_t first_round() const { return first_own_round_; }

    void one_round(std::int64_t round) {
        Stopwatch watch;
        const Traffic traffic = transport_.traffic();
        const bool looks = is_spectra_round(experiment_.settings, round);
        const std::vector<double> global_before = looks ? server_.global : std::vector<double>();
        RoundContext context = round_context(transport_, experiment_, *experiment_.population, accumulator_,
                                             experiment_.settings, &private_files_);
        if (looks) context.drift = &*drift_;
        const RoundOutcome outcome = run_round(context, round, server_);
        RoundRecord record;
        record.round.round = round;
        fill_from_reports(record.round, outcome, server_.base_delta_bytes);
        server_.base_delta_bytes = outcome.base_delta_bytes;
        const Settings& settings = experiment_.settings;
        if (round == settings.experiment.rounds || round % settings.evaluation.every == 0) {
            Stopwatch evaluation_watch;
            broadcast_adapter_to_all();
            evaluation_.after_round(record.round, server_.global);
            record.round.t_eval_s = evaluation_watch.seconds();
        }
        finish_round(record, traffic, watch, outcome.merge.slots, &outcome, global_before);
        last_ = record.round;
        if (std::isfinite(record.round.t_eval_s)) evaluation_.check_health(record.round);
        if (transport_.is_root()) {
            if (!experiment_.strategy.trains_base()) warnings_.about_slots(outcome, experiment_.settings.lora.rank_max);
            warnings_.about_dropped(outcome);
        }
        save_round(round);
        forget_private_factors(outcome.plan);
    }

    /// The stop that all mpi_ranks agreed on: the unfinished round is discarded, the last complete one saved.
    void stop(const AgreedError& request) {
        terminal_.end_progress();
        agree(transport_, "writing the last checkpoint", [&] {
            if (!files_) return;
            checkpoints_.flush();
            const std::int64_t saved = checkpoints_.saved_round();
            const std::string after =
                saved < 0 ? std::string("before the first evaluation was done") : fmt::format("after round {}", saved);
            const std::string line =
                fmt::format("{} {}: {}; {:.2f} s after the request, longest wait for a look {:.2f} s", utc_now(), after,
                            request.what(), seconds_since_stop_request(), longest_wait_for_look_s());
            add_provenance_line(*files_, "stops", line);
            close_log();
            if (files_->trace) files_->trace->close();
            files_->status.state = RunState::stopped;
            files_->status.round = std::max<std::int64_t>(0, saved);
            files_->status.message = line;
            write_status(files_->folder.status(), files_->status);
            terminal_.info(fmt::format("stopped on request {}; go on with: hetlora run --resume --output {}", after,
                                       files_->folder.path().string()));
        });
    }

    void after_training(double seconds) {
        broadcast_adapter_to_all();
        ClientScores clients;
        if (!base_losses_.empty())
            clients = client_scores(transport_, experiment_, server_.global, private_files_,
                                    /*with_own_rank=*/!experiment_.strategy.trains_base());
        std::vector<GroupRow> groups;
        if (experiment_.settings.evaluation.groups == EvaluationClients::final)
            groups = evaluate_groups(transport_, experiment_, server_.global);
        agree(transport_, "writing the results", [&] {
            if (!files_) return;
            if (!clients.loss.empty()) {
                files_->log.set_client_final(base_losses_, clients.loss);
                files_->log.set_client_column("eval_accuracy_final", clients.accuracy);
                if (!clients.own_rank_loss.empty()) {
                    files_->log.set_client_column("eval_loss_own_rank", clients.own_rank_loss);
                    files_->log.set_client_column("eval_accuracy_own_rank", clients.own_rank_accuracy);
                }
            }
            if (!groups.empty()) files_->log.set_group_final(groups);
            const Settings& settings = experiment_.settings;
            AdapterExport about{.lora_rank = settings.lora.rank_max,
                                .scale = experiment_.global_scale,
                                .base_model = base_model_name(settings.model.path),
                                .dtype = settings.model.precision == Precision::fp64 ? "F64" : "F32",
                                .fan_in_fan_out = experiment_.engine->weights().config.family->transposed,
                                .metadata = adapter_metadata()};
            if (experiment_.head) add_head(about, experiment_.head->shape(), server_.head);
            // Where the base is trained, the last checkpoint is the result.
            if (!experiment_.strategy.trains_base())
                files_->folder.write_adapter(experiment_.layout, server_.global, about);
            checkpoints_.finish(carried_state(experiment_, settings.experiment.rounds, server_, base_losses_));
            close_log();
            if (files_->trace) files_->trace->close();
        });
        std::vector<Sample> samples;  // on root
        agree(transport_, "generating samples", [&] {
            if (!files_ || experiment_.settings.evaluation.samples == 0) return;
            samples = make_samples(experiment_, server_.global);
            write_samples(files_->folder.samples(), samples);
        });
        agree(transport_, "marking the run as complete", [&] {
            if (!files_) return;
            const Settings& settings = experiment_.settings;
            files_->status.state = RunState::done;
            files_->status.seconds_left = 0.0;
            write_status(files_->folder.status(), files_->status);
            files_->folder.mark_complete(fmt::format("{} rounds", settings.experiment.rounds));
        });
        terminal_.end_progress();
        if (transport_.is_root()) {
            terminal_.info(closing_table(experiment_, first_, last_,
                                         {.bytes_up = bytes_up_, .bytes_down = bytes_down_, .seconds = seconds}));
        }
        if (!groups.empty()) terminal_.info(group_table(groups));
        print_samples(samples, terminal_);
    }

private:
    void broadcast_adapter_to_all() {
        broadcast_adapter(transport_, server_.global, experiment_.settings.model.precision);
        if (!experiment_.head) return;
        broadcast_adapter(transport_, server_.head, experiment_.settings.model.precision);
        experiment_.head->set(0, server_.head);
    }

    /// What the adapter's file says of itself; where it is not the whole result, that too.
    [[nodiscard]] std::map<std::string, std::string> adapter_metadata() const {
        std::map<std::string, std::string> metadata{{"run_id", files_->status.run_id}};
        if (experiment_.strategy.updates_base()) {
            metadata["note"] =
                "this method changes the base: the adapter alone is not the model; the changed matrices "
                "are base/* in checkpoint/round_*/state.safetensors";
        } else if (experiment_.strategy.is_personal()) {
            metadata["note"] = "clients keep their own B (private/ in the run's folder): here B is 0";
        }
        return metadata;
    }

    /// The weights after a round, as a Hugging Face folder without a tokenizer. @pre on root
    void trace_weights(std::int64_t round) const {
        save_weights(experiment_.engine->weights(), files_->folder.trace_weights() / fmt::format("round_{:06}", round),
                     activation_dtype(experiment_.settings.model.precision));
    }

    /// Versions of private factors that no kept checkpoint can name.
    void forget_private_factors(const RoundPlan& plan) {
        if (!files_ || !experiment_.strategy.is_personal()) return;
        const auto kept = checkpoint_rounds(files_->folder.checkpoints());
        if (!kept.empty()) private_files_.forget_before(plan, kept.front());
    }

    /// Completes the row of a round and commits it on root: log first, then the second copy, then the status.
    void finish_round(RoundRecord& record, const Traffic& before, const Stopwatch& watch, const SlotStatistics& slots,
                      const RoundOutcome* outcome, std::span<const double> global_before) {
        std::array<std::int64_t, 2> moved{transport_.traffic().up_bytes - before.up_bytes,
                                          transport_.traffic().down_bytes - before.down_bytes};
        std::array<std::int64_t, 2> peak{peak_memory_bytes(),
                                         static_cast<std::int64_t>(1e6 * longest_wait_for_look_s())};
        transport_.all_sum(moved);
        transport_.all_max(peak);
        RoundRow& row = record.round;
        agree(transport_, "writing the log", [&] {
            if (!files_) return;
            fill_from_global(row, experiment_, server_.global, slots);
            row.bytes_up_padded = moved[0];
            row.bytes_down_padded = moved[1];
            row.peak_memory_bytes = peak[0];
            record.slots = {.energy = slots.energy, .n_contributors = slots.n_contributors};
            if (outcome != nullptr) record.participation = participation_rows(*outcome);
            if (outcome != nullptr && is_spectra_round(experiment_.settings, row.round)) {
                record.layers = layer_rows(experiment_, global_before, server_.global, outcome->client_cosines);
            }
            Stopwatch io_watch;
            if (files_->trace) {
                if (experiment_.strategy.trains_base()) trace_weights(row.round);
                if (outcome != nullptr) {
                    write_trace(*files_->trace, experiment_, *outcome, server_, row.round);
                } else {
                    files_->trace->append_global(0, server_.global, server_.head);
                }
            }
            row.t_io_s =
                io_s_ +
                io_watch.seconds();  // the log's own time is known after it is written: it counts in the next row
            row.t_round_s = watch.seconds();
            io_watch.lap();
            files_->log.append_round(row, record.participation, record.slots, record.layers);
            files_->progress.append(record);
            files_->status.round = row.round;
            files_->status.train_loss = row.train_loss;
            files_->status.eval_loss = row.eval_loss;
            const auto done = static_cast<double>(std::max<std::int64_t>(1, row.round - first_own_round_ + 1));
            files_->status.seconds_left =
                session_.seconds() / done * static_cast<double>(files_->status.rounds - row.round);
            write_status(files_->folder.status(), files_->status);
            io_s_ = io_watch.seconds();
        });
        if (transport_.is_root()) {
            warnings_.about_lead_time(experiment_.settings.checkpoint, 1e-6 * static_cast<double>(peak[1]),
                                      checkpoints_.longest_s());
        }
        bytes_up_ += row.bytes_up_true;
        bytes_down_ += row.bytes_down_true;
        if (outcome == nullptr) return;
        terminal_.progress({.done = row.round,
                            .total = experiment_.settings.experiment.rounds,
                            .train_loss = row.train_loss,
                            .eval_loss = row.eval_loss,
                            .tokens_per_s = static_cast<double>(row.tokens) / row.t_round_s,
                            .tokens = experiment_.head ? "texts" : "tokens"});
    }

    /// After a complete round: a checkpoint where one is due, else a copy in memory, for a stop.
    void save_round(std::int64_t round) {
        agree(transport_, "writing a checkpoint", [&] {
            if (!files_) return;
            std::error_code ignored;
            const bool asked = std::filesystem::remove(files_->folder.checkpoint_request(), ignored);
            checkpoints_.after_round(carried_state(experiment_, round, server_, base_losses_), asked);
            io_s_ += checkpoints_.take_seconds();
            if (std::filesystem::remove(files_->folder.stop_request(), ignored)) request_stop();
        });
    }

    /// @pre on root
    void close_log() {
        const std::string complaint = files_->log.close();
        if (!complaint.empty()) terminal_.warn("the log is written out, but " + complaint);
    }

    Transport& transport_;
    Experiment& experiment_;
    Terminal& terminal_;
    std::optional<RunFiles>& files_;
    AdapterInitLaw init_;
    UploadAccumulator accumulator_;
    RunCheckpoints checkpoints_;        ///< root's
    std::optional<UpdateDrift> drift_;  ///< with log.spectra
    ServerState server_;
    PrivateFiles private_files_;
    RunEvaluation evaluation_;
    std::vector<double> base_losses_;
    RoundRow first_;
    RoundRow last_;
    double io_s_ = 0.0;
    std::int64_t bytes_up_ = 0;
    std::int64_t bytes_down_ = 0;
    RunWarnings warnings_;
    std::int64_t first_own_round_ = 1;
    Stopwatch session_;
};

/// What status.json says of a run that an error ended; the rounds committed before stay as they are.
void mark_failed(std::optional<RunFiles>& files, const std::string& text) {
    if (!files) return;
    try {
        files->status.state = RunState::failed;
        files->status.message = text;
        write_status(files->folder.status(), files->status);
    } catch (const Error&) {  // the first error is the one to tell
    }
}

}  // namespace

int run_experiment(Transport& transport, Experiment& experiment, Terminal& terminal, const std::string& command_line,
                   ResumePoint& point) {
    const Stopwatch watch;
    std::optional<RunFiles> files;
    agree(transport, "opening the run folder", [&] {
        if (!transport.is_root()) return;
        if (point.folder) check_same_run(point, experiment);
        files.emplace(point.checkpoint ? resume_files(experiment, transport, command_line, point)
                                       : create_files(experiment, transport, command_line, std::move(point.folder)));
    });
    for (const auto& note : std::exchange(point.notes, {})) terminal.info(note);
    Run run(transport, experiment, terminal, files);
    try {
        if (point.round >= 0) {
            run.restore(point);
            terminal.info(fmt::format("going on after round {}", point.round));
        } else {
            run.before_training();
        }
        terminal.start_progress("round", run.first_round() - 1);
        for (std::int64_t round = run.first_round(); round <= experiment.settings.experiment.rounds; ++round) {
            run.one_round(round);
        }
        run.after_training(watch.seconds());
    } catch (const AgreedError& error) {
        if (error.code() == ExitCode::stopped) {
            run.stop(error);
            return static_cast<int>(ExitCode::stopped);
        }
        terminal.end_progress();
        mark_failed(files, error.what());
        throw;
    } catch (const std::exception& error) {
        terminal.end_progress();
        mark_failed(files, error.what());
        throw;
    }
    return static_cast<int>(ExitCode::ok);
}

}  // namespace hetlora
