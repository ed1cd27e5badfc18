#include "hetlora/base/file_io.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "thrown.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

class FileIo : public testing::Test {
protected:
    void SetUp() override {
        folder_ = fs::path(testing::TempDir()) /
                  ("hetlora_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
        fs::remove_all(folder_);
        create_folder(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    [[nodiscard]] int n_entries() const {
        return static_cast<int>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
    }

    fs::path folder_;
};

TEST_F(FileIo, what_was_written_is_read_and_nothing_else_is_left) {
    const std::string content = std::string("a\0b\n", 4) + std::string(200'000, 'x');
    write_file_atomically(folder_ / "file", content);

    EXPECT_EQ(read_text_file(folder_ / "file"), content);
    EXPECT_EQ(n_entries(), 1);
}

TEST_F(FileIo, an_existing_file_is_replaced) {
    write_file_atomically(folder_ / "file", "a long old content");
    write_file_atomically(folder_ / "file", "new");

    EXPECT_EQ(read_text_file(folder_ / "file"), "new");
}

TEST_F(FileIo, leftovers_of_a_killed_process_do_not_disturb) {
    const auto leftover = folder_ / fmt::format(".file.{}.0.tmp", ::getpid());
    write_file_atomically(leftover, "half");
    write_file_atomically(folder_ / "file", "whole");

    EXPECT_EQ(read_text_file(folder_ / "file"), "whole");
    EXPECT_EQ(read_text_file(leftover), "half");
}

TEST_F(FileIo, a_failed_write_names_path_and_reason_and_leaves_no_temporary_file) {
    create_folder(folder_ / "busy" / "inside");
    const auto missing = test::error_of([&] { write_file_atomically(folder_ / "none" / "file", "x"); });
    const auto busy = test::error_of([&] { write_file_atomically(folder_ / "busy", "x"); });

    EXPECT_EQ(missing.code(), ExitCode::environment);
    EXPECT_NE(std::string(missing.what()).find("none/file: No such file or directory"), std::string::npos)
        << missing.what();
    EXPECT_EQ(busy.code(), ExitCode::environment);
    EXPECT_EQ(n_entries(), 1);
}

TEST_F(FileIo, a_missing_file_is_an_error_with_the_wanted_code) {
    const auto input = test::error_of([&] { (void)read_text_file(folder_ / "none"); });
    const auto usage = test::error_of([&] { (void)read_text_file(folder_ / "none", ExitCode::usage); });

    EXPECT_EQ(input.code(), ExitCode::input);
    EXPECT_EQ(usage.code(), ExitCode::usage);
    EXPECT_NE(std::string(input.what()).find("none: No such file or directory"), std::string::npos) << input.what();
    EXPECT_EQ(test::error_of([&] { (void)read_text_file(folder_); }).code(), ExitCode::input);
}

TEST_F(FileIo, sync_of_a_missing_path_fails) {
    write_file_atomically(folder_ / "file", "x");

    EXPECT_NO_THROW(sync_file(folder_ / "file"));
    EXPECT_NO_THROW(sync_folder(folder_));
    EXPECT_THROW(sync_file(folder_ / "none"), Error);
    EXPECT_THROW(sync_folder(folder_ / "none"), Error);
}

TEST_F(FileIo, create_folder_through_a_file_fails) {
    write_file_atomically(folder_ / "file", "x");

    EXPECT_EQ(test::error_of([&] { create_folder(folder_ / "file" / "sub"); }).code(), ExitCode::environment);
}

TEST(ExpandPath, variables_and_home_are_replaced) {
    ::setenv("HETLORA_TEST_VARIABLE", "value", 1);
    ::setenv("HOME", "/home/someone", 1);

    EXPECT_EQ(expand_variables("a${HETLORA_TEST_VARIABLE}/${HETLORA_TEST_VARIABLE}b"), "avalue/valueb");
    EXPECT_EQ(expand_variables("costs $5 {x}"), "costs $5 {x}");
    EXPECT_EQ(expand_path("~"), "/home/someone");
    EXPECT_EQ(expand_path("~/${HETLORA_TEST_VARIABLE}"), "/home/someone/value");
    EXPECT_EQ(expand_path("a/~"), "a/~");
}

TEST(ExpandPath, unknown_variables_open_braces_and_other_homes_are_errors) {
    const auto unknown = test::error_of([] { (void)expand_variables("x/${HETLORA_TEST_UNSET}"); });

    EXPECT_EQ(unknown.code(), ExitCode::usage);
    EXPECT_NE(std::string(unknown.what()).find("HETLORA_TEST_UNSET"), std::string::npos);
    EXPECT_EQ(test::error_of([] { (void)expand_variables("${HOME"); }).code(), ExitCode::usage);
    EXPECT_EQ(test::error_of([] { (void)expand_path("~other/x"); }).code(), ExitCode::usage);
}

TEST(AbsolutePath, is_clean_and_against_the_working_directory) {
    EXPECT_EQ(absolute_path("a/../b/"), fs::current_path() / "b");
    EXPECT_EQ(absolute_path("/x/./y"), "/x/y");
    EXPECT_EQ(absolute_path("/"), "/");
    EXPECT_EQ(absolute_path(""), "");
}

}  // namespace
}  // namespace hetlora
