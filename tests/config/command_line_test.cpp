#include "hetlora/config/command_line.hpp"

#include <gtest/gtest.h>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

using Texts = std::vector<std::string>;

std::vector<CommandVerb> all_implemented() {
    auto verbs = command_verbs();
    for (auto& verb : verbs) verb.implemented = true;
    return verbs;
}

std::string problem(const Texts& arguments, const std::vector<CommandVerb>& verbs = command_verbs()) {
    try {
        (void)parse_command_line(arguments, verbs);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
        return error.what();
    }
    return {};
}

TEST(CommandLine, run_takes_config_settings_output_and_resume) {
    const auto line = parse_command_line(
        {"run", "--config", "a.ini", "local.steps=3", "--set", "lora.rank_max=8", "--output=out", "--resume"});

    EXPECT_EQ(line.verb, "run");
    EXPECT_EQ(line.config, "a.ini");
    EXPECT_EQ(line.overrides, (Texts{"local.steps=3", "lora.rank_max=8", "output.dir=out"}));
    EXPECT_EQ(line.output, "out");
    EXPECT_TRUE(line.resume);
    EXPECT_FALSE(line.help);
}

TEST(CommandLine, values_may_follow_an_equals_sign_and_hold_some) {
    const auto line =
        parse_command_line({"evaluate", "--config=a=b.ini", "--set=experiment.tags=x=y", "--adapter", "d"});

    EXPECT_EQ(line.config, "a=b.ini");
    EXPECT_EQ(line.overrides, Texts{"experiment.tags=x=y"});
    EXPECT_EQ(line.adapter, "d");
}

TEST(CommandLine, files_that_other_programs_read) {
    EXPECT_EQ(parse_command_line({"run", "--exit-file", "code"}).exit_file, "code");
    EXPECT_EQ(parse_command_line({"evaluate", "--json=figures"}).json, "figures");
}

TEST(CommandLine, output_of_pretraining_is_the_base) {
    EXPECT_EQ(parse_command_line({"pretrain", "--output", "models/x"}).overrides, Texts{"pretrain.output=models/x"});
}

TEST(CommandLine, words_of_other_verbs_are_positional) {
    EXPECT_EQ(parse_command_line({"info", "results/demo"}).words, Texts{"results/demo"});
    EXPECT_EQ(parse_command_line({"info", "--", "--odd name"}).words, Texts{"--odd name"});
    EXPECT_EQ(parse_command_line({"strategies"}).words, Texts{});
    EXPECT_EQ(parse_command_line({"strategies", "hetlora"}).words, Texts{"hetlora"});
    EXPECT_EQ(parse_command_line({"generate", "--prompt", "1,2"}).prompt, "1,2");
}

TEST(CommandLine, python_verbs_keep_all_their_arguments) {
    const auto line = parse_command_line({"prepare", "chitchat", "--out", "x.h5", "--help", "a=b"});

    EXPECT_EQ(line.verb, "prepare");
    EXPECT_EQ(line.python_args, (Texts{"chitchat", "--out", "x.h5", "--help", "a=b"}));
    EXPECT_FALSE(line.help);
}

TEST(CommandLine, help_and_version) {
    EXPECT_TRUE(parse_command_line({}).help);
    EXPECT_TRUE(parse_command_line({"--help"}).help);
    EXPECT_TRUE(parse_command_line({"--version"}).version);
    const auto line = parse_command_line({"info", "-h"});
    EXPECT_TRUE(line.help);
    EXPECT_EQ(line.verb, "info");
    EXPECT_TRUE(parse_command_line({"check", "--reference"}).reference);
}

TEST(CommandLine, every_option_of_the_table_has_an_effect) {
    const auto verbs = all_implemented();
    for (const auto& verb : verbs) {
        const Texts words(verb.min_words, "word");
        for (const auto& flag : verb.flags) {
            Texts arguments = {verb.name};
            arguments.insert(arguments.end(), words.begin(), words.end());
            const auto without = parse_command_line(arguments, verbs);
            arguments.push_back(flag.name);
            if (!flag.argument.empty()) arguments.emplace_back(flag.name == "--set" ? "a.b=3" : "3");

            EXPECT_NE(parse_command_line(arguments, verbs), without) << verb.name << " " << flag.name;
        }
    }
}

