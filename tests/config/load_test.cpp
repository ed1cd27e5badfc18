// Reading: files, command line, values, and the text of every problem of a single key.
#include "hetlora/config/load.hpp"

#include <gtest/gtest.h>

#include <clocale>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "config_test_tools.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/config/strategy_names.hpp"

namespace hetlora {
namespace {

using test::loaded;
using test::problems;
using Texts = std::vector<std::string>;
namespace fs = std::filesystem;

TEST(Load, nothing_given_gives_the_defaults) {
    const auto settings = loaded("");

    EXPECT_EQ(settings.experiment, ExperimentSettings{});
    EXPECT_EQ(settings.lora, LoraSettings{});
    EXPECT_EQ(settings.local, LocalSettings{});
    EXPECT_EQ(settings.strategy, StrategySettings{});
    EXPECT_EQ(settings.pretrain, PretrainSettings{});
    EXPECT_EQ(settings.output.dir, fs::current_path() / "results" / "demo");
    EXPECT_TRUE(settings.given.empty());
}

TEST(Load, a_file_is_read_with_comments_blanks_and_windows_line_ends) {
    const auto settings = loaded(
        "\xEF\xBB\xBF# a comment\r\n"
        "\r\n"
        "[experiment]\r\n"
        "  name   =  my run   # what it is called\r\n"
        "tags=\"a, b\"\r\n"
        "rounds =7\r\n"
        "[ lora ]\n"
        "targets = v_proj, q_proj,up_proj\n"
        "rank_distribution = list\n"
        "rank_list = 2, 4,32\n"
        "[local]\n"
        "learning_rate = 1e-3\n"
        "[output]\n"
        "trace = true");

    EXPECT_EQ(settings.experiment.name, "my run");
    EXPECT_EQ(settings.experiment.tags, "a, b");
    EXPECT_EQ(settings.experiment.rounds, 7);
    EXPECT_EQ(settings.lora.targets, (Texts{"q_proj", "v_proj", "up_proj"}));
    EXPECT_EQ(settings.lora.rank_list, (std::vector<std::int64_t>{2, 4, 32}));
    EXPECT_EQ(settings.local.learning_rate, 1e-3);
    EXPECT_TRUE(settings.output.trace);
    EXPECT_TRUE(settings.is_given("experiment.rounds"));
    EXPECT_FALSE(settings.is_given("experiment.seed"));
    EXPECT_EQ(settings.given.size(), 8U);
}

TEST(Load, all_linear_stays_a_word_because_only_the_model_knows_its_matrices) {
    const auto settings = loaded("[lora]\ntargets = all-linear\n");

    EXPECT_EQ(settings.lora.targets, Texts{"all-linear"});
}

TEST(Load, the_command_line_wins_over_the_file) {
    const auto settings = loaded("[experiment]\nrounds = 7\n", {"experiment.rounds=9", " lora.rank_max = 16 "});

    EXPECT_EQ(settings.experiment.rounds, 9);
    EXPECT_EQ(settings.lora.rank_max, 16);
    EXPECT_EQ(settings.given, (std::set<std::string>{"experiment.rounds", "lora.rank_max"}));
}

TEST(Load, the_command_line_mends_a_bad_value_of_the_file) {
    EXPECT_EQ(loaded("[experiment]\nrounds = many\n", {"experiment.rounds=9"}).experiment.rounds, 9);
}

TEST(Load, seeds_follow_experiment_seed_unless_given) {
    const auto settings = loaded("[experiment]\nseed_data = 3\nseed_init = seed\nseed = 11\n");

    EXPECT_EQ(settings.experiment.seed, 11U);
    EXPECT_EQ(settings.experiment.seed_init, 11U);
    EXPECT_EQ(settings.experiment.seed_ranks, 11U);
    EXPECT_EQ(settings.experiment.seed_sampling, 11U);
    EXPECT_EQ(settings.experiment.seed_partition, 11U);
    EXPECT_EQ(settings.experiment.seed_data, 3U);
    EXPECT_EQ(loaded("", {"experiment.seed=18446744073709551615"}).experiment.seed_data, 18446744073709551615ULL);
}

TEST(Load, epochs_take_the_place_of_the_default_steps) {
    EXPECT_EQ(loaded("", {"local.epochs=2"}).local.steps, 0);
    EXPECT_EQ(loaded("", {"local.epochs=2", "local.steps=0"}).local.epochs, 2);
    EXPECT_EQ(loaded("", {"local.steps=3"}).local.epochs, 0);
}

TEST(Load, policies_are_unset_or_override_the_preset) {
    const auto settings = loaded("[strategy]\npreset = zeropad\nslot_norm = contributors\naggregate = preset\n");

    EXPECT_EQ(settings.strategy.preset, "zeropad");
    EXPECT_EQ(settings.strategy.slot_norm, SlotNorm::contributors);
    EXPECT_EQ(settings.strategy.aggregate, std::nullopt);
}

TEST(Load, paths_are_expanded_and_absolute_and_values_take_variables) {
    ::setenv("HOME", "/home/someone", 1);
    ::setenv("HETLORA_TEST_DATA", "/data/x", 1);
    ::setenv("HETLORA_TEST_THREADS", "3", 1);
    const auto settings = loaded(
        "[model]\npath = ~/base/\n[data]\npath = ${HETLORA_TEST_DATA}/chat.h5\n[output]\ndir = a/../b\n"
        "[compute]\nthreads = ${HETLORA_TEST_THREADS}\n");

    EXPECT_EQ(settings.model.path, "/home/someone/base");
    EXPECT_EQ(settings.data.path, "/data/x/chat.h5");
    EXPECT_EQ(settings.output.dir, fs::current_path() / "b");
    EXPECT_EQ(settings.compute.threads, 3);
}

TEST(Load, numbers_do_not_depend_on_the_locale) {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "C.UTF-8"}) (void)std::setlocale(LC_ALL, name);

