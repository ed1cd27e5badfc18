// SHA-256 (FIPS 180-4), streaming: the identity of data, bases and runs is by content.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace hetlora {

/// A running SHA-256 digest (OpenSSL's, which uses the processor's own instructions). Feed bytes with update() in
/// pieces of any size, then read hex(). Move-only.
class Sha256 {
public:
    /// @throws Error (environment) if OpenSSL refuses, e.g. for a broken installation
    Sha256();
    ~Sha256();
    Sha256(Sha256&&) noexcept;
    Sha256& operator=(Sha256&&) noexcept;
    /// Appends bytes to the message.
    void update(std::span<const std::byte> bytes);
    /// Appends the characters of a text to the message.
    void update(std::string_view text);
    /// Digest of everything fed so far, 64 lower-case hex digits. The object stays usable for further update() calls.
    [[nodiscard]] std::string hex() const;

private:
    struct Context;
    std::unique_ptr<Context> context_;
};

/// SHA-256 of a text, as 64 lower-case hex digits.
[[nodiscard]] std::string sha256_hex(std::string_view text);

/// SHA-256 of a file's content, read in pieces.
/// @throws Error(input) if the file cannot be opened or read
[[nodiscard]] std::string sha256_file(const std::filesystem::path& path);

}  // namespace hetlora