TEST(CommandLine, options_of_verbs_to_come_are_parsed) {
    const auto verbs = all_implemented();
    const auto line = parse_command_line({"export", "run", "--round", "7", "--merged", "--to", "dir"}, verbs);

    EXPECT_EQ(line.words, Texts{"run"});
    EXPECT_EQ(line.round, 7);
    EXPECT_TRUE(line.merged);
    EXPECT_EQ(line.to, "dir");
    EXPECT_EQ(parse_command_line({"plan", "--mpi-ranks", "4"}, verbs).mpi_ranks, 4);
    EXPECT_EQ(problem({"plan", "--mpi-ranks", "0"}, verbs),
              "hetlora plan: --mpi-ranks 0: expected a whole number >= 1 (`hetlora plan --help` explains)");
}

TEST(CommandLineProblem, unknown_verbs_and_options_come_with_the_nearest_name) {
    EXPECT_EQ(problem({"rnu"}), "hetlora rnu: there is no such verb; did you mean run? (`hetlora --help` lists all)");
    EXPECT_EQ(problem({"--hlep"}),
              "hetlora --hlep: there is no such option; did you mean --help? (`hetlora --help` lists all)");
    EXPECT_EQ(problem({"run", "--confg", "a.ini"}),
              "hetlora run: there is no option --confg; did you mean --config? (`hetlora run --help` explains)");
    EXPECT_EQ(problem({"info", "--resume", "x"}),
              "hetlora info: there is no option --resume (`hetlora info --help` explains)");
}

TEST(CommandLineProblem, missing_repeated_and_surplus_arguments) {
    EXPECT_EQ(problem({"run", "--config"}),
              "hetlora run: --config needs FILE after it (`hetlora run --help` explains)");
    EXPECT_EQ(problem({"run", "--config="}),
              "hetlora run: --config needs FILE, got an empty word (`hetlora run --help` explains)");
    EXPECT_EQ(problem({"run", "--config", "a", "--config", "b"}),
              "hetlora run: --config is given twice (`hetlora run --help` explains)");
    EXPECT_EQ(problem({"run", "--resume=yes"}),
              "hetlora run: --resume takes no value, got '--resume=yes' (`hetlora run --help` explains)");
    EXPECT_EQ(problem({"run", "a.ini"}),
              "hetlora run: 'a.ini' is not understood; settings are written section.key=value, the config file "
              "--config FILE (`hetlora run --help` explains)");
    EXPECT_EQ(
        problem({"info"}),
        "hetlora info: got nothing after it, but the usage is: hetlora info PATH (`hetlora info --help` explains)");
    EXPECT_EQ(problem({"strategies", "a", "b"}),
              "hetlora strategies: got 'a b' after it, but the usage is: hetlora strategies [NAME] [--json] (`hetlora "
              "strategies "
              "--help` explains)");
}

TEST(HelpText, lists_the_implemented_verbs_only) {
    const auto text = help_text();

    for (const auto& verb : command_verbs()) {
        const bool is_listed = text.find("\n  " + verb.name + " ") != std::string::npos;
        EXPECT_EQ(is_listed, verb.implemented) << verb.name;
    }
    for (const char* verb : {"run", "check", "pretrain", "evaluate", "generate", "info", "strategies", "prepare",
                             "convert", "audit", "table"}) {
        EXPECT_NE(text.find(std::string("\n  ") + verb + " "), std::string::npos) << verb;
    }
}

TEST(HelpText, of_a_verb_shows_usage_options_and_where_the_keys_are) {
    const auto text = help_text("run");

    EXPECT_NE(text.find("usage: hetlora run --config FILE [section.key=value ...]"), std::string::npos) << text;
    EXPECT_NE(text.find("  --output DIR "), std::string::npos) << text;
    EXPECT_NE(text.find("configs/reference.ini"), std::string::npos) << text;
    EXPECT_EQ(help_text("info").find("reference.ini"), std::string::npos);
}

}  // namespace
}  // namespace hetlora
