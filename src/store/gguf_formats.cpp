// The number formats of GGUF files (hetlora/store/gguf.hpp) as float32.
//
// Every scale is a float16 and every element a small integer, so that the products with scales are exact in float32 (of
// Q6_K the last one is rounded, once): a fused multiply-add gives the same bits.
#include <array>
#include <bit>
#include <cstring>

#include "hetlora/store/gguf.hpp"

namespace hetlora {
namespace {

template <typename T>
T at_byte(const std::byte* from, std::size_t offset) {
    T value;
    std::memcpy(&value, from + offset, sizeof(T));
    return value;
}

unsigned byte_at(const std::byte* from, std::size_t offset) { return std::to_integer<unsigned>(from[offset]); }

float float_of_half(const std::byte* from, std::size_t offset = 0) {
    const std::uint32_t half = at_byte<std::uint16_t>(from, offset);
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 31U;
    const std::uint32_t mantissa = half & 0x3ffU;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = static_cast<float>(mantissa) * 0x1p-24F;  // zero and subnormal numbers
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(small) | sign);
}

void expand_f32(const std::byte* from, float* to) { *to = at_byte<float>(from, 0); }
void expand_f16(const std::byte* from, float* to) { *to = float_of_half(from); }
void expand_bf16(const std::byte* from, float* to) {
    *to = std::bit_cast<float>(std::uint32_t{at_byte<std::uint16_t>(from, 0)} << 16);
}

/// Half a byte of element i in [0, 32): the first sixteen are the low halves.
unsigned nibble(const std::byte* from, unsigned i) { return byte_at(from, i % 16) >> (i / 16 * 4) & 15U; }

void expand_q4_0(const std::byte* from, float* to) {
    const float scale = float_of_half(from);
    for (unsigned i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(static_cast<int>(nibble(from + 2, i)) - 8);
}

void expand_q4_1(const std::byte* from, float* to) {
    const float scale = float_of_half(from);
    const float least = float_of_half(from, 2);
    for (unsigned i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(nibble(from + 4, i)) + least;
}

/// The fifth bits are one number of 32 bits in front of the halves of bytes.
unsigned five_bits(const std::byte* from, unsigned i) {
    return nibble(from + 4, i) | (at_byte<std::uint32_t>(from, 0) >> i & 1U) << 4;
}

void expand_q5_0(const std::byte* from, float* to) {
    const float scale = float_of_half(from);
    for (unsigned i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(static_cast<int>(five_bits(from + 2, i)) - 16);
}

void expand_q5_1(const std::byte* from, float* to) {
    const float scale = float_of_half(from);
    const float least = float_of_half(from, 2);
    for (unsigned i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(five_bits(from + 4, i)) + least;
}

void expand_q8_0(const std::byte* from, float* to) {
    const float scale = float_of_half(from);
    for (unsigned i = 0; i < 32; ++i) to[i] = scale * static_cast<float>(at_byte<std::int8_t>(from, 2 + i));
}

/// The 6-bit scale (which = 0) or minimum (1) of 32 elements in a block of 256, of 12 bytes: the low six bits of the
/// first eight bytes are those of the groups 0 to 3; of 4 to 7 four bits each are in the last four bytes, the upper two
/// on top of the first eight.
float group_scale(const std::byte* scales, unsigned group, unsigned which) {
    const unsigned own = byte_at(scales, 4 * which + group % 4);
    if (group < 4) return static_cast<float>(own & 63U);
    const unsigned low = byte_at(scales, 8 + group % 4) >> (4 * which) & 15U;
    return static_cast<float>(low | (own >> 2 & 0x30U));
}

/// Q4_K, and Q5_K with the fifth bits: bit g of byte i is that of element i of group g.
void expand_groups(const std::byte* from, const std::byte* fifth, const std::byte* halves, float* to) {
    const float scale = float_of_half(from);
    const float least = float_of_half(from, 2);
    for (unsigned group = 0; group < 8; ++group) {
        const float group_step = scale * group_scale(from + 4, group, 0);
        const float group_least = least * group_scale(from + 4, group, 1);
        for (unsigned i = 0; i < 32; ++i) {
            unsigned q = byte_at(halves, group / 2 * 32 + i) >> (group % 2 * 4) & 15U;
            if (fifth != nullptr) q |= (byte_at(fifth, i) >> group & 1U) << 4;
            to[group * 32 + i] = group_step * static_cast<float>(q) - group_least;
        }
    }
}

void expand_q4_k(const std::byte* from, float* to) { expand_groups(from, nullptr, from + 16, to); }
void expand_q5_k(const std::byte* from, float* to) { expand_groups(from, from + 16, from + 48, to); }

/// 128 bytes of low halves, 64 of upper two bits, 16 scales of 16 elements each, the scale of all.
void expand_q6_k(const std::byte* from, float* to) {
    const float scale = float_of_half(from, 208);
    for (unsigned i = 0; i < 256; ++i) {
        const unsigned part = i / 128;  // the block is two of 128: each of 64 bytes of halves and 32 of upper bits
        const unsigned within = i % 128;
        const unsigned low = byte_at(from, part * 64 + within % 64) >> (within / 64 * 4) & 15U;
        const unsigned high = byte_at(from, 128 + part * 32 + within % 32) >> (within / 32 * 2) & 3U;
        const float step = scale * static_cast<float>(at_byte<std::int8_t>(from, 192 + i / 16));
        to[i] = step * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    }
}

constexpr std::array all_gguf_formats{
    GgufFormat{.id = 0, .name = "F32", .block = 1, .block_bytes = 4, .expand = expand_f32},
    GgufFormat{.id = 1, .name = "F16", .block = 1, .block_bytes = 2, .expand = expand_f16},
    GgufFormat{.id = 30, .name = "BF16", .block = 1, .block_bytes = 2, .expand = expand_bf16},
    GgufFormat{.id = 2, .name = "Q4_0", .block = 32, .block_bytes = 18, .expand = expand_q4_0},
    GgufFormat{.id = 3, .name = "Q4_1", .block = 32, .block_bytes = 20, .expand = expand_q4_1},
    GgufFormat{.id = 6, .name = "Q5_0", .block = 32, .block_bytes = 22, .expand = expand_q5_0},
    GgufFormat{.id = 7, .name = "Q5_1", .block = 32, .block_bytes = 24, .expand = expand_q5_1},
    GgufFormat{.id = 8, .name = "Q8_0", .block = 32, .block_bytes = 34, .expand = expand_q8_0},
    GgufFormat{.id = 12, .name = "Q4_K", .block = 256, .block_bytes = 144, .expand = expand_q4_k},
    GgufFormat{.id = 13, .name = "Q5_K", .block = 256, .block_bytes = 176, .expand = expand_q5_k},
    GgufFormat{.id = 14, .name = "Q6_K", .block = 256, .block_bytes = 210, .expand = expand_q6_k},
};

}  // namespace

std::span<const GgufFormat> gguf_formats() { return all_gguf_formats; }

}  // namespace hetlora
