// Checkpoints: complete or absent, damaged ones noticed and passed over.
#include "hetlora/store/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

using test::TemporaryFolder;

Checkpoint sample(std::int64_t round) {
    return {.round = round,
            .run_id = "abc",
            .creator_version = "0.1.0",
            .texts = {{"config", "[experiment]\nname = \"ü\"\n"}, {"empty", ""}},
            .numbers = {{"global", {1.0 / 3.0, -0.0, 5e-324, static_cast<double>(round)}}},
            .integers = {{"lora_ranks", {2, 32, std::numeric_limits<std::int64_t>::max()}}}};
}

void flip_byte(const std::filesystem::path& path) {
    std::string content = read_text_file(path);
    content[content.size() / 2] = static_cast<char>(content[content.size() / 2] ^ 1);
    std::ofstream(path, std::ios::binary) << content;
}

TEST(Checkpoint, what_was_written_is_read_bit_for_bit) {
    const TemporaryFolder folder;
    write_checkpoint(folder / "checkpoint", sample(12), 2);

    const Checkpoint read = read_checkpoint(checkpoint_folder(folder / "checkpoint", 12));

    EXPECT_EQ(read.round, 12);
    EXPECT_EQ(read.run_id, "abc");
    EXPECT_EQ(read.creator_version, "0.1.0");
    EXPECT_EQ(read.texts, sample(12).texts);
    EXPECT_EQ(read.numbers, sample(12).numbers);
    EXPECT_TRUE(std::signbit(read.numbers.at("global")[1]));
    EXPECT_EQ(read.integers, sample(12).integers);
    EXPECT_TRUE(std::filesystem::exists(folder / "checkpoint/round_000012/SHA256SUMS"));
}

TEST(Checkpoint, the_newest_are_kept) {
    const TemporaryFolder folder;
    for (const std::int64_t round : {0, 3, 6, 9}) write_checkpoint(folder.path(), sample(round), 2);
    EXPECT_EQ(checkpoint_rounds(folder.path()), (std::vector<std::int64_t>{6, 9}));
    write_checkpoint(folder.path(), sample(9), 1);  // the same round again replaces it
    EXPECT_EQ(checkpoint_rounds(folder.path()), (std::vector<std::int64_t>{9}));
    EXPECT_EQ(checkpoint_rounds(folder / "nowhere"), std::vector<std::int64_t>{});
}

TEST(Checkpoint, damage_in_any_file_is_noticed_and_the_one_before_is_found) {
    for (const char* file : {"state.safetensors", "manifest.json", "SHA256SUMS"}) {
        const TemporaryFolder folder;
        write_checkpoint(folder.path(), sample(1), 5);
        write_checkpoint(folder.path(), sample(2), 5);
        flip_byte(checkpoint_folder(folder.path(), 2) / file);

        const FoundCheckpoint found = newest_checkpoint(folder.path());

        ASSERT_TRUE(found.checkpoint.has_value()) << file;
        EXPECT_EQ(found.checkpoint->round, 1) << file;
        ASSERT_EQ(found.damaged.size(), 1U) << file;
        EXPECT_NE(found.damaged[0].find("round_000002"), std::string::npos) << found.damaged[0];
    }
}

TEST(Checkpoint, none_is_found_where_there_is_none_or_all_are_damaged) {
    const TemporaryFolder folder;
    EXPECT_FALSE(newest_checkpoint(folder / "nowhere").checkpoint.has_value());
    write_checkpoint(folder.path(), sample(2), 5);
    std::filesystem::resize_file(checkpoint_folder(folder.path(), 2) / "state.safetensors", 30);
    const FoundCheckpoint found = newest_checkpoint(folder.path());
    EXPECT_FALSE(found.checkpoint.has_value());
    EXPECT_EQ(found.damaged.size(), 1U);
}

TEST(Checkpoint, another_version_of_the_format_is_refused) {
    const TemporaryFolder folder;
    write_checkpoint(folder.path(), sample(2), 5);
    const auto where = checkpoint_folder(folder.path(), 2);
    std::string manifest = read_text_file(where / "manifest.json");
    const std::string key = "\"schema_version\": ";
    manifest.replace(manifest.find(key) + key.size(), 1, "7");
    write_file_atomically(where / "manifest.json", manifest);
    write_file_atomically(where / "SHA256SUMS", sha256_file(where / "state.safetensors") + "  state.safetensors\n" +
                                                    sha256_file(where / "manifest.json") + "  manifest.json\n");
    try {
        (void)newest_checkpoint(folder.path());
        FAIL() << "no error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::input);
        EXPECT_NE(std::string(error.what()).find("version 7"), std::string::npos) << error.what();
    }
}

TEST(Checkpoint, leftovers_of_an_interrupted_write_are_removed_and_never_read) {
    const TemporaryFolder folder;
    write_checkpoint(folder.path(), sample(2), 5);
    std::filesystem::create_directory(folder / "round_000003.tmp123");
    std::ofstream(folder / "round_000003.tmp123/state.safetensors") << "half";
    EXPECT_EQ(newest_checkpoint(folder.path()).checkpoint->round, 2);
    remove_unfinished_checkpoints(folder.path());
    EXPECT_FALSE(std::filesystem::exists(folder / "round_000003.tmp123"));
    EXPECT_EQ(checkpoint_rounds(folder.path()), std::vector<std::int64_t>{2});
}

TEST(Checkpoint, a_disk_that_refuses_leaves_the_older_ones) {
    const TemporaryFolder folder;
    write_checkpoint(folder.path(), sample(2), 5);
    std::ofstream(folder / "file") << "x";
    EXPECT_THROW(write_checkpoint(folder / "file", sample(3), 5), Error);
    EXPECT_EQ(newest_checkpoint(folder.path()).checkpoint->round, 2);
}

}  // namespace
}  // namespace hetlora
