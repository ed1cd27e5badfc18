// HDF5 handles: values survive, failures are errors with HDF5's reason, nothing is overwritten.
#include "hetlora/store/hdf5_handle.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <utility>

#include "hetlora/base/error.hpp"
#include "make_corpus.hpp"
#include "thrown.hpp"

namespace hetlora::hdf5 {
namespace {

using test::error_of;
using test::TemporaryFolder;

bool has(const Error& error, const std::string& word) {
    return std::string(error.what()).find(word) != std::string::npos;
}

TEST(Hdf5Handle, attributes_survive_and_can_be_replaced) {
    const TemporaryFolder folder;
    {
        File file = File::create(folder / "a.h5");
        file.write_attribute("whole", std::int64_t{1} << 62);
        file.write_attribute("real", 0.1);
        file.write_attribute("text", "Grüße");
        file.write_attribute("empty", "");
        file.write_attribute("list", std::vector<std::string>{"round", "slot"});
        file.write_attribute("text", "a longer text than before");
        file.write_attribute("whole", 3);
        file.close();
    }

    const File file = File::open_read(folder / "a.h5");

    EXPECT_EQ(file.read_int("whole"), 3);
    EXPECT_EQ(file.read_double("real"), 0.1);
    EXPECT_EQ(file.read_double("whole"), 3.0);
    EXPECT_EQ(file.read_text("text"), "a longer text than before");
    EXPECT_EQ(file.read_text("empty"), "");
    EXPECT_TRUE(file.attribute_is_text("text"));
    EXPECT_FALSE(file.attribute_is_integer("text"));
    EXPECT_FALSE(file.has_attribute("missing"));
    EXPECT_EQ(file.attribute_names().size(), 5U);
}

TEST(Hdf5Handle, long_text_is_cut_between_characters_and_says_so) {
    const TemporaryFolder folder;
    std::string text = "x";
    while (text.size() < 100000) text += "ü";
    File file = File::create(folder / "a.h5");
    file.write_attribute("text", text);

    const std::string back = file.read_text("text");

    EXPECT_LT(back.size(), 61000U);
    EXPECT_NE(back.find("[cut: 59999 of 100001 bytes]"), std::string::npos) << back.substr(back.size() - 50);
    EXPECT_EQ(back.substr(0, 59999), text.substr(0, 59999));
}

TEST(Hdf5Handle, rows_are_appended_read_and_cut) {
    const TemporaryFolder folder;
    File file = File::create(folder / "a.h5");
    Group group = file.create_group("g");
    Dataset table =
        group.create_dataset("table", ElementType::f64, {.extent = {0, 3}, .unlimited = true, .chunk_rows = 2});

    table.append<double>(std::vector<double>{1, 2, 3, 4, 5, 6});
    table.append<double>(std::vector<double>{7, 8, 9});
    std::vector<float> middle(3);
    table.read<float>(1, middle);
    table.resize_rows(2);
    table.resize_rows(3);

    EXPECT_EQ(middle, (std::vector<float>{4, 5, 6}));
    EXPECT_EQ(table.shape(), (std::vector<std::int64_t>{3, 3}));
    const std::vector<double> all = table.read_all<double>();
    EXPECT_EQ(all[5], 6);
    EXPECT_TRUE(std::isnan(all[6])) << "rows that were never written are not measured";
    EXPECT_EQ(group.open_dataset("table").where(), (folder / "a.h5").string() + ":/g/table");
}

TEST(Hdf5Handle, every_element_type_survives) {
    const TemporaryFolder folder;
    File file = File::create(folder / "a.h5");
    const auto check = [&file]<typename T>(const std::string& name, std::vector<T> values, ElementType type) {
        file.create_array<T>(name, values);
        const Dataset data = file.open_dataset(name);
        EXPECT_EQ(data.type(), type) << name;
        EXPECT_EQ(data.read_all<T>(), values) << name;
    };
    check("i8", std::vector<std::int8_t>{-128, 127}, ElementType::i8);
    check("u8", std::vector<std::uint8_t>{0, 255}, ElementType::u8);
    check("i32", std::vector<std::int32_t>{-2147483647, 7}, ElementType::i32);
    check("i64", std::vector<std::int64_t>{std::int64_t{-1} << 62, 7}, ElementType::i64);
    check("f32", std::vector<float>{0.1F, -3}, ElementType::f32);
    check("f64", std::vector<double>{0.1, 1e300}, ElementType::f64);
    check("none", std::vector<double>{}, ElementType::f64);
    const std::vector<std::string> texts{"a", "", "Zoë"};
    file.create_strings("texts", texts);
    EXPECT_EQ(file.open_dataset("texts").read_strings(), texts);
    EXPECT_EQ(file.open_dataset("texts").type(), ElementType::text);
    EXPECT_EQ(file.names(), (std::vector<std::string>{"i8", "u8", "i32", "i64", "f32", "f64", "none", "texts"}));
}

TEST(Hdf5Handle, missing_things_are_input_errors_that_name_the_place) {
    const TemporaryFolder folder;
    File file = File::create(folder / "a.h5");
    file.create_group("g");
    file.write_attribute("real", 0.5);

    for (const Error& error :
         {error_of([&] { (void)file.open_dataset("g/x"); }), error_of([&] { (void)file.open_dataset("no/x"); }),
          error_of([&] { (void)file.open_group("no"); }), error_of([&] { (void)file.read_int("no"); }),
          error_of([&] { (void)file.read_int("real"); }), error_of([&] { (void)file.read_text("real"); })}) {
        EXPECT_EQ(error.code(), ExitCode::input) << error.what();
        EXPECT_TRUE(has(error, "a.h5")) << error.what();
    }
}

TEST(Hdf5Handle, files_that_are_none_are_input_errors) {
    const TemporaryFolder folder;
    std::ofstream(folder / "text.h5") << "no HDF5 here";
    std::ofstream(folder / "empty.h5").close();
    File::create(folder / "cut.h5").create_array<double>("x", std::vector<double>(1000));
    std::filesystem::resize_file(folder / "cut.h5", 4000);

    for (const char* name : {"text.h5", "empty.h5", "cut.h5", "missing.h5"}) {
        const Error error = error_of([&] { (void)File::open_read(folder / name); });
        EXPECT_EQ(error.code(), ExitCode::input) << error.what();
        EXPECT_TRUE(has(error, name)) << error.what();
    }
    EXPECT_TRUE(has(error_of([&] { (void)File::open_read(folder / "cut.h5"); }), "truncated"));
    EXPECT_TRUE(has(error_of([&] { (void)File::open_read(folder.path()); }), "folder"));
}

TEST(Hdf5Handle, nothing_is_overwritten_and_unwritable_places_are_environment_errors) {
    const TemporaryFolder folder;
    File::create(folder / "a.h5").close();
    std::ofstream(folder / "file") << "x";

    const Error exists = error_of([&] { (void)File::create(folder / "a.h5"); });
    const Error nowhere = error_of([&] { (void)File::create(folder / "no/such/a.h5"); });

    EXPECT_EQ(exists.code(), ExitCode::environment);
    EXPECT_EQ(nowhere.code(), ExitCode::environment);
    EXPECT_TRUE(has(nowhere, "No such file")) << nowhere.what();
}

TEST(Hdf5Handle, writing_to_a_file_opened_for_reading_is_an_error) {
    const TemporaryFolder folder;
    File::create(folder / "a.h5").close();
    File file = File::open_read(folder / "a.h5");

    const Error error = error_of([&] { file.write_attribute("x", 1); });

    EXPECT_EQ(error.code(), ExitCode::environment);
    EXPECT_TRUE(has(error, "HDF5 says")) << error.what();
}

TEST(Hdf5Handle, rows_outside_are_refused) {
    const TemporaryFolder folder;
    File file = File::create(folder / "a.h5");
    Dataset data = file.create_array<double>("x", std::vector<double>(4));
    std::vector<double> five(5);

    EXPECT_EQ(error_of([&] { data.read<double>(0, five); }).code(), ExitCode::input);
    EXPECT_EQ(error_of([&] { data.write<double>(0, five); }).code(), ExitCode::bug);
    EXPECT_EQ(error_of([&] { data.resize_rows(9); }).code(), ExitCode::environment);
}

TEST(Hdf5Handle, handles_move_and_close_once) {
    const TemporaryFolder folder;
    File first = File::create(folder / "a.h5");
    const std::int64_t id = first.id();

    File second = std::move(first);

    EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): moved-from handles are empty by contract
    EXPECT_EQ(second.id(), id);
    second.close();
    second.close();
    EXPECT_FALSE(second);
}

TEST(Hdf5Handle, a_second_reader_sees_what_was_flushed) {
    const TemporaryFolder folder;
    File writer = File::create(folder / "a.h5");
    writer.write_attribute("x", 7);
    writer.flush();

    const File reader = File::open_read(folder / "a.h5");

    EXPECT_EQ(reader.read_int("x"), 7);
}

}  // namespace
}  // namespace hetlora::hdf5
