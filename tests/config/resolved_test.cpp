// Written out and read again: resolved files, JSON, identity, reference file.
#include "hetlora/config/resolved.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "config_test_tools.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/config/schema.hpp"

namespace hetlora {
namespace {

using test::loaded;

Settings without_given(Settings settings) {
    settings.given.clear();
    return settings;
}

const std::vector<std::vector<std::string>> various = {
    {},
    {"experiment.seed=5", "experiment.seed_data=18446744073709551615", "local.learning_rate=0.1234567890123456789"},
    {"lora.scale_rule=rslora", "lora.lora_alpha=7.1", "lora.targets=all-linear", "local.epochs=3"},
    {"lora.rank_distribution=list", "lora.rank_list=2,3,4", "evaluation.metrics="},
    {"lora.rank_distribution=file", "lora.rank_file=ranks.txt", "model.path=~/x y", "experiment.tags=a; b = c, [d]"},
    {"strategy.local_extra=none", "strategy.prune_lambda=0", "strategy.client_weight=samples"},
    {"strategy.local_extra=tail_prune", "strategy.prune_gamma=0.5", "strategy.aggregate=deltas"},
    {"data.partition=dirichlet", "data.partition_clients=9", "output.trace=true", "output.dir=elsewhere"},
};

TEST(ResolvedIni, reads_back_as_exactly_the_same_settings) {
    for (const auto& overrides : various) {
        const auto settings = loaded("", overrides);
        const auto text = resolved_ini(settings, "base_sha256 abc\ndata_sha256 def");

        const auto again = loaded(text);

        EXPECT_EQ(without_given(again), without_given(settings)) << text;
        EXPECT_EQ(resolved_ini(again, "base_sha256 abc\ndata_sha256 def"), text);
        EXPECT_EQ(identity_hash(again.lora.rank_file.empty() ? again : Settings{}, "b", "d"),
                  identity_hash(again.lora.rank_file.empty() ? settings : Settings{}, "b", "d"));
    }
}

TEST(ResolvedIni, every_key_is_there_and_paths_are_absolute) {
    const auto text = resolved_ini(loaded("", {"model.path=m"}), "a note");

    EXPECT_TRUE(text.starts_with("# a note\n\n[experiment]\nname = demo\ntags =\n")) << text;
    EXPECT_NE(text.find("\npath = " + (std::filesystem::current_path() / "m").string() + "\n"), std::string::npos);
    EXPECT_NE(text.find("\n# lora_alpha = 16   (it is used with"), std::string::npos);
    for (const auto& key : config_schema()) EXPECT_NE(text.find(key.name + " ="), std::string::npos) << key.full_name();
}

TEST(ResolvedJson, is_nested_and_typed) {
    const auto json = nlohmann::json::parse(
        resolved_json(loaded("", {"experiment.seed=18446744073709551615", "lora.rank_distribution=list",
                                  "lora.rank_list=2,4", "strategy.slot_norm=all"})));

    EXPECT_EQ(json["experiment"]["seed"], 18446744073709551615ULL);
    EXPECT_EQ(json["experiment"]["rounds"], 10);
    EXPECT_TRUE(json["lora"]["scale"].is_number_float());
    EXPECT_EQ(json["lora"]["rank_list"], (std::vector<int>{2, 4}));
    EXPECT_EQ(json["lora"]["targets"], (std::vector<std::string>{"q_proj", "v_proj"}));
    EXPECT_EQ(json["output"]["trace"], false);
    EXPECT_EQ(json["strategy"]["slot_norm"], "all");
    EXPECT_EQ(json["strategy"]["client_weight"], "preset");
    std::size_t n_keys = 0;
    for (const auto& section : json) n_keys += section.size();
    EXPECT_EQ(n_keys, config_schema().size());
}

TEST(ResolvedJson, says_what_the_preset_decided) {
    const auto json = nlohmann::json::parse(resolved_json(Settings{}, {{"merge", "product"}, {"preset", "flexlora"}}));

    EXPECT_EQ(json["resolved_strategy"]["merge"], "product");
    EXPECT_EQ(json["resolved_strategy"]["preset"], "flexlora");
    EXPECT_EQ(json["strategy"]["merge"], "preset") << "the section that is a config stays as it was given";
}

std::string identity(const std::vector<std::string>& overrides) {
    return identity_hash(loaded("", overrides), "b", "d");
}

TEST(Identity, what_cannot_change_the_result_is_no_part_of_it) {
    const auto base = identity({});

    EXPECT_EQ(base.size(), 64U);
    for (const char* other :
         {"experiment.name=x", "experiment.tags=x", "experiment.rounds=99", "model.path=/x", "data.path=/x",
          "compute.device=cpu", "compute.threads=7", "compute.pack_tokens=990", "compute.vector=avx2", "output.dir=/x",
          "output.trace=true", "evaluation.samples=3", "pretrain.layers=2", "lora.rank_max=32", "experiment.seed=0",
          "local.learning_rate=0.0020", "lora.targets=v_proj,q_proj"}) {
        EXPECT_EQ(identity({other}), base) << other;
    }
}

TEST(Identity, what_can_change_the_result_is_part_of_it) {
    std::set<std::string> seen = {identity({})};
    for (const char* other :
         {"experiment.seed=1", "experiment.seed_init=1", "experiment.seed_ranks=1", "experiment.clients_per_round=4",
          "model.precision=fp64", "data.overlap=0", "lora.rank_max=16", "lora.scale=1", "local.steps=6",
          "local.epochs=1", "local.optimizer=sgd", "strategy.preset=fedavg", "strategy.slot_norm=all",
          "strategy.keep_uncovered=last", "evaluation.every=2", "comm.reduction=fast"}) {
        EXPECT_TRUE(seen.insert(identity({other})).second) << other;
    }
    EXPECT_TRUE(seen.insert(identity_hash(loaded(""), "other", "d")).second);
    EXPECT_TRUE(seen.insert(identity_hash(loaded(""), "b", "other")).second);
}

TEST(Identity, rounds_count_where_the_learning_rate_depends_on_them) {
    for (const char* schedule : {"local.lr_schedule=cosine", "local.lr_warmup_rounds=2"}) {
        EXPECT_NE(identity({schedule}), identity({schedule, "experiment.rounds=99"})) << schedule;
        EXPECT_EQ(identity({schedule}), identity({schedule, "experiment.rounds=10"})) << schedule;
    }
}

TEST(Identity, a_seed_counts_by_its_value_not_by_how_it_was_given) {
    EXPECT_EQ(identity({"experiment.seed=5"}), identity({"experiment.seed=5", "experiment.seed_init=5"}));
    EXPECT_NE(identity({"experiment.seed=5"}), identity({"experiment.seed=5", "experiment.seed_init=0"}));
}

TEST(Identity, a_rank_file_counts_by_content) {
    const auto folder = std::filesystem::path(testing::TempDir());
    const auto of_file = [&](const char* name, const char* content) {
        std::ofstream(folder / name) << content;
        auto hash = identity({"lora.rank_distribution=file", "lora.rank_file=" + (folder / name).string()});
        std::filesystem::remove(folder / name);
        return hash;
    };

    EXPECT_EQ(of_file("hetlora_ranks_a", "2 4"), of_file("hetlora_ranks_b", "2 4"));
    EXPECT_NE(of_file("hetlora_ranks_a", "2 4"), of_file("hetlora_ranks_a", "2 8"));
    EXPECT_THROW((void)identity({"lora.rank_distribution=file", "lora.rank_file=/nowhere/ranks"}), Error);
}

TEST(Identity, a_plugin_counts_by_content_and_is_told_the_rounds) {
    const auto folder = std::filesystem::path(testing::TempDir());
    const auto of_plugin = [&](const char* content, const char* rounds) {
        std::ofstream(folder / "hetlora_method.py") << content;
        auto hash = identity({"strategy.plugin=" + (folder / "hetlora_method.py").string(), rounds});
        std::filesystem::remove(folder / "hetlora_method.py");
        return hash;
    };

    EXPECT_EQ(of_plugin("a = 1", "experiment.rounds=5"), of_plugin("a = 1", "experiment.rounds=5"));
    EXPECT_NE(of_plugin("a = 1", "experiment.rounds=5"), of_plugin("a = 2", "experiment.rounds=5"));
    EXPECT_NE(of_plugin("a = 1", "experiment.rounds=5"), of_plugin("a = 1", "experiment.rounds=6"));
    EXPECT_NE(of_plugin("a = 1", "experiment.rounds=5"), identity({"experiment.rounds=5"}));
    EXPECT_THROW((void)identity({"strategy.plugin=/nowhere/method.py"}), Error);
}

TEST(Identity, the_text_lists_what_differs_from_the_defaults) {
    EXPECT_EQ(
        identity_text(loaded("", {"lora.rank_max=16", "local.epochs=2"}), "b", "d"),
        "hetlora-run-identity=1\nlora.rank_max=16\nlocal.steps=0\nlocal.epochs=2\nbase_sha256=b\ndata_sha256=d\n");
}

TEST(Identity, pretraining_has_its_own) {
    const auto hash = [](const std::vector<std::string>& overrides) {
        return pretrain_identity_hash(loaded("", overrides), "d");
    };

    EXPECT_EQ(hash({}), hash({"lora.rank_max=16", "pretrain.output=/x", "pretrain.eval_every=7"}));
    EXPECT_NE(hash({}), hash({"pretrain.layers=2"}));
    EXPECT_NE(hash({}), hash({"experiment.seed=2"}));
    EXPECT_NE(hash({}), pretrain_identity_hash(loaded(""), "other"));
}

TEST(ReferenceIni, the_committed_file_is_the_programs) {
    const char* root = std::getenv("HETLORA_SOURCE_DIR");
    if (root == nullptr) GTEST_SKIP() << "HETLORA_SOURCE_DIR is not set (ctest sets it)";

    EXPECT_EQ(read_text_file(std::filesystem::path(root) / "configs/reference.ini"), reference_ini())
        << "write it anew with: build/hetlora check --reference > configs/reference.ini";
}

TEST(ReferenceIni, loading_it_with_the_required_keys_gives_the_defaults) {
    const std::vector<std::string> required = {"model.path=m", "data.path=d"};

    const auto settings = loaded(reference_ini(), required, RequiredFor::run);

    EXPECT_EQ(without_given(settings), without_given(loaded("", required)));
    // Commented out: what has no effect with the defaults, and is not switched off there anyway.
    const auto unused = std::ranges::count_if(config_schema(), [](const ConfigKey& key) {
        const bool off = key.default_text.empty() || key.default_text == "0" || key.default_text == "false";
        return !off && why_unused(key, Settings{}).has_value();
    });
    EXPECT_EQ(std::ssize(settings.given), std::ssize(config_schema()) - unused);
}

TEST(ReferenceIni, without_the_required_keys_it_says_so_with_lines) {
    const auto problems = test::problems(reference_ini(), {}, RequiredFor::run);

    ASSERT_EQ(problems.size(), 2U);
    EXPECT_TRUE(problems[0].starts_with("a.ini:")) << problems[0];
    EXPECT_NE(problems[0].find("model.path"), std::string::npos);
}

}  // namespace
}  // namespace hetlora
