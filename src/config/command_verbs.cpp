// The table of verbs.
#include "hetlora/config/command_line.hpp"

namespace hetlora {
namespace {

const CommandFlag config_flag{"--config", "FILE", "the config file"};
const CommandFlag set_flag{"--set", "section.key=value",
                           "set a config key (the same as the bare word); wins over the file"};
const CommandFlag output_flag{"--output", "DIR", "the folder to write (output.dir)"};
const CommandFlag adapter_flag{"--adapter", "DIR", "PEFT adapter, run or checkpoint; without it the base alone"};

constexpr const char* settings_usage = "--config FILE [section.key=value ...] [--set section.key=value ...]";

CommandVerb with_settings(std::string name, const std::string& more_usage, std::string help, bool implemented,
                          std::vector<CommandFlag> more_flags) {
    CommandVerb verb{.name = std::move(name),
                     .usage = std::string(settings_usage) + more_usage,
                     .help = std::move(help),
                     .flags = {config_flag, set_flag},
                     .implemented = implemented,
                     .takes_settings = true};
    verb.flags.insert(verb.flags.end(), more_flags.begin(), more_flags.end());
    return verb;
}

CommandVerb in_python(std::string name, std::string help, bool implemented) {
    return {.name = std::move(name),
            .usage = "...",
            .help = std::move(help),
            .flags = {},
            .implemented = implemented,
            .in_python = true};
}

CommandVerb sweep_verb() {
    return {
        .name = "sweep",
        .usage = "plan|run|submit|status --config FILE [section.key=value,value ...] [options]",
        .help = "many runs over a grid of settings, here or on Slurm",
        .flags = {{"--config", "FILE", "a sweep file, or a base config with the axes as words"},
                  {"--output", "DIR", "the sweep's folder (default results/<name>)"},
                  {"--mpi-ranks", "N", "MPI ranks of each run (plan, run, submit; default 1)"},
                  {"--no-calibrate", "", "plan, submit: no measured runs for time and memory"},
                  {"--cores", "N", "plan, run: cores to use (default: all usable)"},
                  {"--max-parallel", "N", "run: at most so many runs side by side"},
                  {"--retry-failed", "", "run, submit: failed runs once more"},
                  {"--profile", "FILE", "submit: site profile, e.g. jobs/profiles/generic-cpu.ini"},
                  {"--throttle", "N", "submit: at most so many array tasks at a time"},
                  {"--task-minutes", "N", "submit: length of a task, into which small runs are packed (default 30)"},
                  {"--dry-run", "", "submit: print the script, submit nothing"},
                  {"--all", "", "plan, status: list every run"},
                  {"--json", "FILE", "plan, status: write it there, too"}},
        .implemented = true,
        .min_words = 1,
        .max_words = 10000};
}

}  // namespace

const std::vector<CommandVerb>& command_verbs() {
    static const std::vector<CommandVerb> verbs = {
        with_settings("run", " [--output DIR] [--resume] [--exit-file FILE]",
                      "train: federated fine-tuning of one adapter", true,
                      {output_flag,
                       {"--resume", "", "go on from the last checkpoint of the run's folder"},
                       {"--exit-file", "FILE", "write the exit code there at the end (for job scripts)"}}),
        with_settings("check", " [--reference]", "validate everything, print the resolved config; train nothing", true,
                      {output_flag, {"--reference", "", "print every config key with default and help"}}),
        with_settings("plan", " [--mpi-ranks N] [--json FILE]",
                      "predict time, memory and traffic of a run from a short measurement", true,
                      {output_flag,
                       {"--mpi-ranks", "N", "MPI ranks to plan for (measured side by side as far as cores allow)"},
                       {"--json", "FILE", "write the figures there, too"}}),
        with_settings("pretrain", " [--output DIR] [--resume]", "train a base model from scratch", true,
                      {{"--output", "DIR", "the folder to write (pretrain.output)"},
                       {"--resume", "", "go on from the last checkpoint"}}),
        with_settings("evaluate", " [--adapter DIR] [--json FILE]", "metrics of a base, or of a base with an adapter",
                      true, {output_flag, adapter_flag, {"--json", "FILE", "write the figures there, too"}}),
        with_settings("generate", " --prompt IDS [--adapter DIR]", "print text that the model writes", true,
                      {output_flag, adapter_flag, {"--prompt", "IDS", "token ids to go on from, separated by commas"}}),
        {.name = "info",
         .usage = "PATH",
         .help = "describe any file or folder that hetlora reads or writes",
         .flags = {},
         .implemented = true,
         .min_words = 1,
         .max_words = 1},
        {.name = "strategies",
         .usage = "[NAME] [--json]",
         .help = "the table of methods, or one in full",
         .flags = {{"--json", "", "the same as JSON, for other programs"}},
         .implemented = true,
         .max_words = 1},
        {.name = "export",
         .usage = "RUN_DIR [--round N] [--merged] --to DIR",
         .help = "write a run's adapter or merged model for other programs",
         .flags = {{"--round", "N", "state after this round instead of the last"},
                   {"--merged", "", "the whole model with the adapter merged in"},
                   {"--to", "DIR", "the folder to write"}},
         .implemented = true,
         .min_words = 1,
         .max_words = 1},
        {.name = "repair",
         .usage = "RUN_DIR ...",
         .help = "make a damaged log readable again, saying what was lost",
         .flags = {},
         .implemented = true,
         .min_words = 1,
         .max_words = 10000},
        sweep_verb(),
        with_settings("bench", " [--seconds N] [--json FILE]", "where the time goes, share of the machine's peak", true,
                      {{"--seconds", "N", "time to measure for (default 10)"},
                       {"--json", "FILE", "write the figures there, too"}}),
        in_python("prepare", "make a prepared data file (Python)", true),
        in_python("convert", "make a base folder from another program's checkpoint (Python)", true),
        in_python("audit", "replay a traced run with other software and compare (Python)", true),
        in_python("table", "a table of runs (Python)", true),
        in_python("report", "one HTML page of runs, with charts (Python)", true),
        in_python("compare", "methods side by side, with intervals and tests (Python)", true),
        in_python("watch", "live view of runs in the terminal (Python)", true),
    };
    return verbs;
}

}  // namespace hetlora