    EXPECT_EQ(loaded("", {"local.learning_rate=0.5"}).local.learning_rate, 0.5);
    EXPECT_EQ(problems("", {"local.learning_rate=0,5"}).size(), 1U);

    (void)std::setlocale(LC_ALL, "C");
}

TEST(Load, long_precision_names_are_read) {
    EXPECT_EQ(loaded("", {"model.precision=float64"}).model.precision, Precision::fp64);
    EXPECT_EQ(name_of(Precision::fp64), "fp64");
}

TEST(LoadProblem, unknown_keys_are_named_with_file_line_and_nearest_name) {
    EXPECT_EQ(problems("[lora]\n\nrank_maxx = 8\n"),
              Texts{"a.ini:3: lora.rank_maxx = 8: there is no key lora.rank_maxx; did you mean lora.rank_max?"});
    EXPECT_EQ(problems("[local]\nrank_max = 8\n"),
              Texts{"a.ini:2: local.rank_max = 8: there is no key local.rank_max; did you mean lora.rank_max?"});
    EXPECT_EQ(problems("[lora]\nsequence_length = 8\n"),
              Texts{"a.ini:2: lora.sequence_length = 8: there is no key lora.sequence_length; did you mean "
                    "data.sequence_length or pretrain.sequence_length?"});
    EXPECT_EQ(problems("[lora]\ncolour = red\n"), Texts{"a.ini:2: lora.colour = red: there is no key lora.colour"});
    EXPECT_EQ(problems("", {"lora.rank_mix=3"}),
              Texts{"command line: lora.rank_mix = 3: there is no key lora.rank_mix; did you mean lora.rank_min?"});
    EXPECT_EQ(problems("", {"loar.rank_max=3"}),
              Texts{"command line: loar.rank_max = 3: there is no key loar.rank_max; did you mean lora.rank_max?"});
    EXPECT_EQ(problems("", {"local.momentum=0.9"}),
              Texts{"command line: local.momentum = 0.9: there is no key local.momentum"});
}

TEST(LoadProblem, keys_without_a_section_are_named) {
    EXPECT_EQ(problems("rank_max = 8\n[lora]\n"),
              Texts{"a.ini:1: rank_max = 8: the key has no section; did you mean lora.rank_max?"});
    EXPECT_EQ(problems("", {"rank_max=8"}),
              Texts{"command line: rank_max = 8: the key has no section; did you mean lora.rank_max?"});
}

