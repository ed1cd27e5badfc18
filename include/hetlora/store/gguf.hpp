// Reading GGUF files (versions 2 and 3, little-endian): metadata with types, a directory of tensors, and their bytes.
//
//     "GGUF", u32 version, u64 number of tensors, u64 number of metadata
//     metadata   string key, u32 type, value; an array is u32 type of its elements, u64 count, the elements
//     directory  string name, u32 n, n x u64 extents (the fastest first), u32 type, u64 offset
//     the rest   the tensors' bytes; offsets count from the next multiple of general.alignment (32)
//
// A string is a u64 length and its bytes. The file is mapped and nothing in it is trusted: every count and offset is
// held against the bytes that are there before it is used, and no memory is taken for what a count only promises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hetlora/store/safetensors.hpp"

namespace hetlora {

/// How a tensor's elements are stored: blocks of elements of one row, each of so many bytes.
struct GgufFormat {
    std::uint32_t id = 0;   ///< in the file
    std::string_view name;  ///< as ggml calls it: "F32", "Q4_0", ...
    std::int64_t block = 1;
    std::int64_t block_bytes = 0;
    /// One block as float32, to the bit what the `gguf` package makes of it.
    void (*expand)(const std::byte* from, float* to) = nullptr;
};

/// All formats that are read: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K.
[[nodiscard]] std::span<const GgufFormat> gguf_formats();

/// What the directory says of one tensor.
struct GgufTensor {
    std::string name;
    const GgufFormat* format = nullptr;
    std::vector<std::int64_t> shape;  ///< row-major: the last extent is the fastest, as Torch has it
    std::size_t begin = 0;            ///< first byte, counted from the start of the file
    std::size_t bytes = 0;

    /// Rows: the product of all extents but the last.
    [[nodiscard]] std::int64_t rows() const;
};

/// One GGUF file, wholly checked when it is opened.
class GgufFile {
public:
    /// @throws Error (input) naming the file, the place and a mend: no GGUF file, another version or byte order, cut
    ///         off, malformed, one part of several, a type of tensor that is not read, tensors outside the file or
    ///         over one another.
    explicit GgufFile(const std::filesystem::path& path);

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    /// All tensors, by name.
    [[nodiscard]] const std::map<std::string, GgufTensor, std::less<>>& tensors() const noexcept { return tensors_; }
    /// The tensor of this name, or nullptr.
    [[nodiscard]] const GgufTensor* find(std::string_view name) const;
    [[nodiscard]] std::span<const std::byte> bytes(const GgufTensor& tensor) const;
    /// Rows [first, first + count) as float32. @pre `to` has their elements
    void read_rows(const GgufTensor& tensor, std::int64_t first, std::int64_t count, float* to) const;

    /// Keys of the metadata, sorted.
    [[nodiscard]] std::vector<std::string> keys() const;
    /// Values by key; nothing where the key is missing.
    /// @throws Error (input) where the value has another type (an integer of any width is one) or does not fit
    [[nodiscard]] std::optional<std::int64_t> integer(std::string_view key) const;
    [[nodiscard]] std::optional<double> number(std::string_view key) const;
    [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
    /// Elements of an array.
    [[nodiscard]] std::optional<std::int64_t> length(std::string_view key) const;

private:
    struct Value {
        std::uint32_t type = 0;
        std::uint64_t count = 0;           ///< of an array
        std::span<const std::byte> bytes;  ///< of a number or a text
    };
    class Cursor;
    void read_metadata(Cursor& cursor);
    GgufTensor read_tensor(Cursor& cursor) const;
    void place_tensors(std::size_t data_begin);
    [[nodiscard]] const Value* value(std::string_view key) const;

    std::filesystem::path path_;
    MappedFile file_;
    std::map<std::string, Value, std::less<>> values_;
    std::map<std::string, GgufTensor, std::less<>> tensors_;
};

/// Whether model.path or a path to describe is meant as a GGUF file: a file that begins so, or one of that ending.
[[nodiscard]] bool is_gguf_file(const std::filesystem::path& path);

/// "`hetlora convert gguf FILE --to DIR`": for messages.
[[nodiscard]] std::string gguf_convert_command(const std::filesystem::path& path);

}  // namespace hetlora
