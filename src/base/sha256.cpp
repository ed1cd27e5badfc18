#include "hetlora/base/sha256.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

// First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
constexpr std::array<std::uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::array<std::uint32_t, 8> initial_state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

std::uint32_t read_big_endian(const std::byte* bytes) {
    return (std::to_integer<std::uint32_t>(bytes[0]) << 24) | (std::to_integer<std::uint32_t>(bytes[1]) << 16) |
           (std::to_integer<std::uint32_t>(bytes[2]) << 8) | std::to_integer<std::uint32_t>(bytes[3]);
}

}  // namespace

Sha256::Sha256() : state_(initial_state) {}

void Sha256::compress(const std::byte* block) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t t = 0; t < 16; ++t) w[t] = read_big_endian(block + 4 * t);
    for (std::size_t t = 16; t < 64; ++t) {
        const auto s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
        const auto s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t t = 0; t < 64; ++t) {
        const auto s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
        const auto choice = (e & f) ^ (~e & g);
        const auto t1 = h + s1 + choice + round_constants[t] + w[t];
        const auto s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
        const auto majority = (a & b) ^ (a & c) ^ (b & c);
        const auto t2 = s0 + majority;
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < state_.size(); ++i) state_[i] += added[i];
}

void Sha256::update(std::span<const std::byte> bytes) {
    const auto n_pending = static_cast<std::size_t>(n_bytes_ % block_bytes);
    n_bytes_ += bytes.size();
    if (n_pending > 0) {
        const auto taken = std::min(block_bytes - n_pending, bytes.size());
        std::copy_n(bytes.begin(), taken, pending_.begin() + static_cast<std::ptrdiff_t>(n_pending));
        bytes = bytes.subspan(taken);
        if (n_pending + taken < block_bytes) return;
        compress(pending_.data());
    }
    for (; bytes.size() >= block_bytes; bytes = bytes.subspan(block_bytes)) compress(bytes.data());
    std::copy(bytes.begin(), bytes.end(), pending_.begin());
}

void Sha256::update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }

std::string Sha256::hex() const {
    Sha256 last = *this;
    const std::uint64_t n_bits = n_bytes_ * 8;
    const auto n_pending = static_cast<std::size_t>(n_bytes_ % block_bytes);
    // Padding: a 1 bit, zeros up to 8 bytes before a block's end, the message length in bits (big-endian).
    std::vector<std::byte> padding((n_pending < 56 ? 56 : 120) - n_pending + 8);
    padding[0] = std::byte{0x80};
    for (std::size_t i = 0; i < 8; ++i) padding[padding.size() - 1 - i] = static_cast<std::byte>(n_bits >> (8 * i));
    last.update(padding);
    std::string text;
    for (const auto word : last.state_) text += fmt::format("{:08x}", word);
    return text;
}

std::string sha256_hex(std::string_view text) {
    Sha256 digest;
    digest.update(text);
    return digest.hex();
}

std::string sha256_file(const std::filesystem::path& path) {
    const auto failed = [&path](const char* what) {
        return input_error("cannot {} {}: {}; check the path and its permissions", what, path.string(),
                           std::strerror(errno));
    };
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
    if (!file) throw failed("open");
    Sha256 digest;
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    while (true) {
        const auto n_read = std::fread(buffer.data(), 1, buffer.size(), file.get());
        digest.update(std::span<const std::byte>(buffer).first(n_read));
        if (n_read < buffer.size()) break;
    }
    if (std::ferror(file.get()) != 0) throw failed("read");
    return digest.hex();
}

}  // namespace hetlora
