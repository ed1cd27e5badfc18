// GGUF files: well-formed ones, cut off at every byte, and every kind of damage; number formats against their rules.
// Those formats and whole models are held against the `gguf` package in tests/python/test_gguf_models.py.
#include "hetlora/store/gguf.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/base/sha256.hpp"
#include "make_corpus.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

/// Puts a GGUF file together, right or wrong.
class GgufText {
public:
    template <typename T>
    GgufText& number(T value) {
        content.append(reinterpret_cast<const char*>(&value), sizeof(T));
        return *this;
    }
    GgufText& text(const std::string& value) {
        number(std::uint64_t{value.size()});
        content += value;
        return *this;
    }
    GgufText& begin(std::uint64_t n_tensors, std::uint64_t n_values, std::uint32_t version = 3) {
        content = "GGUF";
        return number(version).number(n_tensors).number(n_values);
    }
    GgufText& tensor(const std::string& name, const std::vector<std::uint64_t>& extents, std::uint32_t type,
                     std::uint64_t offset) {
        text(name).number(static_cast<std::uint32_t>(extents.size()));
        for (const auto extent : extents) number(extent);
        return number(type).number(offset);
    }
    GgufText& data(std::size_t bytes) {
        content.resize((content.size() + 31) / 32 * 32);
        for (std::size_t i = 0; i < bytes; ++i) content.push_back(static_cast<char>(i));
        return *this;
    }

    std::string content;
};

/// Every type of value, and two tensors: "a" [2, 3] F32 at 0, "b" [4] F16 at 32.
GgufText good(std::uint32_t version = 3) {
    GgufText file;
    file.begin(2, 7, version);
    file.text("x.count").number(std::uint32_t{4}).number(std::uint32_t{12});
    file.text("x.long").number(std::uint32_t{10}).number(std::uint64_t{1} << 40);
    file.text("x.minus").number(std::uint32_t{5}).number(std::int32_t{-3});
    file.text("x.eps").number(std::uint32_t{6}).number(0.25F);
    file.text("x.name").number(std::uint32_t{8}).text("caf\xc3\xa9");
    file.text("x.words").number(std::uint32_t{9}).number(std::uint32_t{8}).number(std::uint64_t{2}).text("a").text("");
    file.text("x.flags").number(std::uint32_t{9}).number(std::uint32_t{7}).number(std::uint64_t{3});
    file.content += std::string("\1\0\1", 3);
    file.tensor("a", {3, 2}, 0, 0).tensor("b", {4}, 1, 32);
    return file.data(40);
}

/// The text of the input error that opening gives; empty if it opens.
std::string gguf_error(const std::string& content) {
    const TemporaryFolder folder;
    const fs::path path = folder / "m.gguf";
    std::ofstream(path, std::ios::binary) << content;
    try {
        const GgufFile file(path);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::input);
        const std::string text = error.what();
        EXPECT_NE(text.find(path.string()), std::string::npos) << text;
        return text;
    }
    return {};
}

void expect_gguf_refused(const std::string& content, const std::string& word) {
    const std::string text = gguf_error(content);
    EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
}

TEST(Gguf, gives_back_metadata_and_tensors) {
    for (const std::uint32_t version : {2U, 3U}) {
        const TemporaryFolder folder;
        const fs::path path = folder / "m.gguf";
        const std::string content = good(version).content;
        std::ofstream(path, std::ios::binary) << content;
        const GgufFile file(path);
        EXPECT_EQ(file.integer("x.count"), 12);
        EXPECT_EQ(file.integer("x.long"), std::int64_t{1} << 40);
        EXPECT_EQ(file.integer("x.minus"), -3);
        EXPECT_EQ(file.number("x.eps"), 0.25);
        EXPECT_EQ(file.text("x.name"), "caf\xc3\xa9");
        EXPECT_EQ(file.length("x.words"), 2);
        EXPECT_EQ(file.length("x.flags"), 3);
        EXPECT_EQ(file.keys().size(), 7U);
        EXPECT_FALSE(file.integer("x.none") || file.number("x.none") || file.text("x.none") || file.length("x.none"));
        EXPECT_THROW((void)file.integer("x.eps"), Error);
        EXPECT_THROW((void)file.integer("x.words"), Error);
        EXPECT_THROW((void)file.number("x.count"), Error);
        EXPECT_THROW((void)file.text("x.count"), Error);
        EXPECT_THROW((void)file.length("x.name"), Error);

        ASSERT_NE(file.find("a"), nullptr);
        const GgufTensor& a = *file.find("a");
        EXPECT_EQ(a.shape, (std::vector<std::int64_t>{2, 3}));  // the file has the fastest first
        EXPECT_EQ(a.rows(), 2);
        EXPECT_EQ(file.bytes(a).size(), 24U);
        const std::size_t data = content.size() - 40;
        EXPECT_EQ(std::memcmp(file.bytes(a).data(), content.data() + data, 24), 0);
        EXPECT_EQ(std::memcmp(file.bytes(*file.find("b")).data(), content.data() + data + 32, 8), 0);
        float second[3];
        file.read_rows(a, 1, 1, second);
        EXPECT_EQ(std::memcmp(second, content.data() + data + 12, 12), 0);
        EXPECT_THROW(file.read_rows(a, 1, 2, second), Error);
        EXPECT_EQ(file.find("c"), nullptr);
        EXPECT_TRUE(is_gguf_file(path));
        EXPECT_EQ(base_identity_sha256(path), sha256_hex(content));
    }
}