TEST(LoadProblem, unknown_sections_are_named_once) {
    EXPECT_EQ(
        problems("[loar]\nrank_max = 8\nrank_min = 2\n[lora]\nrank_max = 16\n"),
        Texts{
            "a.ini:1: there is no section [loar]; did you mean lora? (sections: experiment, model, data, lora, "
            "local, strategy, evaluation, compute, comm, checkpoint, log, output, pretrain); its keys were not read"});
}

TEST(LoadProblem, lines_that_are_no_ini_are_named) {
    EXPECT_EQ(problems("[lora]\nrank_max 8\n; note\n= 5\n[oops\n[]\n").size(), 5U);
    EXPECT_EQ(
        problems("[lora]\nrank_max 8\n"),
        Texts{"a.ini:2: 'rank_max 8' is not understood; expected \"[section]\", \"key = value\" or \"# comment\""});
    EXPECT_EQ(problems("[lora]\n; rank_max = 8\n"),
              Texts{"a.ini:2: '; rank_max = 8' is not understood; a comment starts with '#'"});
    EXPECT_EQ(problems("", {"lora.rank_max"}),
              Texts{"command line: 'lora.rank_max' is not understood; write section.key=value"});
}

TEST(LoadProblem, duplicate_keys_are_named_with_both_places) {
    EXPECT_EQ(problems("[lora]\nrank_max = 8\n[local]\n[lora]\nrank_max = 9\n"),
              Texts{"a.ini:5: lora.rank_max = 9: the key is already set in line 2; remove one of the two"});
    EXPECT_EQ(problems("", {"lora.rank_max=8", "lora.rank_max=9"}),
              Texts{"command line: lora.rank_max=8 and lora.rank_max=9 set the same key; keep one of the two"});
}

TEST(LoadProblem, wrong_types_are_named) {
    EXPECT_EQ(problems("[experiment]\nrounds = ten\n"),
              Texts{"a.ini:2: experiment.rounds = ten: 'ten' is not a whole number"});
    EXPECT_EQ(problems("[experiment]\nrounds =\n"), Texts{"a.ini:2: experiment.rounds = : '' is not a whole number"});
    for (const char* wrong : {"1.5", "1e3", "7 rounds", "0x7", "99999999999999999999"}) {
        EXPECT_EQ(problems("", {std::string("experiment.rounds=") + wrong}).size(), 1U) << wrong;
    }
    EXPECT_EQ(problems("", {"local.learning_rate=fast"}),
              Texts{"command line: local.learning_rate = fast: 'fast' is not a number"});
    for (const char* wrong : {"1e-3x", "nan", "inf", "1,5", ""}) {
        EXPECT_EQ(problems("", {std::string("local.learning_rate=") + wrong}).size(), 1U) << wrong;
    }
    EXPECT_EQ(problems("", {"output.trace=ture"}),
              Texts{"command line: output.trace = ture: 'ture' is not one of true | false; did you mean true?"});
    EXPECT_EQ(problems("", {"experiment.seed=-1"}),
              Texts{"command line: experiment.seed = -1: '-1' is not a whole number from 0 to 18446744073709551615"});
}

TEST(LoadProblem, values_out_of_range_are_named_with_the_range) {
    EXPECT_EQ(problems("[lora]\nrank_min = 0\n"),
              Texts{"a.ini:2: lora.rank_min = 0: 0 is out of range: it must be >= 1"});
    EXPECT_EQ(problems("", {"experiment.clients_per_round=-1"}),
              Texts{"command line: experiment.clients_per_round = -1: -1 is out of range: it must be >= 0"});
    EXPECT_EQ(problems("", {"lora.dropout=1"}),
              Texts{"command line: lora.dropout = 1: 1 is out of range: it must be in [0, 1)"});
    EXPECT_EQ(problems("", {"strategy.prune_gamma=0"}),
              Texts{"command line: strategy.prune_gamma = 0: 0 is out of range: it must be in (0, 1]"});
    EXPECT_TRUE(problems("", {"strategy.prune_gamma=1", "lora.dropout=0"}).empty());
    for (const char* wrong :
         {"local.learning_rate=0", "local.learning_rate=-1", "local.batch_size=0", "data.sequence_length=0",
          "data.min_windows=0", "local.adam_beta1=1", "lora.scale=-1", "data.dirichlet_alpha=0", "compute.threads=-1",
          "compute.threads=5000", "local.clip_norm=-0.1", "strategy.prune_lambda=-1", "strategy.prune_gamma=1.01",
          "pretrain.layers=0", "local.lr_final_fraction=1.5", "evaluation.every=0"}) {
        EXPECT_EQ(problems("", {wrong}).size(), 1U) << wrong;
    }
}

