// Keys that say what is measured, where it runs and where it is written, and those of pretraining.
#include "hetlora/base/stop_request.hpp"
#include "schema_builder.hpp"
#include "schema_rows.hpp"

namespace hetlora::config_detail {
namespace {

void add_evaluation(std::vector<ConfigKey>& rows) {
    using S = EvaluationSettings;
    SectionBuilder<S> section("evaluation", &Settings::evaluation, rows);
    section.integer(
        {"every", Identity::run, "rounds between evaluations (the first and the last state are always evaluated)"},
        &S::every, at_least(1));
    section.names({"metrics", Identity::run, "metrics beside the loss"}, &S::metrics,
                  {"perplexity", "accuracy", "macro_f1", "choice_accuracy", "rouge1", "rougeL", "exact_match"}, "",
                  true);
    section.integer({"sequences", Identity::run, "evaluation windows, chosen by hash; 0 = all"}, &S::sequences,
                    at_least(0));
    section.choice({"part", Identity::run, "part of the data: valid for choosing, test for the final number only"},
                   &S::part);
    section.choice({"test", Identity::run,
                    "evaluation on the test part beside `part`: after the last round; best: also after every round "
                    "that is the best so far"},
                   &S::test);
    section.choice({"clients", Identity::run, "final: at the end also every client's loss on its own held-out data"},
                   &S::clients);
    section.choice({"groups", Identity::run, "final: at the end also the metrics of every group of clients"},
                   &S::groups);
    section.choice({"choice_score", Identity::run,
                    "how the likelihood of an answer is counted among the choices: sum of its tokens, or their mean"},
                   &S::choice_score);
    section.integer({"text_sequences", Identity::run,
                     "conversations whose replies are generated for rouge1, rougeL and exact_match; 0 = all"},
                    &S::text_sequences, at_least(0));
    section.integer({"text_tokens", Identity::run, "longest of those replies in tokens"}, &S::text_tokens, at_least(1));
    section.integer({"samples", Identity::none, "generated replies printed at the end"}, &S::samples, at_least(0));
    section.integer({"sample_tokens", Identity::none, "longest generated reply in tokens"}, &S::sample_tokens,
                    at_least(1));
    section.number({"divergence_factor", Identity::run,
                    "an evaluation loss above this many times the first one stops the run (exit code 5); 0 = never"},
                   &S::divergence_factor, at_least(0));
}

void add_compute(std::vector<ConfigKey>& rows) {
    using S = ComputeSettings;
    SectionBuilder<S> section("compute", &Settings::compute, rows);
    section.choice({"device", Identity::none, "auto = cuda where there is one"}, &S::device);
    section.integer(
        {"threads", Identity::none, "threads of an MPI rank; 0 = cores of the node / MPI ranks on the node"},
        &S::threads, {.low = 0, .high = 4096});
    section.integer_or_auto(
        {"pack_tokens", Identity::none, "tokens that are trained in one pass; auto (0) = chosen by the program"},
        &S::pack_tokens, at_least(0));
    section.choice({"vector", Identity::none, "vector instructions of the CPU kernels; auto = the best this CPU has"},
                   &S::vector);
    section.choice(
        {"gemm", Identity::none,
         "matrix products of the frozen weights; auto = the fastest, measured at start; tiles = the program's "
         "own kernel, fp32 and fp64; widened = bf16 on a CPU without bf16"},
        &S::gemm);
    section.choice({"recompute", Identity::none,
                    "layer: keep only each layer's input and run it again in the backward; less memory, more time"},
                   &S::recompute);
    section.number(
        {"memory_gib", Identity::none, "memory that an MPI rank may use; 0 = its share of what is free on the node"},
        &S::memory_gib, at_least(0));
}

void add_comm(std::vector<ConfigKey>& rows) {
    using S = CommSettings;
    SectionBuilder<S> section("comm", &Settings::comm, rows);
    section.choice(
        {"reduction", Identity::run, "exact: the same bits for any number of MPI ranks; fast: sums in MPI's order"},
        &S::reduction);
}

void add_checkpoint(std::vector<ConfigKey>& rows) {
    using S = CheckpointSettings;
    SectionBuilder<S> section("checkpoint", &Settings::checkpoint, rows);
    section.integer({"every", Identity::none, "rounds between checkpoints; 0 = only when stopped and at the end"},
                    &S::every, at_least(0));
    section.integer({"keep", Identity::none, "checkpoints kept while the run goes on; a finished one keeps the last"},
                    &S::keep, at_least(1));
    section.names({"signals", Identity::none,
                   "signals that stop the run in order: the last complete round is saved, the exit code is 75"},
                  &S::signals, stop_signal_names(), "", true);
    section.number({"lead_s", Identity::none,
                    "seconds between such a signal and the end of the job; a warning tells when that is too short"},
                   &S::lead_s, at_least(0));
}

void add_log(std::vector<ConfigKey>& rows) {
    using S = LogSettings;
    SectionBuilder<S> section("log", &Settings::log, rows);
    section.integer({"spectra", Identity::none,
                     "rounds between looks at every adapted matrix (norms, singular values, drift: /layers of run.h5; "
                     "after the last round, too); 0 = never"},
                    &S::spectra, at_least(0));
}

void add_output(std::vector<ConfigKey>& rows) {
    using S = OutputSettings;
    SectionBuilder<S> section("output", &Settings::output, rows);
    section.path({"dir", Identity::none, "the run's folder; empty = results/<experiment.name>"}, &S::dir);
    section.flag({"trace", Identity::none, "write trace.h5, from which `hetlora audit` replays the run"}, &S::trace);
}

void add_pretrain(std::vector<ConfigKey>& rows) {
    using S = PretrainSettings;
    SectionBuilder<S> section("pretrain", &Settings::pretrain, rows);
    constexpr auto identity = Identity::pretrain;
    const Range beta = {.low = 0, .high = 1, .high_open = true};
    section.path({"data", Identity::none, "prepared data file (.h5) to train a base on"}, &S::data).required_for =
        RequiredFor::pretrain;
    section.path({"output", Identity::none, "folder for the trained base"}, &S::output).required_for =
        RequiredFor::pretrain;
    section.integer({"hidden_size", identity, "width of the model; a multiple of heads"}, &S::hidden_size, at_least(1));
    section.integer({"layers", identity, "transformer layers"}, &S::layers, at_least(1));
    section.integer({"heads", identity, "attention heads; a multiple of kv_heads"}, &S::heads, at_least(1));
    section.integer({"kv_heads", identity, "key and value heads"}, &S::kv_heads, at_least(1));
    section.integer({"intermediate_size", identity, "width of the feed-forward part"}, &S::intermediate_size,
                    at_least(1));
    section.integer({"sequence_length", identity, "tokens of a training sequence"}, &S::sequence_length, at_least(2));
    section.integer({"batch_tokens", identity, "tokens of a step; at least one sequence"}, &S::batch_tokens,
                    at_least(1));
    section.integer({"micro_batch", identity, "sequences of one pass; a step is made of as many passes as it needs"},
                    &S::micro_batch, at_least(1));
    section.integer({"steps", identity, "optimiser steps"}, &S::steps, at_least(1));
    section.number({"learning_rate", identity, "highest learning rate"}, &S::learning_rate, above(0));
    section.integer({"warmup_steps", identity, "steps of linear warm-up"}, &S::warmup_steps, at_least(0));
    section.number({"final_fraction", identity, "share of the learning rate that the schedule ends at"},
                   &S::final_fraction, {.low = 0, .high = 1});
    section.number({"weight_decay", identity, "decoupled weight decay"}, &S::weight_decay, at_least(0));
    section.number({"clip_norm", identity, "largest gradient norm; 0 = off"}, &S::clip_norm, at_least(0));
    section.number({"beta1", identity, "decay of AdamW's first moment"}, &S::beta1, beta);
    section.number({"beta2", identity, "decay of AdamW's second moment"}, &S::beta2, beta);
    section.integer({"checkpoint_every", Identity::none, "steps between checkpoints; 0 = at the end only"},
                    &S::checkpoint_every, at_least(0));
    section.integer({"eval_every", Identity::none, "steps between evaluations; 0 = at the end only"}, &S::eval_every,
                    at_least(0));
}

}  // namespace

void add_environment_rows(std::vector<ConfigKey>& rows) {
    add_evaluation(rows);
    add_compute(rows);
    add_comm(rows);
    add_checkpoint(rows);
    add_log(rows);
    add_output(rows);
    add_pretrain(rows);
}

}  // namespace hetlora::config_detail
