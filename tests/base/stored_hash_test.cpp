// A hash beside a file is believed exactly as long as the file has not changed, and never for a small file.
#include "hetlora/base/stored_hash.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <fstream>

#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

class StoredHash : public testing::Test {
protected:
    void SetUp() override {
        folder_ = fs::path(testing::TempDir()) / ("hetlora_stored_hash_" + std::to_string(::getpid()));
        create_folder(folder_);
        file_ = folder_ / "data.h5";
        beside_ = folder_ / "data.h5.sha256";
        write_file_atomically(file_, "some content");
    }
    void TearDown() override { fs::remove_all(folder_); }

    /// Puts another hash into the stored file: seen again, it was believed.
    void forge() {
        std::string text = read_text_file(beside_);
        text.replace(0, 64, std::string(64, 'a'));
        write_file_atomically(beside_, text);
    }

    fs::path folder_, file_, beside_;
};

TEST_F(StoredHash, is_written_once_and_believed) {
    EXPECT_EQ(stored_sha256(file_, 1), sha256_file(file_));
    EXPECT_TRUE(read_text_file(beside_).starts_with(sha256_file(file_) + "  data.h5\n# size 12 mtime_ns "));
    forge();
    EXPECT_EQ(stored_sha256(file_, 1), std::string(64, 'a'));
}

TEST_F(StoredHash, of_a_changed_file_is_made_again) {
    (void)stored_sha256(file_, 1);
    forge();
    const auto time = fs::last_write_time(file_);
    write_file_atomically(file_, "SOME CONTENT");  // the same size
    fs::last_write_time(file_, time + std::chrono::nanoseconds(1000));
    EXPECT_EQ(stored_sha256(file_, 1), sha256_hex("SOME CONTENT"));
    forge();
    write_file_atomically(file_, "longer content");
    fs::last_write_time(file_, time + std::chrono::nanoseconds(1000));  // the same time
    EXPECT_EQ(stored_sha256(file_, 1), sha256_hex("longer content"));
}

TEST_F(StoredHash, that_is_damaged_is_made_again) {
    for (const std::string text : {"\n# size 12", "xyz  data.h5\n# size 12", "xyz  data.h5\n# size 12 mtime_ns 0\n"}) {
        write_file_atomically(beside_, text);
        EXPECT_EQ(stored_sha256(file_, 1), sha256_file(file_));
        EXPECT_TRUE(read_text_file(beside_).starts_with(sha256_file(file_)));
    }
}

TEST_F(StoredHash, of_somebody_else_is_left_alone) {
    const std::string theirs = std::string(64, 'b') + "  data.h5\n";
    write_file_atomically(beside_, theirs);
    EXPECT_EQ(stored_sha256(file_, 1), sha256_file(file_));
    EXPECT_EQ(read_text_file(beside_), theirs);
}

TEST_F(StoredHash, is_for_large_files_only) {
    EXPECT_EQ(stored_sha256(file_, 13), sha256_file(file_));
    EXPECT_FALSE(fs::exists(beside_));
    EXPECT_THROW((void)stored_sha256(folder_ / "nothing", 1), Error);
}

}  // namespace
}  // namespace hetlora