TEST(LoadProblem, words_out_of_a_closed_set_are_named_with_the_nearest) {
    EXPECT_EQ(problems("[local]\noptimizer = adam\n"),
              Texts{"a.ini:2: local.optimizer = adam: 'adam' is not one of sgd | adamw; did you mean adamw?"});
    EXPECT_EQ(problems("", {"strategy.slot_norm=contributers"}),
              Texts{"command line: strategy.slot_norm = contributers: 'contributers' is not one of preset | all | "
                    "contributors | levels | replicate; did you mean contributors?"});
    EXPECT_EQ(problems("", {"strategy.preset=hetlor"}),
              Texts{"command line: strategy.preset = hetlor: 'hetlor' is not one of " + join(strategy_names(), " | ") +
                    "; did you mean hetlora?"});
    EXPECT_EQ(problems("", {"compute.gemm=widened"}).size(), 1U);
    EXPECT_EQ(problems("", {"compute.gemm=widened", "model.precision=bf16", "compute.pack_tokens=auto"}), Texts{});
    EXPECT_EQ(problems("", {"compute.gemm=onednn", "model.precision=fp64"}).size(), 1U);
    EXPECT_EQ(problems("", {"compute.gemm=tiles", "model.precision=bf16"}).size(), 1U);
    EXPECT_EQ(problems("", {"compute.gemm=tiles", "model.precision=fp64"}), Texts{});
    EXPECT_EQ(problems("", {"compute.pack_tokens=100"}).size(), 1U) << "data.sequence_length is 128";
    EXPECT_EQ(problems("", {"model.precision=flot32"}), Texts{"command line: model.precision = flot32: 'flot32' is not "
                                                              "one of fp32 | fp64 | bf16; did you mean float32?"});
}

TEST(LoadProblem, lists_are_checked_part_by_part) {
    EXPECT_EQ(
        problems("", {"lora.targets=q_proj,w_proj"}),
        Texts{"command line: lora.targets = q_proj,w_proj: 'w_proj' is not one of q_proj, k_proj, v_proj, o_proj, "
              "gate_proj, up_proj, down_proj, c_attn, attn.c_proj, c_fc, mlp.c_proj, query, key, value, "
              "attention.output.dense, intermediate.dense, output.dense, q_lin, k_lin, v_lin, out_lin, lin1, lin2; did "
              "you mean q_proj?"});
    EXPECT_EQ(problems("", {"lora.targets=q_proj,q_proj"}),
              Texts{"command line: lora.targets = q_proj,q_proj: 'q_proj' stands in the list twice"});
    EXPECT_EQ(problems("", {"lora.targets="}).size(), 1U);
    EXPECT_EQ(problems("", {"lora.rank_distribution=list", "lora.rank_list=2,,4"}).front(),
              "command line: lora.rank_list = 2,,4: '' in '2,,4' is not a whole number");
    EXPECT_TRUE(loaded("", {"evaluation.metrics="}).evaluation.metrics.empty());
    EXPECT_EQ(problems("", {"evaluation.metrics=perplexiti"}).size(), 1U);
}

