// Keys that say what is computed: experiment, model, data, lora, local, strategy.
#include "hetlora/base/hub_cache.hpp"
#include "hetlora/config/strategy_names.hpp"
#include "schema_builder.hpp"
#include "schema_rows.hpp"

namespace hetlora::config_detail {
namespace {

// Puts a further check in front of a key's parser.
template <typename Check>
void check_first(ConfigKey& key, Check check) {
    key.set = [check, set = std::move(key.set)](Settings& settings, std::string_view text) {
        const std::optional<std::string> problem = check(text);
        return problem ? problem : set(settings, text);
    };
}

std::optional<std::string> folder_name_problem(std::string_view text) {
    if (text.empty() || text == "." || text == ".." || text.find('/') != std::string_view::npos) {
        return fmt::format("'{}' cannot name the run's folder; use letters, digits, '-', '_' and '.'", text);
    }
    return {};
}

void add_experiment(std::vector<ConfigKey>& rows) {
    using S = ExperimentSettings;
    SectionBuilder<S> section("experiment", &Settings::experiment, rows);
    auto& name = section.text(
        {"name", Identity::none, "name of the run; its folder is results/<name> unless output.dir says otherwise"},
        &S::name);
    check_first(name, folder_name_problem);
    section.text({"tags", Identity::none, "free words for finding the run again"}, &S::tags);
    section.integer({"rounds", Identity::rounds, "rounds to train"}, &S::rounds, at_least(0));
    section.integer({"clients_per_round", Identity::run, "clients that train in a round; 0 = all"},
                    &S::clients_per_round, at_least(0));
    section.seed({"seed", Identity::run_pretrain, "seed of everything that is drawn by chance"}, &S::seed, false);
    section.seed({"seed_init", Identity::run_pretrain, "seed of the initial adapter; \"seed\" = as experiment.seed"},
                 &S::seed_init, true);
    section.seed({"seed_ranks", Identity::run, "seed of the clients' lora_ranks"}, &S::seed_ranks, true);
    section.seed({"seed_sampling", Identity::run, "seed of which clients take part in which round"}, &S::seed_sampling,
                 true);
    section.seed({"seed_partition", Identity::run, "seed of the split of data over clients"}, &S::seed_partition, true);
    section.seed({"seed_data", Identity::run_pretrain, "seed of the order of training data"}, &S::seed_data, true);
}

void add_model(std::vector<ConfigKey>& rows) {
    using S = ModelSettings;
    SectionBuilder<S> section("model", &Settings::model, rows);
    auto& path =
        section.path({"path", Identity::none,
                      "frozen base model: a folder, a GGUF file, or org/name of one in the local Hugging Face cache"},
                     &S::path);
    path.required_for = RequiredFor::run;
    // A folder of that name wins; where neither is there, reading the model says so, with the command to fetch it.
    path.set = [set = std::move(path.set)](Settings& settings, std::string_view text) {
        std::error_code error;
        if (!is_hub_id(text) || std::filesystem::exists(text, error)) return set(settings, text);
        const auto snapshot = hub_snapshot(text);
        return snapshot ? set(settings, snapshot->string()) : set(settings, text);
    };
    section.path({"adapter", Identity::none, "PEFT adapter folder to start from; empty: a fresh adapter (lora.init)"},
                 &S::adapter);
    section.choice({"task", Identity::run,
                    "what is learnt: the next token, or the label of a text by a head that is trained beside the "
                    "adapters (data of prepare --task classification)"},
                   &S::task);
    section.choice({"precision", Identity::run_pretrain,
                    "floating-point type of the base and of training (float32 and float64 are read, too)"},
                   &S::precision);
}

void add_data(std::vector<ConfigKey>& rows) {
    using S = DataSettings;
    SectionBuilder<S> section("data", &Settings::data, rows);
    section.path({"path", Identity::none, "prepared data file (.h5)"}, &S::path).required_for = RequiredFor::run;
    section.integer({"sequence_length", Identity::run, "tokens of a training window"}, &S::sequence_length,
                    at_least(1));
    section.integer({"overlap", Identity::run,
                     "tokens that a window shares with the next one of its conversation; below sequence_length"},
                    &S::overlap, at_least(0));
    section.choice(
        {"partition", Identity::run,
         "clients: natural = the people in the data; or made up: even, skewed by class, or skewed by quantity"},
        &S::partition);
    section.integer({"partition_clients", Identity::run, "clients to make up; not for natural"}, &S::partition_clients,
                    at_least(0));
    section.number(
        {"dirichlet_alpha", Identity::run, "skew of the dirichlet partition: small = very different clients"},
        &S::dirichlet_alpha, above(0));
    section.choice({"dirichlet_by", Identity::run, "classes of the dirichlet partition: the data's labels or groups"},
                   &S::dirichlet_by);
    section.number({"quantity_sigma", Identity::run,
                    "skew of the quantity partition: standard deviation of the log of a client's share"},
                   &S::quantity_sigma, above(0));
    section.integer({"min_windows", Identity::run, "clients with fewer training windows never take part"},
                    &S::min_windows, at_least(1));
    section.integer({"max_windows_per_client", Identity::run, "training windows used of a client; 0 = all"},
                    &S::max_windows_per_client, at_least(0));
}

void add_lora(std::vector<ConfigKey>& rows) {
    using S = LoraSettings;
    SectionBuilder<S> section("lora", &Settings::lora, rows);
    // Those of all families of models; which of them this model has is known when it is read (model/families.hpp).
    const std::vector<std::string> matrices = {"q_proj",
                                               "k_proj",
                                               "v_proj",
                                               "o_proj",
                                               "gate_proj",
                                               "up_proj",
                                               "down_proj",
                                               "c_attn",
                                               "attn.c_proj",
                                               "c_fc",
                                               "mlp.c_proj",
                                               "query",
                                               "key",
                                               "value",
                                               "attention.output.dense",
                                               "intermediate.dense",
                                               "output.dense",
                                               "q_lin",
                                               "k_lin",
                                               "v_lin",
                                               "out_lin",
                                               "lin1",
                                               "lin2"};
    section.names({"targets", Identity::run, "matrices of every layer that carry an adapter, by the family's names"},
                  &S::targets, matrices, "all-linear", false);
    section.choice({"rank_distribution", Identity::run,
                    "how clients get their lora_rank: fixed = rank_max for all; powerlaw: p(r) ~ r^(rank_power-1)"},
                   &S::rank_distribution);
    section.integer({"rank_min", Identity::run, "smallest lora_rank; pruning never goes below it"}, &S::rank_min,
                    at_least(1));
    section.integer({"rank_max", Identity::run, "largest lora_rank; that of the global adapter"}, &S::rank_max,
                    at_least(1));
    section.number({"rank_power", Identity::run, "exponent of the power laws: smaller = more small lora_ranks"},
                   &S::rank_power, above(0));
    section.integers({"rank_list", Identity::run, "lora_ranks for rank_distribution = list"}, &S::rank_list,
                     at_least(1));
    section.path({"rank_file", Identity::none, "file of lora_ranks for rank_distribution = file"}, &S::rank_file);
    section.number({"scale", Identity::run, "factor s of s*B*A for scale_rule = constant"}, &S::scale, above(0));
    section.choice(
        {"scale_rule", Identity::run,
         "constant: s = scale; alpha_over_rank: lora_alpha / lora_rank; rslora: lora_alpha / sqrt(lora_rank)"},
        &S::scale_rule);
    section.number({"lora_alpha", Identity::run, "numerator of the other two scale rules"}, &S::lora_alpha, above(0));
    section.number({"dropout", Identity::run, "probability with which an adapter's input is dropped in training"},
                   &S::dropout, {.low = 0, .high = 1, .high_open = true});
    section.choice({"init", Identity::run, "distribution of the initial A (B starts at 0)"}, &S::init);
}

void add_local(std::vector<ConfigKey>& rows) {
    using S = LocalSettings;
    SectionBuilder<S> section("local", &Settings::local, rows);
    const Range beta = {.low = 0, .high = 1, .high_open = true};
    section.integer({"steps", Identity::run, "optimiser steps of a client in a round; set steps or epochs, not both"},
                    &S::steps, at_least(0));
    section.integer({"epochs", Identity::run, "passes of a client over its data in a round, instead of steps"},
                    &S::epochs, at_least(0));
    section.integer({"batch_size", Identity::run, "windows of a step"}, &S::batch_size, at_least(1));
    section.choice({"optimizer", Identity::run, "optimiser of the clients, started afresh in every round"},
                   &S::optimizer);
    section.number({"learning_rate", Identity::run, "learning rate (before schedule)"}, &S::learning_rate, above(0));
    section.number({"head_learning_rate", Identity::run,
                    "learning rate of a classification head (before schedule); 0 = as learning_rate"},
                   &S::head_learning_rate, at_least(0));
    section.choice({"lr_schedule", Identity::run, "course of the learning rate over rounds"}, &S::lr_schedule);
    section.integer({"lr_warmup_rounds", Identity::run, "rounds of linear warm-up"}, &S::lr_warmup_rounds, at_least(0));
    section.number({"lr_final_fraction", Identity::run, "share of the learning rate that linear and cosine end at"},
                   &S::lr_final_fraction, {.low = 0, .high = 1});
    section.number({"weight_decay", Identity::run, "weight decay (decoupled for adamw)"}, &S::weight_decay,
                   at_least(0));
    section.number({"clip_norm", Identity::run, "largest gradient norm of a client; 0 = off"}, &S::clip_norm,
                   at_least(0));
    section.number({"adam_beta1", Identity::run, "decay of AdamW's first moment"}, &S::adam_beta1, beta);
    section.number({"adam_beta2", Identity::run, "decay of AdamW's second moment"}, &S::adam_beta2, beta);
    section.number({"adam_epsilon", Identity::run, "AdamW's epsilon"}, &S::adam_epsilon, above(0));
    section.choice(
        {"on_nonfinite", Identity::run, "a client with a non-finite loss: leave it out of the round, or stop the run"},
        &S::on_nonfinite);
}

void add_strategy(std::vector<ConfigKey>& rows) {
    using S = StrategySettings;
    SectionBuilder<S> section("strategy", &Settings::strategy, rows);
    section.text({"preset", Identity::run, "method: one row of the table that `hetlora strategies` prints"}, &S::preset,
                 strategy_names());
    section.path({"plugin", Identity::none, "own select, weight, merge or penalty: a .py file or a shared library"},
                 &S::plugin);
    section.policy({"slot_select", Identity::run, "which lora_rank slots of the global adapter a client trains"},
                   &S::slot_select);
    section.policy({"receive", Identity::run, "a client receives those slots, or all with the others frozen"},
                   &S::receive);
    section.policy({"slot_scale", Identity::run, "sketch: a client's scale times rank_max / lora_rank"},
                   &S::slot_scale);
    section.policy({"trainable", Identity::run,
                    "factors that clients train; alternate: B in odd rounds, A in even; base: no adapter, all weights"},
                   &S::trainable);
    section.policy({"local_extra", Identity::run,
                    "what is added to local training: nothing, HetLoRA's tail regulariser and pruning, or a pull to "
                    "the received adapter"},
                   &S::local_extra);
    section.policy({"shared_factors", Identity::run, "factors that are averaged; a: every client keeps its own B"},
                   &S::shared_factors);
    section.policy({"client_weight", Identity::run, "weight of a client in the average"}, &S::client_weight);
    section.policy({"merge", Identity::run,
                    "average the factors, or the products (one SVD per matrix), or stack the factors into the base"},
                   &S::merge);
    section.policy({"slot_norm", Identity::run,
                    "what a slot's sum is divided by: the weights of all clients, of those that have the slot, or of "
                    "those that reach its rank level; replicate: missing slots are filled from the largest clients"},
                   &S::slot_norm);
    section.policy({"aggregate", Identity::run, "average the clients' parameters, or their changes"}, &S::aggregate);
    section.policy({"factor_split", Identity::run, "merge = product: the factor that carries the singular values"},
                   &S::factor_split);
    section.policy({"base_update", Identity::run,
                    "what goes into the base after a round: nothing, the stack, its leading directions, or what the "
                    "average of the factors misses"},
                   &S::base_update);
    section.policy({"server_optimizer", Identity::run, "what the server does with the averaged change"},
                   &S::server_optimizer);
    section.policy({"rank_schedule", Identity::run, "annealing: one cap on all lora_ranks, falling over the rounds"},
                   &S::rank_schedule);
    section.policy({"keep_uncovered", Identity::run,
                    "slots that no client of the round has: set to 0, keep the last value, or start afresh"},
                   &S::keep_uncovered);
    section.number(
        {"keep_energy", Identity::run, "share of the squared singular values that base_update = truncated keeps"},
        &S::keep_energy, {.low = 0, .high = 1, .low_open = true});
    section.number({"prox_mu", Identity::run, "pull of local_extra = proximal: mu/2 times the squared distance"},
                   &S::prox_mu, at_least(0));
    section.number({"server_learning_rate", Identity::run, "step of the server optimiser"}, &S::server_learning_rate,
                   above(0));
    section.number({"server_beta1", Identity::run, "decay of the server's first moment"}, &S::server_beta1,
                   {.low = 0, .high = 1, .high_open = true});
    section.number({"server_beta2", Identity::run, "decay of the server's second moment (adam)"}, &S::server_beta2,
                   {.low = 0, .high = 1, .high_open = true});
    section.number({"server_epsilon", Identity::run, "added to the root of the second moment (adam)"},
                   &S::server_epsilon, above(0));
    section.integers({"rank_levels", Identity::run,
                      "rank levels of slot_norm = levels; empty: the different lora_ranks of the clients"},
                     &S::rank_levels, at_least(1));
    section.number({"anneal_start", Identity::run, "share of the rounds before rank_schedule = annealing falls"},
                   &S::anneal_start, {.low = 0, .high = 1});
    section.number({"prune_gamma", Identity::run, "share of the slots that pruning keeps"}, &S::prune_gamma,
                   {.low = 0, .high = 1, .low_open = true});
    section.number({"prune_lambda", Identity::run, "weight of the tail regulariser"}, &S::prune_lambda, at_least(0));
    section.choice({"prune_reference", Identity::run,
                    "tail norm to compare with: that of the adapter received this round, or of the first one received"},
                   &S::prune_reference);
    section.choice({"prune_rounding", Identity::run, "rounding of prune_gamma * lora_rank"}, &S::prune_rounding);
    section.number({"tail_norm_epsilon", Identity::run, "added under the root of the tail norms"},
                   &S::tail_norm_epsilon, at_least(0));
    section.choice({"weight_scope", Identity::run, "sparsity weights: one per client, or one per client and matrix"},
                   &S::weight_scope);
    section.choice({"weight_norm", Identity::run, "sparsity weights: how the norms of the matrices are joined"},
                   &S::weight_norm);
    section.flag({"weight_includes_scale", Identity::run, "sparsity weights: norms of s*B*A instead of B*A"},
                 &S::weight_includes_scale);
}

}  // namespace

void add_experiment_rows(std::vector<ConfigKey>& rows) {
    add_experiment(rows);
    add_model(rows);
    add_data(rows);
    add_lora(rows);
    add_local(rows);
    add_strategy(rows);
}

}  // namespace hetlora::config_detail
