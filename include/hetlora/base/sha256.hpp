// SHA-256 (FIPS 180-4), streaming: the identity of data, bases and runs is by content.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace hetlora {

/// A running SHA-256 digest. Feed bytes with update() in pieces of any size, then read hex().
class Sha256 {
public:
    Sha256();
    /// Appends bytes to the message.
    void update(std::span<const std::byte> bytes);
    /// Appends the characters of a text to the message.
    void update(std::string_view text);
    /// Digest of everything fed so far, 64 lower-case hex digits. The object stays usable for further update() calls.
    [[nodiscard]] std::string hex() const;

private:
    static constexpr std::size_t block_bytes = 64;

    void compress(const std::byte* block);

    std::array<std::uint32_t, 8> state_;
    std::array<std::byte, block_bytes> pending_{};  // the first n_bytes_ % 64 bytes of the next block
    std::uint64_t n_bytes_ = 0;
};

/// SHA-256 of a text, as 64 lower-case hex digits.
[[nodiscard]] std::string sha256_hex(std::string_view text);

/// SHA-256 of a file's content, read in pieces.
/// @throws Error(input) if the file cannot be opened or read
[[nodiscard]] std::string sha256_file(const std::filesystem::path& path);

}  // namespace hetlora