TEST(Gguf, cut_off_at_every_byte_is_refused) {
    const std::string whole = good().content;
    ASSERT_EQ(gguf_error(whole), "");
    for (std::size_t size = 0; size < whole.size(); ++size) {
        EXPECT_NE(gguf_error(whole.substr(0, size)), "") << size << " of " << whole.size() << " bytes were taken";
    }
}

TEST(Gguf, any_changed_byte_is_read_or_refused_but_never_more) {
    const std::string whole = good().content;
    for (std::size_t at = 0; at < whole.size() - 40; ++at) {
        for (const int value : {0, 1, 0x7f, 0xff}) {
            std::string changed = whole;
            changed[at] = static_cast<char>(value);
            (void)gguf_error(changed);  // must neither crash nor throw anything but an input error
        }
    }
}

TEST(Gguf, other_files_versions_and_byte_orders_are_refused) {
    expect_gguf_refused("PK\3\4 a zip file, not a model at all", "not a GGUF file");
    expect_gguf_refused(GgufText().begin(0, 0, 1).content, "version 1 is not read");
    expect_gguf_refused(GgufText().begin(0, 0, 4).content, "version 4 is not read");
    expect_gguf_refused(GgufText().begin(0, 0, 0x03000000).content, "big-endian");
    GgufText part;
    part.begin(0, 1).text("split.count").number(std::uint32_t{2}).number(std::uint16_t{3});
    expect_gguf_refused(part.content, "one part of 3");
}

TEST(Gguf, promises_that_the_file_does_not_hold_cost_nothing) {
    constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
    for (const std::uint64_t count : {huge, huge / 2, std::uint64_t{1} << 40, std::uint64_t{1} << 61}) {
        expect_gguf_refused(GgufText().begin(count, 0).content, "cut off");
        expect_gguf_refused(GgufText().begin(0, count).content, "cut off");
        GgufText key;
        key.begin(0, 1).number(count);
        expect_gguf_refused(key.content, "cut off");
        for (const std::uint32_t type : {0U, 4U, 8U, 12U}) {
            GgufText array;
            array.begin(0, 1).text("k").number(std::uint32_t{9}).number(type).number(count).number(std::uint64_t{1});
            expect_gguf_refused(array.content, "cut off");
        }
        const auto of_extents = [&](const std::vector<std::uint64_t>& extents) {
            return gguf_error(GgufText().begin(1, 0).tensor("t", extents, 0, 0).data(64).content);
        };
        EXPECT_NE(of_extents({count}), "");
        EXPECT_NE(of_extents({count, count}), "");
        EXPECT_NE(of_extents({4, count / 4}), "");
        EXPECT_NE(gguf_error(GgufText().begin(1, 0).tensor("t", {4}, 0, count / 32 * 32).data(64).content), "");
    }
    GgufText extents;
    extents.begin(1, 0).text("t").number(0xffffffffU);
    expect_gguf_refused(extents.content, "extents");
}

TEST(Gguf, wrong_directories_are_refused) {
    const auto with = [](const std::function<void(GgufText&)>& add, std::uint64_t n = 1, std::size_t bytes = 128) {
        GgufText file;
        file.begin(n, 0);
        add(file);
        return file.data(bytes).content;
    };
    EXPECT_EQ(gguf_error(with([](GgufText& f) { f.tensor("t", {32}, 0, 0); })), "");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {32}, 0, 32); }), "cut off");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {4}, 0, 8); }), "no multiple of general.alignment");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {0}, 0, 0); }), "extent 0");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {}, 0, 0); }), "0 extents");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {1, 1, 1, 1, 1}, 0, 0); }), "5 extents");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {31}, 8, 0); }), "no multiple of 32");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {16}, 0, 0).tensor("u", {4}, 0, 32); }, 2), "overlap");
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32); }, 2), "twice");
    // A type that is not read is named, with those that are.
    const std::string other = gguf_error(with([](GgufText& f) { f.tensor("t", {256}, 10, 0); }));
    for (const char* word : {"\"t\"", "Q2_K (10)", "F32, F16, BF16", "Q6_K", "hetlora convert gguf"}) {
        EXPECT_NE(other.find(word), std::string::npos) << word << " is not in: " << other;
    }
    expect_gguf_refused(with([](GgufText& f) { f.tensor("t", {256}, 77, 0); }), "? (77)");
}

