// The rank laws: their means, that they depend on client and seed alone, and what they refuse.
#include "hetlora/fed/lora_ranks.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

LoraRankLaw law(RankDistribution distribution, double power = 0.1) {
    return {.distribution = distribution,
            .rank_min = 5,
            .rank_max = 50,
            .power = power,
            .list = {},
            .file = {},
            .seed_ranks = 1};
}

struct Summary {
    double mean = 0, at_min = 0, up_to_10 = 0, from_40 = 0;
};

Summary summarize(const std::vector<double>& p) {
    Summary s;
    for (std::size_t i = 0; i < p.size(); ++i) {
        const double rank = 5.0 + static_cast<double>(i);
        s.mean += rank * p[i];
        if (rank == 5) s.at_min += p[i];
        if (rank <= 10) s.up_to_10 += p[i];
        if (rank >= 40) s.from_40 += p[i];
    }
    return s;
}

TEST(LoraRanks, laws_have_the_tabulated_means_and_tails) {
    // docs/methods.md, table of readings of "power law, alpha = 0.1" on ranks 5..50
    const auto pmf = summarize(lora_rank_probabilities(law(RankDistribution::powerlaw)));
    EXPECT_NEAR(pmf.mean, 19.9, 0.05);
    EXPECT_NEAR(pmf.at_min, 0.074, 0.0005);
    EXPECT_NEAR(pmf.up_to_10, 0.32, 0.005);
    EXPECT_NEAR(pmf.from_40, 0.11, 0.005);
    EXPECT_NEAR(summarize(lora_rank_probabilities(law(RankDistribution::powerlaw, 0.9))).mean, 26.7, 0.05);
    EXPECT_NEAR(summarize(lora_rank_probabilities(law(RankDistribution::powerlaw, -0.1))).mean, 18.2, 0.05);
    const auto unit = summarize(lora_rank_probabilities(law(RankDistribution::powerlaw_unit)));
    EXPECT_NEAR(unit.mean, 9.0, 0.05);
    EXPECT_NEAR(unit.at_min, 0.68, 0.005);
    EXPECT_NEAR(unit.up_to_10, 0.82, 0.005);
    EXPECT_NEAR(unit.from_40, 0.03, 0.005);
    EXPECT_GT(lora_rank_probabilities(law(RankDistribution::powerlaw_unit)).back(), 0.0);  // rank_max can be drawn
    EXPECT_NEAR(summarize(lora_rank_probabilities(law(RankDistribution::uniform))).mean, 27.5, 1e-9);
}

TEST(LoraRanks, draws_follow_the_probabilities) {
    for (const auto distribution :
         {RankDistribution::uniform, RankDistribution::powerlaw, RankDistribution::powerlaw_unit}) {
        const auto p = lora_rank_probabilities(law(distribution));
        const auto ranks = draw_lora_ranks(law(distribution), 200000);
        std::vector<double> share(p.size());
        for (const auto rank : ranks) share.at(static_cast<std::size_t>(rank - 5)) += 1.0 / 200000;
        for (std::size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(share[i], p[i], 5 * std::sqrt(p[i] / 200000) + 1e-9);
    }
}

TEST(LoraRanks, a_client_keeps_its_rank_when_others_come_or_go) {
    const auto few = draw_lora_ranks(law(RankDistribution::powerlaw), 10);
    const auto many = draw_lora_ranks(law(RankDistribution::powerlaw), 100);
    EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
    auto other = law(RankDistribution::powerlaw);
    other.seed_ranks = 2;
    EXPECT_NE(draw_lora_ranks(other, 100), many);
}

TEST(LoraRanks, fixed_is_rank_max_and_one_possible_rank_is_drawn) {
    EXPECT_EQ(draw_lora_ranks(law(RankDistribution::fixed), 3), (std::vector<std::int64_t>{50, 50, 50}));
    for (const auto distribution :
         {RankDistribution::uniform, RankDistribution::powerlaw, RankDistribution::powerlaw_unit}) {
        auto one = law(distribution);
        one.rank_min = one.rank_max = 8;
        EXPECT_EQ(draw_lora_ranks(one, 2), (std::vector<std::int64_t>{8, 8}));
    }
}

TEST(LoraRanks, a_list_is_cycled) {
    auto cycled = law(RankDistribution::list);
    cycled.list = {5, 8, 50};
    EXPECT_EQ(draw_lora_ranks(cycled, 5), (std::vector<std::int64_t>{5, 8, 50, 5, 8}));
    cycled.list = {5, 64};
    EXPECT_THROW((void)draw_lora_ranks(cycled, 5), Error);
    cycled.list = {};
    EXPECT_THROW((void)draw_lora_ranks(cycled, 5), Error);
}

TEST(LoraRanks, a_file_gives_one_rank_per_client) {
    const auto path = std::filesystem::temp_directory_path() / fmt::format("hetlora_ranks_{}.txt", ::getpid());
    auto from_file = law(RankDistribution::file);
    from_file.file = path;
    const auto message = [&](const std::string& content) -> std::string {
        std::ofstream(path) << content;
        try {
            (void)draw_lora_ranks(from_file, 3);
            return "";
        } catch (const Error& error) {
            return error.what();
        }
    };
    EXPECT_EQ(message("# three clients\n5\n 8 # small\n\n50\n"), "");
    EXPECT_NE(message("5\neight\n50\n").find(":2: \"eight\""), std::string::npos);
    EXPECT_NE(message("5\n8\n").find("2 lora_ranks for 3 clients"), std::string::npos);
    EXPECT_NE(message("5\n8\n51\n").find(":3"), std::string::npos);
    std::filesystem::remove(path);
    EXPECT_THROW((void)draw_lora_ranks(from_file, 3), Error);
}

TEST(LoraRanks, senseless_parameters_are_refused) {
    auto bad = law(RankDistribution::powerlaw);
    bad.rank_min = 60;
    EXPECT_THROW((void)draw_lora_ranks(bad, 1), Error);
    EXPECT_THROW((void)draw_lora_ranks(law(RankDistribution::powerlaw_unit, 0.0), 1), Error);
    EXPECT_THROW((void)draw_lora_ranks(law(RankDistribution::powerlaw, 1e6), 1), Error);
}

}  // namespace
}  // namespace hetlora
