#include "hetlora/base/sha256.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

TEST(Sha256, fips_vectors) {
    EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256_hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmno"
                         "pqrsmnopqrstnopqrstu"),
              "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    EXPECT_EQ(sha256_hex(std::string(1'000'000, 'a')),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, pieces_of_any_size_give_the_digest_of_the_whole) {
    std::string text;
    for (int i = 0; i < 300; ++i) text += static_cast<char>('a' + i % 26);
    const auto whole = sha256_hex(text);
    for (const std::size_t piece : {1U, 3U, 55U, 56U, 63U, 64U, 65U, 128U, 299U}) {
        Sha256 digest;
        for (std::size_t at = 0; at < text.size(); at += piece) digest.update(std::string_view(text).substr(at, piece));

        EXPECT_EQ(digest.hex(), whole) << "pieces of " << piece;
    }
}

TEST(Sha256, hex_does_not_end_the_message) {
    Sha256 digest;
    digest.update("a");
    EXPECT_EQ(digest.hex(), sha256_hex("a"));
    digest.update("bc");

    EXPECT_EQ(digest.hex(), sha256_hex("abc"));
}

TEST(Sha256, a_file_has_the_digest_of_its_content) {
    const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "hetlora_sha256_test.bin";
    const std::string content(3'000'001, 'x');
    std::ofstream(path, std::ios::binary) << content;

    EXPECT_EQ(sha256_file(path), sha256_hex(content));

    std::filesystem::remove(path);
}

TEST(Sha256, a_missing_file_or_a_folder_is_an_input_error_that_names_it) {
    for (const char* path : {"/nowhere/x.bin", "/tmp"}) {
        try {
            (void)sha256_file(path);
            FAIL() << "no error for " << path;
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
        }
    }
}

}  // namespace
}  // namespace hetlora
