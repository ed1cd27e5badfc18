#include "hetlora/config/command_line.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

const CommandVerb* find_verb(std::string_view name, const std::vector<CommandVerb>& verbs) {
    const auto found =
        std::find_if(verbs.begin(), verbs.end(), [&](const CommandVerb& verb) { return verb.name == name; });
    return found == verbs.end() ? nullptr : &*found;
}

const CommandVerb& known_verb(const std::string& name, const std::vector<CommandVerb>& verbs) {
    const auto* verb = find_verb(name, verbs);
    if (verb == nullptr) {
        std::vector<std::string> names;
        for (const auto& known : verbs) {
            if (known.implemented) names.push_back(known.name);
        }
        const std::string_view kind = name.starts_with('-') ? "option" : "verb";
        if (kind == "option") names = {"--help", "--version"};
        throw usage_error("hetlora {}: there is no such {}{} (`hetlora --help` lists all)", name, kind,
                          did_you_mean(name, names));
    }
    if (!verb->implemented) {
        throw usage_error("hetlora {}: planned, but not implemented in this version (`hetlora --help` lists what is)",
                          name);
    }
    return *verb;
}

// Walks over the words after a verb.
class Parser {
public:
    Parser(const CommandVerb& verb, const std::vector<std::string>& arguments) : verb_(verb), arguments_(arguments) {
        line_.verb = verb.name;
    }

    CommandLine parse() {
        bool only_words = false;
        for (at_ = 1; at_ < arguments_.size(); ++at_) {
            const auto& word = arguments_[at_];
            if (!only_words && word == "--") {
                only_words = true;
            } else if (!only_words && word.size() > 1 && word.starts_with('-')) {
                take_flag(word);
            } else {
                take_word(word);
            }
        }
        if (!line_.help && (line_.words.size() < verb_.min_words || line_.words.size() > verb_.max_words)) {
            const auto got = line_.words.empty() ? std::string("nothing") : "'" + join(line_.words, " ") + "'";
            throw wrong(fmt::format("got {} after it, but the usage is: hetlora {} {}", got, verb_.name, verb_.usage));
        }
        return std::move(line_);
    }

private:
    [[nodiscard]] Error wrong(std::string_view text) const {
        return usage_error("hetlora {}: {} (`hetlora {} --help` explains)", verb_.name, text, verb_.name);
    }

    void take_word(const std::string& word) {
        if (!verb_.takes_settings) {
            line_.words.push_back(word);
            return;
        }
        if (word.find('=') == std::string::npos) {
            throw wrong(fmt::format(
                "'{}' is not understood; settings are written section.key=value, the config file --config FILE", word));
        }
        line_.overrides.push_back(word);
    }

    void take_flag(const std::string& word) {
        if (word == "--help" || word == "-h") {
            line_.help = true;
            return;
        }
        const auto equals = word.find('=');
        const std::string name = word.substr(0, equals);
        const auto flag = std::find_if(verb_.flags.begin(), verb_.flags.end(),
                                       [&](const CommandFlag& known) { return known.name == name; });
        if (flag == verb_.flags.end()) throw unknown_flag(name);
        if (flag->argument.empty()) {
            if (equals != std::string::npos) throw wrong(fmt::format("{} takes no value, got '{}'", name, word));
            set_switch(name);
        } else if (equals != std::string::npos) {
            set_value(*flag, word.substr(equals + 1));
        } else if (at_ + 1 < arguments_.size()) {
            set_value(*flag, arguments_[++at_]);
        } else {
            throw wrong(fmt::format("{} needs {} after it", name, flag->argument));
        }
    }

    [[nodiscard]] Error unknown_flag(const std::string& name) const {
        std::vector<std::string> names = {"--help"};
        for (const auto& flag : verb_.flags) names.push_back(flag.name);
        return wrong(fmt::format("there is no option {}{}", name, did_you_mean(name, names)));
    }

    void set_switch(const std::string& name) {
        if (name == "--resume") line_.resume = true;
        if (name == "--merged") line_.merged = true;
        if (name == "--reference") line_.reference = true;
        if (name == "--retry-failed") line_.retry_failed = true;
        if (name == "--dry-run") line_.dry_run = true;
        if (name == "--no-calibrate") line_.no_calibrate = true;
        if (name == "--all") line_.all = true;
        if (name == "--json") line_.print_json = true;
    }

