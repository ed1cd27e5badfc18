// Contradictions between keys.
#include <gtest/gtest.h>

#include "config_test_tools.hpp"

namespace hetlora {
namespace {

using test::problems;
using Texts = std::vector<std::string>;

TEST(Combinations, lora_rank_limits) {
    EXPECT_EQ(problems("[lora]\nrank_min = 9\nrank_max = 4\n"),
              Texts{"a.ini:2: lora.rank_min = 9 is above lora.rank_max = 4 (a.ini:3); the smallest lora_rank cannot "
                    "exceed the largest"});
    EXPECT_EQ(problems("[lora]\nrank_max = 1\n"),
              Texts{"lora.rank_min = 2 (default) is above lora.rank_max = 1 (a.ini:2); the smallest lora_rank cannot "
                    "exceed the largest"});
    EXPECT_TRUE(problems("", {"lora.rank_min=4", "lora.rank_max=4"}).empty());
}

TEST(Combinations, list_and_file_laws_need_their_values) {
    EXPECT_EQ(problems("[lora]\nrank_distribution = list\n"),
              Texts{"a.ini:2: lora.rank_distribution = list needs lora_ranks, but here is lora.rank_list = (empty) "
                    "(default); write them as lora.rank_list = 4,8,16"});
    EXPECT_EQ(problems("[lora]\nrank_distribution = file\n"),
              Texts{"a.ini:2: lora.rank_distribution = file needs a file, but here is lora.rank_file = (empty) "
                    "(default); name it as lora.rank_file = PATH"});
    EXPECT_EQ(problems("", {"lora.rank_distribution=list", "lora.rank_list=2,64,1"}),
              (Texts{"command line: lora.rank_list = 2,64,1: 64 is outside of lora.rank_min = 2 (default) .. "
                     "lora.rank_max = 32 (default); change the list or the limits",
                     "command line: lora.rank_list = 2,64,1: 1 is outside of lora.rank_min = 2 (default) .. "
                     "lora.rank_max = 32 (default); change the list or the limits"}));
    EXPECT_EQ(problems("[lora]\nrank_list = 2,4\n"),
              Texts{"a.ini:2: lora.rank_list = 2,4 has no effect: it is used with lora.rank_distribution = list only; "
                    "remove one of the two"});
    EXPECT_TRUE(problems("[lora]\nrank_list = 2,4\n", {"lora.rank_list="}).empty());
}

TEST(Combinations, steps_and_epochs) {
    EXPECT_EQ(problems("[local]\nsteps = 5\nepochs = 1\n"),
              Texts{"a.ini:2: local.steps = 5 and local.epochs = 1 (a.ini:3); both are set: keep one of the two"});
    EXPECT_EQ(problems("[local]\nsteps = 0\n"),
              Texts{"a.ini:2: local.steps = 0 and local.epochs = 0 (default); clients would not train: set one of the "
                    "two"});
}

TEST(Combinations, scale_and_its_rule) {
    EXPECT_EQ(
        problems("[lora]\nscale = 2\nscale_rule = rslora\n"),
        Texts{"a.ini:2: lora.scale = 2 has no effect: it is used with lora.scale_rule = constant only; remove one "
              "of the two"});
    EXPECT_EQ(problems("[lora]\nlora_alpha = 16\n"),
              Texts{"a.ini:2: lora.lora_alpha = 16 has no effect: it is used with lora.scale_rule = alpha_over_rank or "
                    "rslora only; remove one of the two"});
    EXPECT_TRUE(problems("", {"lora.scale_rule=alpha_over_rank", "lora.lora_alpha=8"}).empty());
    EXPECT_TRUE(problems("", {"lora.scale=0.5"}).empty());
}

TEST(Combinations, windows_move_on) {
    EXPECT_EQ(problems("[data]\noverlap = 128\n"),
              Texts{"a.ini:2: data.overlap = 128 is not below data.sequence_length = 128 (default); windows would not "
                    "move on; choose a smaller overlap"});
    EXPECT_TRUE(problems("", {"data.overlap=127"}).empty());
}

TEST(Combinations, made_up_partitions_need_a_number_of_clients) {
    EXPECT_EQ(problems("[data]\npartition = iid\n"),
              Texts{"a.ini:2: data.partition = iid makes clients up, but here is data.partition_clients = 0 (default); "
                    "say how many clients there should be"});
    EXPECT_EQ(problems("", {"data.partition=dirichlet"}).size(), 1U);
    EXPECT_EQ(problems("", {"data.partition_clients=5"}).size(), 1U);
    EXPECT_TRUE(problems("", {"data.partition=iid", "data.partition_clients=5"}).empty());
    EXPECT_TRUE(problems("", {"data.partition_clients=0"}).empty());
}

TEST(Combinations, pruning_keys_beside_no_pruning) {
    EXPECT_EQ(problems("[strategy]\nlocal_extra = none\nprune_gamma = 0.9\n"),
              Texts{"a.ini:3: strategy.prune_gamma = 0.9 has no effect: it is used with strategy.local_extra = "
                    "tail_prune only; remove one of the two"});
    EXPECT_EQ(problems("", {"strategy.local_extra=none", "strategy.prune_rounding=ceil", "strategy.prune_lambda=1",
                            "strategy.prune_reference=initial", "strategy.tail_norm_epsilon=1e-12"})
                  .size(),
              4U);
    EXPECT_TRUE(problems("", {"strategy.local_extra=none", "strategy.prune_lambda=0"}).empty());
    EXPECT_TRUE(problems("", {"strategy.local_extra=tail_prune", "strategy.prune_gamma=0.9"}).empty());
    EXPECT_TRUE(problems("", {"strategy.prune_gamma=0.9"}).empty());
}

TEST(Combinations, sparsity_keys_beside_other_weights) {
    EXPECT_EQ(
        problems("", {"strategy.client_weight=uniform", "strategy.weight_scope=matrix"}),
        Texts{"command line: strategy.weight_scope = matrix has no effect: it is used with strategy.client_weight "
              "= sparsity only; remove one of the two"});
    EXPECT_TRUE(problems("", {"strategy.client_weight=sparsity", "strategy.weight_scope=matrix"}).empty());
}

TEST(Combinations, divergence_factor) {
    EXPECT_EQ(problems("", {"evaluation.divergence_factor=0.5"}),
              Texts{"command line: evaluation.divergence_factor = 0.5 would stop every run at its start; choose one "
                    "above 1, or 0 = never"});
    EXPECT_TRUE(problems("", {"evaluation.divergence_factor=0"}).empty());
}

TEST(Combinations, sizes_of_a_pretrained_base) {
    EXPECT_EQ(problems("[pretrain]\nhidden_size = 130\n"),
              Texts{"a.ini:2: pretrain.hidden_size = 130 is not a multiple of pretrain.heads = 4 (default); every head "
                    "has the same width"});
    EXPECT_EQ(problems("[pretrain]\nhidden_size = 12\n"),
              Texts{"a.ini:2: pretrain.hidden_size = 12 gives heads of an odd width with pretrain.heads = 4 (default); "
                    "rotary positions need an even one"});
    EXPECT_EQ(problems("[pretrain]\nkv_heads = 3\n"),
              Texts{"pretrain.heads = 4 (default) is not a multiple of pretrain.kv_heads = 3 (a.ini:2); every key and "
                    "value head serves the same number of heads"});
    EXPECT_EQ(problems("", {"pretrain.batch_tokens=100"}).size(), 1U);
}

TEST(Combinations, a_refused_value_causes_no_second_problem) {
    EXPECT_EQ(problems("[lora]\nrank_max = 1\nrank_min = two\n").size(), 1U);
    EXPECT_EQ(problems("[local]\nsteps = 0\nepochs = x\n").size(), 1U);
}

}  // namespace
}  // namespace hetlora