TEST(Gguf, names_that_cannot_be_shown_are_refused) {
    for (const std::string& name : {std::string(), std::string("a\0b", 3), std::string(1001, 'x')}) {
        GgufText file;
        file.begin(0, 1).text(name).number(std::uint32_t{4}).number(std::uint32_t{1});
        expect_gguf_refused(file.content, "a metadata key before byte");
    }
}

TEST(Gguf, wrong_metadata_are_refused) {
    const auto with = [](std::uint64_t n, const std::function<void(GgufText&)>& add) {
        GgufText file;
        file.begin(0, n);
        add(file);
        return file.data(64).content;
    };
    const auto number = [](GgufText& f, const char* key, std::uint32_t value) {
        f.text(key).number(std::uint32_t{4}).number(value);
    };
    expect_gguf_refused(with(1, [](GgufText& f) { f.text("k").number(std::uint32_t{13}).number(1); }), "unknown type");
    expect_gguf_refused(with(1,
                             [](GgufText& f) {
                                 f.text("k").number(std::uint32_t{9}).number(std::uint32_t{9}).number(std::uint64_t{0});
                             }),
                        "array of arrays");
    expect_gguf_refused(with(2,
                             [&](GgufText& f) {
                                 number(f, "k", 1);
                                 number(f, "k", 2);
                             }),
                        "twice");
    for (const std::uint32_t alignment : {0U, 4U, 33U, 0x80000000U}) {
        expect_gguf_refused(with(1, [&](GgufText& f) { number(f, "general.alignment", alignment); }), "power of two");
    }
}

/// One block of this format, of these bytes, as float32.
std::vector<float> expanded(std::string_view name, const std::string& bytes) {
    for (const GgufFormat& format : gguf_formats()) {
        if (format.name != name) continue;
        EXPECT_EQ(static_cast<std::size_t>(format.block_bytes), bytes.size());
        std::vector<float> to(static_cast<std::size_t>(format.block));
        format.expand(reinterpret_cast<const std::byte*>(bytes.data()), to.data());
        return to;
    }
    ADD_FAILURE() << name;
    return {};
}

TEST(Gguf, numbers_of_small_formats) {
    EXPECT_EQ(expanded("F16", std::string("\x00\x3c", 2)).front(), 1.0F);
    EXPECT_EQ(expanded("F16", std::string("\xff\x7b", 2)).front(), 65504.0F);
    EXPECT_EQ(expanded("F16", std::string("\x01\x80", 2)).front(), -0x1p-24F);  // subnormal
    EXPECT_TRUE(std::signbit(expanded("F16", std::string("\x00\x80", 2)).front()));
    EXPECT_EQ(expanded("F16", std::string("\x00\xfc", 2)).front(), -std::numeric_limits<float>::infinity());
    EXPECT_TRUE(std::isnan(expanded("F16", std::string("\x01\x7c", 2)).front()));
    EXPECT_EQ(expanded("BF16", std::string("\x80\x3f", 2)).front(), 1.0F);
    // scale 0.5 (0x3800); element i is i - 16 in Q8_0, and the two halves of a byte are i and i + 16 in the others
    std::string eight("\x00\x38", 2);
    for (int i = 0; i < 32; ++i) eight.push_back(static_cast<char>(i - 16));
    std::string four("\x00\x38", 2);
    for (int i = 0; i < 16; ++i) four.push_back(static_cast<char>(i | (15 - i) << 4));
    const auto q8 = expanded("Q8_0", eight);
    const auto q4 = expanded("Q4_0", four);
    const auto q4_1 = expanded("Q4_1", four.substr(0, 2) + std::string("\x00\xbc", 2) + four.substr(2));
    for (int i = 0; i < 32; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const int q = i < 16 ? i : 31 - i;
        EXPECT_EQ(q8[at], 0.5F * static_cast<float>(i - 16));
        EXPECT_EQ(q4[at], 0.5F * static_cast<float>(q - 8));
        EXPECT_EQ(q4_1[at], 0.5F * static_cast<float>(q) - 1.0F);
    }
}

}  // namespace
}  // namespace hetlora
