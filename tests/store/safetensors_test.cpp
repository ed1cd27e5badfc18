// safetensors files and checkpoint folders: round trips, every kind of damage, and random damage.
#include "hetlora/store/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/base/sha256.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

void write_bytes(const fs::path& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

std::string read_bytes(const fs::path& path) { return read_text_file(path); }

/// A file with this header text and so many bytes of data.
std::string file_of(const std::string& header, std::size_t data_bytes) {
    const std::uint64_t n = header.size();
    std::string content(8, '\0');
    std::memcpy(content.data(), &n, 8);
    return content + header + std::string(data_bytes, 'x');
}

/// The text of the input error that opening gives; empty if it opens.
std::string error_of(const fs::path& path) {
    try {
        const SafetensorsFile file(path);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::input);
        return error.what();
    }
    return {};
}

/// Writes and opens; the error must name the file and every given word.
void expect_refused(const std::string& content, std::initializer_list<const char*> words) {
    const TemporaryFolder folder;
    write_bytes(folder / "x.safetensors", content);
    const std::string text = error_of(folder / "x.safetensors");
    EXPECT_NE(text.find((folder / "x.safetensors").string()), std::string::npos) << text;
    for (const char* word : words) EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
}

std::span<const std::byte> as_bytes(const auto& values) { return std::as_bytes(std::span(values)); }

const std::vector<float> matrix{1, 2, 3, 4, 5, 6};
const std::vector<std::int64_t> two_numbers{7, -8};
const std::vector<std::uint8_t> flags{1, 0, 1};

std::vector<TensorData> three_tensors() {
    return {{.name = "flags", .dtype = "U8", .shape = {3}, .bytes = as_bytes(flags)},
            {.name = "matrix", .dtype = "F32", .shape = {2, 3}, .bytes = as_bytes(matrix)},
            {.name = "numbers", .dtype = "I64", .shape = {2}, .bytes = as_bytes(two_numbers)}};
}

TEST(Safetensors, a_written_file_reads_back) {
    const TemporaryFolder folder;
    write_safetensors(folder / "a.safetensors", three_tensors(), {{"format", "pt"}});

    const SafetensorsFile file(folder / "a.safetensors");

    EXPECT_EQ(file.names(), (std::vector<std::string>{"flags", "matrix", "numbers"}));
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.info("matrix").dtype, "F32");
    EXPECT_EQ(file.info("matrix").shape, (std::vector<std::int64_t>{2, 3}));
    ASSERT_EQ(file.bytes("matrix").size(), 24U);
    EXPECT_EQ(std::memcmp(file.bytes("matrix").data(), matrix.data(), 24), 0);
    EXPECT_EQ(std::memcmp(file.bytes("numbers").data(), two_numbers.data(), 16), 0);
    EXPECT_EQ(std::memcmp(file.bytes("flags").data(), flags.data(), 3), 0);
}

TEST(Safetensors, written_tensors_are_aligned_and_the_header_is_padded) {
    const TemporaryFolder folder;
    write_safetensors(folder / "a.safetensors", three_tensors());
    const SafetensorsFile file(folder / "a.safetensors");
    for (const auto& [name, info] : file.tensors()) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.bytes(name).data()) % dtype_bytes(info.dtype), 0U) << name;
    }
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file.file_bytes().data(), 8);
    EXPECT_EQ(header_bytes % 8, 0U);
}