    void set_value(const CommandFlag& flag, const std::string& value) {
        if (value.empty()) throw wrong(fmt::format("{} needs {}, got an empty word", flag.name, flag.argument));
        if (flag.name == "--set") line_.overrides.push_back(value);
        if (flag.name == "--output") {
            set_once(flag, line_.output, std::filesystem::path(value));
            line_.overrides.push_back((verb_.name == "pretrain" ? "pretrain.output=" : "output.dir=") + value);
        }
        if (flag.name == "--config") set_once(flag, line_.config, std::filesystem::path(value));
        if (flag.name == "--adapter") set_once(flag, line_.adapter, std::filesystem::path(value));
        if (flag.name == "--exit-file") set_once(flag, line_.exit_file, std::filesystem::path(value));
        if (flag.name == "--to") set_once(flag, line_.to, std::filesystem::path(value));
        if (flag.name == "--prompt") set_once(flag, line_.prompt, value);
        if (flag.name == "--json") set_once(flag, line_.json, std::filesystem::path(value));
        if (flag.name == "--seconds") set_once(flag, line_.seconds, count(flag, value, 1));
        if (flag.name == "--mpi-ranks") set_once(flag, line_.mpi_ranks, count(flag, value, 1));
        if (flag.name == "--cores") set_once(flag, line_.cores, count(flag, value, 1));
        if (flag.name == "--max-parallel") set_once(flag, line_.max_parallel, count(flag, value, 1));
        if (flag.name == "--throttle") set_once(flag, line_.throttle, count(flag, value, 1));
        if (flag.name == "--task-minutes") set_once(flag, line_.task_minutes, count(flag, value, 1));
        if (flag.name == "--profile") set_once(flag, line_.profile, std::filesystem::path(value));
        if (flag.name == "--round") set_once(flag, line_.round, count(flag, value, 0));
    }

    template <typename T>
    void set_once(const CommandFlag& flag, std::optional<T>& member, T value) const {
        if (member) throw wrong(fmt::format("{} is given twice", flag.name));
        member = std::move(value);
    }

    [[nodiscard]] std::int64_t count(const CommandFlag& flag, const std::string& value, std::int64_t least) const {
        const auto number = parse_integer(value);
        if (!number || *number < least) {
            throw wrong(fmt::format("{} {}: expected a whole number >= {}", flag.name, value, least));
        }
        return *number;
    }

    const CommandVerb& verb_;
    const std::vector<std::string>& arguments_;
    std::size_t at_ = 0;
    CommandLine line_;
};

}  // namespace

CommandLine parse_command_line(const std::vector<std::string>& arguments, const std::vector<CommandVerb>& verbs) {
    if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") return {.verb = {}, .help = true};
    if (arguments[0] == "--version") return {.verb = {}, .version = true};
    const auto& verb = known_verb(arguments[0], verbs);
    if (verb.in_python) return {.verb = verb.name, .python_args = {arguments.begin() + 1, arguments.end()}};
    return Parser(verb, arguments).parse();
}

std::string help_text(std::string_view verb_name, const std::vector<CommandVerb>& verbs) {
    const auto* verb = find_verb(verb_name, verbs);
    if (verb == nullptr) {
        std::string text =
            "hetlora: federated LoRA fine-tuning with a rank of its own for every client, on MPI.\n\n"
            "usage: hetlora VERB [arguments], alone or under mpirun or srun\n\nverbs:\n";
        for (const auto& known : verbs) {
            if (known.implemented) text += fmt::format("  {:<11} {}\n", known.name, known.help);
        }
        return text +
               "\noptions:\n  --help      this text; `hetlora VERB --help` for one verb\n"
               "  --version   build facts\n\n"
               "Config keys: configs/reference.ini, or `hetlora check --reference`.\n"
               "Exit codes: 0 done, 2 usage or config, 3 input data or checkpoint, 4 environment,\n"
               "5 training failed, 75 stopped on request (resume with --resume), 70 a bug of hetlora.\n";
    }
    std::string text =
        fmt::format("hetlora {}: {}\n\nusage: hetlora {} {}\n", verb->name, verb->help, verb->name, verb->usage);
    text += "\noptions:\n";
    for (const auto& flag : verb->flags) {
        text += fmt::format("  {:<24} {}\n", flag.name + (flag.argument.empty() ? "" : " ") + flag.argument, flag.help);
    }
    text += fmt::format("  {:<24} this text\n", "--help");
    if (verb->takes_settings) {
        text += "\nEvery config key with its default: configs/reference.ini, or `hetlora check --reference`.\n";
    }
    return text;
}

}  // namespace hetlora
