#include "hetlora/app/commands.hpp"

#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "hetlora/app/bench.hpp"
#include "hetlora/app/build_info.hpp"
#include "hetlora/app/evaluate_command.hpp"
#include "hetlora/app/experiment.hpp"
#include "hetlora/app/export_run.hpp"
#include "hetlora/app/info.hpp"
#include "hetlora/app/judged_adapter.hpp"
#include "hetlora/app/machine.hpp"
#include "hetlora/app/plan_run.hpp"
#include "hetlora/app/repair.hpp"
#include "hetlora/app/resume.hpp"
#include "hetlora/app/strategies_json.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/stop_request.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/comm/agree.hpp"
#include "hetlora/config/load.hpp"
#include "hetlora/config/resolved.hpp"
#include "hetlora/config/schema.hpp"
#include "hetlora/model/generate.hpp"
#include "hetlora/sweep/commands.hpp"
#include "hetlora/train/pretrain.hpp"

namespace hetlora {
namespace {

const CommandVerb& verb_of(const CommandLine& command) {
    for (const CommandVerb& verb : command_verbs()) {
        if (verb.name == command.verb) return verb;
    }
    throw bug_error("verb {} is not in the table", command.verb);
}

/// Replaces this process by `python -m hetlora VERB ...`.
int hand_over_to_python(const CommandLine& command) {
    std::vector<std::string> candidates;
    if (const char* given = std::getenv("HETLORA_PYTHON")) {
        candidates = {given};
    } else {
        const std::string own = std::string(build_info::source_dir) + "/.venv/bin/python";
        if (access(own.c_str(), X_OK) == 0) candidates.push_back(own);
        candidates.emplace_back("python3");
    }
    std::vector<std::string> words{candidates.front(), "-m", "hetlora", command.verb};
    words.insert(words.end(), command.python_args.begin(), command.python_args.end());
    const std::string probe = "'" + candidates.front() + "' -c 'import hetlora.__main__' >/dev/null 2>&1";
    if (std::system(probe.c_str()) != 0) {
        throw environment_error(
            "`hetlora {}` is part of the Python package, which {} does not have: `{} -m pip install {}/analysis`, or "
            "name another Python in HETLORA_PYTHON",
            command.verb, candidates.front(), candidates.front(), build_info::source_dir);
    }
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    execvp(arguments.front(), arguments.data());
    throw environment_error("cannot start {}", candidates.front());
}

/// MPI ranks with other settings than root's would wait for each other for ever, or mix two experiments.
void check_same_settings(Transport& transport, const Settings& settings, bool resume) {
    // Without paths, which may differ from host to host; with all that changes the order of collective calls.
    const std::string mine = agree(transport, "hashing the settings", [&] {
        return fmt::format("{} {} {} {} {}", identity_hash(settings, "", ""), settings.experiment.rounds,
                           settings.output.trace, settings.log.spectra, resume);
    });
    std::string root = mine;
    std::array<std::int64_t, 1> size{std::ssize(root)};
    transport.broadcast_values(size);
    root.resize(static_cast<std::size_t>(size[0]));
    transport.broadcast_values(root);
    agree(transport, "comparing the settings", [&] {
        if (root != mine) {
            throw usage_error(
                "MPI rank {} read other settings than MPI rank 0: start all of them with the same command line and the "
                "same content of --config, of lora.rank_file and of strategy.plugin",
                transport.mpi_rank());
        }
    });
}

/// `run --resume --output DIR` without --config means the config of the run in DIR.
std::optional<std::filesystem::path> config_of_run(const CommandLine& command) {
    if (!command.resume || command.config || !command.output) return command.config;
    const auto own = *command.output / "config.ini";
    std::error_code error;
    if (std::filesystem::exists(own, error)) return own;
    throw usage_error(
        "there is no run in '{}' to go on with (no config.ini): check --output, or start one with --config",
        command.output->string());
}

Settings load(Transport& transport, const CommandLine& command, RequiredFor task) {
    Settings settings = agree(transport, "reading the config", [&] {
        if (const auto own = config_of_run(command)) return load_settings(own, command.overrides, task);
        if (command.config || task != RequiredFor::run) return load_settings(command.config, command.overrides, task);
        return load_settings_text(build_info::demo_config, "the embedded configs/demo.ini", command.overrides, task);
    });
    check_same_settings(transport, settings, command.resume);
    return settings;
}

int run_run(Transport& transport, const CommandLine& command, const std::string& command_text, Terminal& terminal) {
    const Settings given = load(transport, command, RequiredFor::run);
    const StopSignals signals(given.checkpoint.signals);
    Settings settings = given;
    ResumePoint point;
    if (command.resume) point = find_resume_point(transport, settings);
    if (point.complete) {
        for (const auto& note : point.notes) terminal.info(note);
        return static_cast<int>(ExitCode::ok);
    }
    Experiment experiment = build_experiment(transport, settings);
    for (const auto& warning : experiment.choice.warnings) terminal.warn(warning);
    terminal.info(describe_experiment(experiment, transport));
    return run_experiment(transport, experiment, terminal, command_text, point);
}

/// For job scripts: a launcher may end with 0 though it started nothing. Written in place, since a renamed file may be
/// seen late on a network file system. @return the code
int leave_exit_code(Transport& transport, const CommandLine& command, int code) {
    agree(transport, "writing --exit-file", [&] {
        if (!command.exit_file || !transport.is_root()) return;
        std::ofstream file(*command.exit_file);
        file << code << '\n';
        if (!file.flush()) {
            throw environment_error(
                "cannot write the exit code to --exit-file {}: check the folder, free space and quota",
                command.exit_file->string());
        }
    });
    return code;
}

int run_check(Transport& transport, const CommandLine& command, Terminal& terminal) {
    if (command.reference) {
        if (transport.is_root()) std::fputs(reference_ini().c_str(), stdout);
        return 0;
    }
    const Settings settings = load(transport, command, RequiredFor::run);
    const Experiment experiment = build_experiment(transport, settings);
    terminal.info(resolved_ini(experiment.settings));
    terminal.info(describe_experiment(experiment, transport));
    terminal.info("Everything fits together; nothing was trained or written.");
    return 0;
}

/// Verbs that know next tokens only. @throws AgreedError
void refuse_classification(Transport& transport, const Settings& settings, std::string_view verb) {
    agree(transport, "reading the config", [&] {
        if (settings.model.task != Task::classification) return;
        throw usage_error("{} is not implemented for model.task = classification: what a run measures is in its run.h5",
                          verb);
    });
}

/// `generate --prompt 1,2,3`: goes on greedily. Token ids go in and out, since the program has no tokenizer; the data's
/// vocabulary gives the text.
int run_generate(Transport& transport, const CommandLine& command, Terminal& terminal) {
    Settings settings = load(transport, command, RequiredFor::run);
    refuse_classification(transport, settings, "generate");
    settings.strategy.plugin.clear();  // nothing is trained or merged
    Experiment experiment = build_experiment(transport, settings);
    agree(transport, "generating", [&] {
        if (!transport.is_root()) return;
        if (!command.prompt)
            throw usage_error("generate: give --prompt with token ids separated by commas, e.g. --prompt 1,52,7");
        const std::vector<double> values = judged_adapter(command.adapter, experiment).values;
        AdapterGroup adapter(experiment.layout, 1, lora_width(settings.lora.rank_max), false,
                             experiment.engine->weights().options());
        adapter.set(0, values, settings.lora.rank_max);
        std::vector<std::int32_t> prompt;
        for (const auto& word : split(*command.prompt, ',')) {
            const auto id = parse_integer(trim(word));
            if (!id || *id < 0 || *id >= experiment.engine->weights().config.vocab_size) {
                throw usage_error("--prompt: `{}` is not a token id of the model (0..{}): give comma-separated ids",
                                  word, experiment.engine->weights().config.vocab_size - 1);
            }
            prompt.push_back(static_cast<std::int32_t>(*id));
        }
        const auto replies =
            generate(*experiment.engine, command.adapter ? &adapter : nullptr, experiment.global_scale, {prompt},
                     {.max_new_tokens = settings.evaluation.sample_tokens,
                      .temperature = 0.0,
                      .seed = settings.experiment.seed_data,
                      .stop_ids = experiment.engine->weights().config.eos_ids});
        terminal.info(fmt::format("tokens {}", fmt::join(replies.front(), ",")));
        terminal.info(fmt::format("text   {}", experiment.corpus->file().text_of(replies.front())));
    });
    return 0;
}

int run_pretrain(Transport& transport, const CommandLine& command, Terminal& terminal) {
    Settings settings = load(transport, command, RequiredFor::pretrain);
    agree(transport, "reading the command line", [&] {
        if (transport.mpi_size() > 1) throw usage_error("pretrain runs as one MPI rank: start it without mpirun");
    });
    choose_compute(transport, settings.compute);
    const std::string identity = pretrain_identity_hash(settings, CorpusFile(settings.pretrain.data).sha256());
    terminal.info(fmt::format("pretraining for {} steps of {} tokens into {}", settings.pretrain.steps,
                              settings.pretrain.batch_tokens, settings.pretrain.output.string()));
    pretrain(settings.pretrain, settings.experiment.seed, identity, command.resume, [&](const PretrainStep& step) {
        const bool measured = std::isfinite(step.valid_loss);
        if (!measured && step.step % 20 != 0) return;
        terminal.info(fmt::format("step {:>6}  loss {:.4f}  {}lr {:.2e}  {:.1f}M tokens  {}", step.step,
                                  step.train_loss, measured ? fmt::format("valid {:.4f}  ", step.valid_loss) : "",
                                  step.learning_rate, static_cast<double>(step.tokens_seen) / 1e6,
                                  human_seconds(step.time_s)));
    });
    return 0;
}

int bench(Transport& transport, const CommandLine& command, Terminal& terminal) {
    const Settings settings = load(transport, command, RequiredFor::run);
    refuse_classification(transport, settings, "bench");
    return run_bench(transport, settings, command, terminal);
}

/// One folder's error does not keep the others from being repaired. @return the exit code of the first error
int repair_runs(const std::vector<std::string>& folders) {
    if (folders.size() == 1) {
        std::fputs(repair_run(folders.front()).c_str(), stdout);
        return 0;
    }
    int code = 0;
    for (const std::string& folder : folders) {
        try {
            const std::string text = repair_run(folder);
            std::printf("%s:\n%s", folder.c_str(), text.c_str());
        } catch (const Error& error) {
            std::fprintf(stderr, "hetlora: %s\n", error.what());
            if (code == 0) code = static_cast<int>(error.code());
        }
    }
    return code;
}

}  // namespace

bool is_plain_verb(const CommandLine& command) {
    return command.help || command.version || command.verb.empty() || command.verb == "strategies" ||
           command.verb == "info" || command.verb == "repair" || command.verb == "export" || command.verb == "sweep" ||
           verb_of(command).in_python;
}

int run_plain_verb(const CommandLine& command) {
    if (command.version) {
        std::puts(build_facts().c_str());
    } else if (command.verb.empty() || (command.help && !verb_of(command).in_python)) {
        std::fputs(help_text(command.verb).c_str(), stdout);
    } else if (command.verb == "strategies") {
        const std::string name = command.words.empty() ? "" : command.words.front();
        std::fputs(command.print_json ? strategies_json(name).c_str()
                                      : (name.empty() ? strategy_table() : strategy_description(name)).c_str(),
                   stdout);
    } else if (command.verb == "info") {
        std::fputs(describe_path(command.words.front()).c_str(), stdout);
    } else if (command.verb == "repair") {
        return repair_runs(command.words);
    } else if (command.verb == "export") {
        if (!command.to) throw usage_error("export: say where to write: --to DIR");
        const std::string text = export_run(
            {.run = command.words.front(), .to = *command.to, .round = command.round, .merged = command.merged});
        std::fputs(text.c_str(), stdout);
    } else if (command.verb == "sweep") {
        return sweep::run_sweep(command, {.usable_cores = usable_cores(), .free_memory_bytes = free_memory_bytes()});
    } else {
        return hand_over_to_python(command);
    }
    return 0;
}

int run_verb(Transport& transport, const CommandLine& command, const std::string& command_text) {
    Terminal terminal(transport.is_root());
    if (command.verb == "run")
        return leave_exit_code(transport, command, run_run(transport, command, command_text, terminal));
    if (command.verb == "check") return run_check(transport, command, terminal);
    if (command.verb == "evaluate")
        return run_evaluate(transport, load(transport, command, RequiredFor::run), command, terminal);
    if (command.verb == "generate") return run_generate(transport, command, terminal);
    if (command.verb == "pretrain") return run_pretrain(transport, command, terminal);
    if (command.verb == "bench") return bench(transport, command, terminal);
    if (command.verb == "plan")
        return run_plan(transport, load(transport, command, RequiredFor::run), command, terminal);
    throw bug_error("verb {} has no implementation", command.verb);
}

}  // namespace hetlora