TEST(Safetensors, equal_input_gives_equal_bytes_and_no_temporary_file_stays) {
    const TemporaryFolder folder;
    auto reversed = three_tensors();
    std::swap(reversed.front(), reversed.back());
    write_safetensors(folder / "a.safetensors", three_tensors());
    write_safetensors(folder / "b.safetensors", reversed);
    write_safetensors(folder / "a.safetensors", three_tensors());
    EXPECT_EQ(read_bytes(folder / "a.safetensors"), read_bytes(folder / "b.safetensors"));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(Safetensors, scalars_empty_tensors_and_empty_files_are_fine) {
    const TemporaryFolder folder;
    const std::vector<float> one{1.5F};
    const std::vector<TensorData> tensors{{.name = "empty", .dtype = "F32", .shape = {0, 7}, .bytes = {}},
                                          {.name = "scalar", .dtype = "F32", .shape = {}, .bytes = as_bytes(one)}};
    write_safetensors(folder / "a.safetensors", tensors);
    write_safetensors(folder / "none.safetensors", {});
    const SafetensorsFile file(folder / "a.safetensors");
    EXPECT_EQ(file.bytes("scalar").size(), 4U);
    EXPECT_EQ(file.bytes("empty").size(), 0U);
    EXPECT_TRUE(SafetensorsFile(folder / "none.safetensors").names().empty());
}

TEST(Safetensors, the_writer_refuses_what_does_not_fit) {
    const TemporaryFolder folder;
    auto twice = three_tensors();
    twice[1].name = "flags";
    auto short_one = three_tensors();
    short_one[1].shape = {3, 3};
    auto unknown = three_tensors();
    unknown[1].dtype = "F31";
    EXPECT_THROW(write_safetensors(folder / "a", twice), Error);
    EXPECT_THROW(write_safetensors(folder / "a", short_one), Error);
    EXPECT_THROW(write_safetensors(folder / "a", unknown), Error);
    EXPECT_THROW(write_safetensors(folder / "no_folder" / "a", three_tensors()), Error);
    EXPECT_FALSE(fs::exists(folder / "a"));
}

TEST(Safetensors, a_failed_write_keeps_the_old_file) {
    const TemporaryFolder folder;
    write_safetensors(folder / "a.safetensors", three_tensors());
    const std::string before = read_bytes(folder / "a.safetensors");
    const std::vector<TensorData> not_utf8{{.name = "\xff", .dtype = "U8", .shape = {3}, .bytes = as_bytes(flags)}};
    EXPECT_THROW(write_safetensors(folder / "a.safetensors", not_utf8), Error);
    EXPECT_EQ(read_bytes(folder / "a.safetensors"), before);
}

TEST(Safetensors, missing_files_and_folders_are_named) {
    const TemporaryFolder folder;
    EXPECT_NE(error_of(folder / "nothing").find("No such file"), std::string::npos);
    EXPECT_NE(error_of(folder.path()).find("not a regular file"), std::string::npos);
}

TEST(Safetensors, foreign_and_truncated_files_are_refused) {
    expect_refused("", {"0 bytes"});
    expect_refused("1234567", {"7 bytes"});
    expect_refused(std::string(100, 'z'), {"claims a header of"});
    expect_refused(file_of("{}", 0).substr(0, 9), {"claims a header of 2 bytes"});
    std::string absurd = file_of("{}", 0);
    const std::uint64_t huge = 100'000'001;
    std::memcpy(absurd.data(), &huge, 8);
    expect_refused(absurd, {"100000001"});
    const std::uint64_t overflowing = ~std::uint64_t{3};
    std::memcpy(absurd.data(), &overflowing, 8);
    expect_refused(absurd, {"claims a header of"});
}

TEST(Safetensors, malformed_headers_are_refused) {
    expect_refused(file_of("{", 0), {"not valid JSON"});
    expect_refused(file_of("", 0), {"not valid JSON"});
    expect_refused(file_of("[]", 0), {"not an object"});
    expect_refused(file_of("{\"\xff\":1}", 0), {"not valid JSON"});
    expect_refused(file_of(R"({"a":1})", 0), {"\"a\"", "not an object"});
    expect_refused(file_of(R"({"__metadata__":{"a":1}})", 0), {"__metadata__", "not a string"});
    expect_refused(file_of(R"({"__metadata__":[]})", 0), {"__metadata__"});
    expect_refused(file_of(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), {"\"a\"", "no \"dtype\""});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[1]}})", 1), {"no \"data_offsets\""});
    expect_refused(file_of(R"({"a":{"dtype":"X8","shape":[1],"data_offsets":[0,1]}})", 1), {"unknown dtype \"X8\""});
    expect_refused(file_of(R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1), {"dtype"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1), {"shape"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1), {"extent -1"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1), {"extent 1.5"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1), {"data_offsets"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,1]}})", 1), {"data_offsets"});
}

TEST(Safetensors, duplicate_names_are_refused) {
    expect_refused(
        file_of(
            R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
            2),
        {"names \"a\" twice"});
    expect_refused(file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1),
                   {"names \"dtype\" twice"});
}

TEST(Safetensors, wrong_sizes_gaps_and_overlaps_are_refused) {
    const auto tensor = [](const char* name, const char* shape, int begin, int end) {
        return fmt::format(R"("{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})", name, shape, begin, end);
    };
    const auto two = [&](const std::string& a, const std::string& b) { return "{" + a + "," + b + "}"; };
    expect_refused(file_of("{" + tensor("a", "[2]", 0, 4) + "}", 4), {"\"a\"", "[2]", "needs 8 bytes", "gives it 4"});
    expect_refused(file_of("{" + tensor("a", "[2]", 0, 8) + "}", 4), {"outside the 4 bytes"});
    expect_refused(file_of("{" + tensor("a", "[1]", 8, 4) + "}", 8), {"outside"});
    expect_refused(file_of("{" + tensor("a", "[4611686018427387904,4]", 0, 0) + "}", 0), {"more than 2^63"});
    expect_refused(file_of("{" + tensor("a", "[9223372036854775807,9223372036854775807]", 0, 4) + "}", 4),
                   {"more than 2^63"});
    expect_refused(file_of(two(tensor("a", "[1]", 0, 4), tensor("b", "[1]", 8, 12)), 12), {"\"b\"", "a gap"});
    expect_refused(file_of(two(tensor("a", "[2]", 0, 8), tensor("b", "[1]", 4, 8)), 8), {"\"b\"", "overlaps"});
    expect_refused(file_of("{" + tensor("a", "[1]", 0, 4) + "}", 8), {"end at byte 4 of 8"});
}