TEST(LoadProblem, names_that_are_no_folder_and_texts_that_no_file_can_hold_are_refused) {
    EXPECT_EQ(problems("", {"experiment.name=a/b"}),
              Texts{"command line: experiment.name = a/b: 'a/b' cannot name the run's folder; use letters, digits, "
                    "'-', '_' and '.'"});
    EXPECT_EQ(problems("", {"experiment.name=.."}).size(), 1U);
    EXPECT_EQ(problems("", {"experiment.name="}).size(), 1U);
    EXPECT_EQ(problems("", {"experiment.tags=a#b"}),
              Texts{"command line: experiment.tags = a#b: 'a#b': '#' starts a comment in a config file; choose a value "
                    "without it"});
    EXPECT_EQ(problems("", {"model.path=/a#b"}).size(), 1U);
    EXPECT_EQ(problems("", {"experiment.tags=a\nb"}).size(), 1U);
}

TEST(LoadProblem, unset_variables_are_named) {
    EXPECT_EQ(problems("[data]\npath = ${HETLORA_TEST_UNSET}/x.h5\n"),
              Texts{"a.ini:2: data.path = ${HETLORA_TEST_UNSET}/x.h5: environment variable HETLORA_TEST_UNSET is not "
                    "set, but ${HETLORA_TEST_UNSET}/x.h5 needs it; export it or write the value"});
    EXPECT_EQ(problems("", {"model.path=~other/x"}).size(), 1U);
}

TEST(LoadProblem, required_keys_depend_on_the_task) {
    EXPECT_EQ(problems("[model]\npath =\n", {}, RequiredFor::run),
              (Texts{"a.ini:2: model.path (frozen base model: a folder, a GGUF file, or org/name of one in the local "
                     "Hugging Face cache) is missing; set \"path = ...\" in section "
                     "[model] or give model.path=... on the command line",
                     "a.ini: data.path (prepared data file (.h5)) is missing; set \"path = ...\" in section [data] or "
                     "give data.path=... on the command line"}));
    EXPECT_TRUE(problems("", {"model.path=m", "data.path=d"}, RequiredFor::run).empty());
    EXPECT_EQ(problems("", {}, RequiredFor::pretrain).size(), 2U);
    EXPECT_TRUE(problems("", {"pretrain.data=d", "pretrain.output=o"}, RequiredFor::pretrain).empty());
}

TEST(LoadProblem, all_problems_are_reported_at_once_in_one_error) {
    try {
        (void)loaded("[lora]\nrank_maxx = 8\nrank_min = x\n[local]\noptimizer = adam\nbatch_size 4\n",
                     {"local.steps=0", "nonsense"}, RequiredFor::run);
        FAIL() << "no error";
    } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_TRUE(text.starts_with("8 problems in the configuration:\n  a.ini:6: 'batch_size 4'")) << text;
        for (const char* part : {"a.ini:2: lora.rank_maxx", "a.ini:3: lora.rank_min", "a.ini:5: local.optimizer",
                                 "command line: 'nonsense'", "command line: local.steps = 0 and local.epochs = 0",
                                 "model.path", "data.path", "configs/reference.ini"}) {
            EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
        }
    }
}

TEST(LoadProblem, one_problem_is_singular) {
    try {
        (void)loaded("", {"lora.rank_min=x"});
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with("1 problem in the configuration:\n  ")) << error.what();
    }
}

TEST(LoadFile, the_file_is_named_as_it_was_given_and_may_be_absent_from_the_command) {
    const auto path = fs::path(testing::TempDir()) / "hetlora_load_test.ini";
    std::ofstream(path) << "[lora]\nrank_min = 3\nrank_max = 2\n";
    try {
        (void)load_settings(path, {}, RequiredFor::nothing);
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(path.string() + ":2: lora.rank_min = 3"), std::string::npos)
            << error.what();
    }
    fs::remove(path);

    EXPECT_EQ(load_settings(std::nullopt, {"lora.rank_min=3"}, RequiredFor::nothing).lora.rank_min, 3);
}

TEST(LoadFile, a_missing_file_is_a_usage_error_with_the_reason) {
    try {
        (void)load_settings(fs::path("/nowhere/x.ini"));
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::usage);
        EXPECT_EQ(std::string(error.what()),
                  "cannot open /nowhere/x.ini: No such file or directory; check the path and its permissions");
    }
}

}  // namespace
}  // namespace hetlora
