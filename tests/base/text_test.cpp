#include "hetlora/base/text.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

using Texts = std::vector<std::string>;

TEST(Text, trim_and_split) {
    EXPECT_EQ(trim("  a b\t\r\n"), "a b");
    EXPECT_EQ(trim(" \t "), "");
    EXPECT_EQ(split("a, b ,c", ','), (Texts{"a", "b", "c"}));
    EXPECT_EQ(split("a,,b", ','), (Texts{"a", "", "b"}));
    EXPECT_EQ(split("a,", ','), (Texts{"a", ""}));
    EXPECT_EQ(split("  ", ','), Texts{});
    EXPECT_EQ(join(Texts{"a", "b"}, ", "), "a, b");
    EXPECT_EQ(join(Texts{}, ", "), "");
}

TEST(Text, numbers_are_the_whole_text_or_nothing) {
    EXPECT_EQ(parse_integer("-12"), -12);
    EXPECT_EQ(parse_number("1e-3"), 1e-3);
    EXPECT_EQ(parse_number("2"), 2.0);
    EXPECT_EQ(parse_unsigned("18446744073709551615"), std::numeric_limits<std::uint64_t>::max());
    for (const char* wrong : {"", " 1", "1 ", "1x", "0x10", "1,5", "+1", "--1", "99999999999999999999"}) {
        EXPECT_FALSE(parse_integer(wrong)) << wrong;
    }
    for (const char* wrong : {"", "1.5.", "1,5", "inf", "nan", "1e", "1e999", "1 e3"}) {
        EXPECT_FALSE(parse_number(wrong)) << wrong;
    }
    EXPECT_FALSE(parse_integer("1.0"));
    EXPECT_FALSE(parse_unsigned("-1"));
}

TEST(Text, shortest_text_of_any_double_reads_back_bit_for_bit) {
    EXPECT_EQ(shortest_text(0.1), "0.1");
    EXPECT_EQ(shortest_text(2.0), "2");
    EXPECT_EQ(shortest_text(0.002), "0.002");
    for (std::int64_t i = 0; i < 2000; ++i) {
        const double value =
            standard_normal(hash_seed(1, Purpose::test, i)) * std::pow(10.0, static_cast<double>(i % 60) - 30);
        EXPECT_EQ(parse_number(shortest_text(value)), value);
    }
}

TEST(Text, edit_distance_counts_a_swap_as_one) {
    EXPECT_EQ(edit_distance("", ""), 0U);
    EXPECT_EQ(edit_distance("abc", ""), 3U);
    EXPECT_EQ(edit_distance("rank", "rnak"), 1U);
    EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
    EXPECT_EQ(edit_distance("ca", "abc"), 3U);  // the restricted form: no piece is edited twice
    EXPECT_EQ(edit_distance("rank_max", "rank_maxx"), 1U);
}

TEST(Text, nearest_name_finds_slips_and_refuses_other_words) {
    const Texts names = {"rank_min", "rank_max", "learning_rate", "dropout"};

    EXPECT_EQ(nearest_name("rank_maxx", names), "rank_max");
    EXPECT_EQ(nearest_name("learnig_rate", names), "learning_rate");
    EXPECT_EQ(nearest_name("learning", names), "learning_rate");
    EXPECT_EQ(nearest_name("colour", names), std::nullopt);
    EXPECT_EQ(nearest_name("x", {}), std::nullopt);
    EXPECT_EQ(did_you_mean("dropuot", names), "; did you mean dropout?");
    EXPECT_EQ(did_you_mean("colour", names), "");
}

TEST(Text, sizes_and_times_for_people) {
    EXPECT_EQ(human_bytes(512), "512 B");
    EXPECT_EQ(human_bytes(1536), "1.5 KiB");
    EXPECT_EQ(human_bytes(3.0 * 1024 * 1024 * 1024), "3.0 GiB");
    EXPECT_EQ(human_seconds(0.25), "0.25 s");
    EXPECT_EQ(human_seconds(42.4), "42 s");
    EXPECT_EQ(human_seconds(59.7), "1 min 00 s");
    EXPECT_EQ(human_seconds(185), "3 min 05 s");
    EXPECT_EQ(human_seconds(7620), "2 h 07 min");
    EXPECT_EQ(human_seconds(3 * 86400 + 4 * 3600), "3 d 04 h");
    EXPECT_EQ(human_seconds(-1), "?");
    EXPECT_EQ(human_count(950), "950");
    EXPECT_EQ(human_count(12345), "12.3 k");
    EXPECT_EQ(human_count(4.5e6), "4.50 M");
    EXPECT_EQ(counted(1, "client"), "1 client");
    EXPECT_EQ(counted(0, "MPI rank") + ", " + counted(20, "round"), "0 MPI ranks, 20 rounds");
}

}  // namespace
}  // namespace hetlora