TEST(Safetensors, an_unknown_tensor_is_an_input_error) {
    const TemporaryFolder folder;
    write_safetensors(folder / "a.safetensors", three_tensors());
    const SafetensorsFile file(folder / "a.safetensors");
    EXPECT_FALSE(file.contains("x"));
    EXPECT_THROW((void)file.bytes("x"), Error);
}

// Fuzzing with hashed damage: opening and reading a damaged file either works or is an input error, never a crash.
TEST(Safetensors, random_damage_never_crashes) {
    const TemporaryFolder folder;
    write_safetensors(folder / "good.safetensors", three_tensors(), {{"format", "pt"}});
    const std::string good = read_bytes(folder / "good.safetensors");
    int refused = 0;
    const auto try_open = [&](const std::string& content) {
        write_bytes(folder / "bad.safetensors", content);
        try {
            const SafetensorsFile file(folder / "bad.safetensors");
            unsigned sum = 0;
            for (const auto& name : file.names()) {
                for (const std::byte b : file.bytes(name)) sum += static_cast<unsigned>(b);
            }
            EXPECT_LT(sum, 1U << 30);
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            ++refused;
        }
    };
    for (std::size_t size = 0; size < good.size(); ++size) try_open(good.substr(0, size));
    EXPECT_EQ(refused, static_cast<int>(good.size())) << "every truncation must be noticed";
    for (int round = 0; round < 3000; ++round) {
        std::string bad = good;
        const int flips = 1 + static_cast<int>(hash_seed(1, Purpose::test, round) % 4);
        for (int flip = 0; flip < flips; ++flip) {
            const auto bits = hash_seed(2, Purpose::test, round, flip);
            bad[(bits >> 8) % bad.size()] = static_cast<char>(bits & 0xFF);
        }
        try_open(bad);
    }
}

void write_shards(const TemporaryFolder& folder, const std::string& index) {
    const auto tensors = three_tensors();
    write_safetensors(folder / "model-00001-of-00002.safetensors", std::span(tensors).first(2));
    write_safetensors(folder / "model-00002-of-00002.safetensors", std::span(tensors).last(1));
    write_bytes(folder / "model.safetensors.index.json", index);
}

constexpr const char* good_index = R"({"metadata":{"total_size":43},"weight_map":{
    "flags":"model-00001-of-00002.safetensors","matrix":"model-00001-of-00002.safetensors","numbers":"model-00002-of-00002.safetensors"}})";

TEST(CheckpointFolder, one_file) {
    const TemporaryFolder folder;
    write_safetensors(folder / "model.safetensors", three_tensors());
    const CheckpointFolder checkpoint(folder.path());
    EXPECT_EQ(checkpoint.names().size(), 3U);
    EXPECT_EQ(checkpoint.info("matrix").dtype, "F32");
    EXPECT_EQ(checkpoint.sha256(), sha256_file(folder / "model.safetensors"));
}

TEST(CheckpointFolder, shards_are_one_view) {
    const TemporaryFolder folder;
    write_shards(folder, good_index);
    const CheckpointFolder checkpoint(folder.path());
    EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"flags", "matrix", "numbers"}));
    EXPECT_EQ(std::memcmp(checkpoint.bytes("numbers").data(), two_numbers.data(), 16), 0);
    EXPECT_EQ(std::memcmp(checkpoint.bytes("matrix").data(), matrix.data(), 24), 0);
    EXPECT_EQ(checkpoint.sha256(), sha256_hex(read_bytes(folder / "model-00001-of-00002.safetensors") +
                                              read_bytes(folder / "model-00002-of-00002.safetensors")));
    EXPECT_THROW((void)checkpoint.bytes("x"), Error);
}

TEST(CheckpointFolder, index_and_shards_must_agree) {
    const auto refused = [](const std::string& index, const char* word) {
        const TemporaryFolder folder;
        write_shards(folder, index);
        try {
            const CheckpointFolder checkpoint(folder.path());
            ADD_FAILURE() << "accepted " << index;
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::input);
            EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
        }
    };
    refused("", "not valid JSON");
    refused("{}", "weight_map");
    refused(R"({"weight_map":{}})", "weight_map");
    refused(R"({"weight_map":{"flags":7}})", "file name of its shard");
    refused(R"({"weight_map":{"flags":"../model.safetensors"}})", "file name of its shard");
    refused(R"({"weight_map":{"flags":"model-00009-of-00002.safetensors"}})", "model-00009");
    refused(R"({"weight_map":{"flags":"model-00001-of-00002.safetensors"}})", "does not list");
    refused(R"({"weight_map":{"flags":"model-00001-of-00002.safetensors","matrix":"model-00002-of-00002.safetensors",
        "numbers":"model-00002-of-00002.safetensors"}})",
            "matrix");
}

TEST(CheckpointFolder, a_folder_without_a_model_is_an_input_error) {
    const TemporaryFolder folder;
    EXPECT_THROW(CheckpointFolder{folder.path()}, Error);
    EXPECT_THROW(CheckpointFolder{folder / "missing"}, Error);
}

}  // namespace
}  // namespace hetlora
