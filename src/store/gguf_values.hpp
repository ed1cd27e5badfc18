// Types of values in the metadata of GGUF files (private to store).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace hetlora {

enum GgufValueType : std::uint32_t {
    gguf_u8,
    gguf_i8,
    gguf_u16,
    gguf_i16,
    gguf_u32,
    gguf_i32,
    gguf_f32,
    gguf_bool,
    gguf_text,
    gguf_array,
    gguf_u64,
    gguf_i64,
    gguf_f64,
    gguf_value_types
};

/// Bytes of a value of fixed size; 0 for texts and arrays.
constexpr std::array<std::size_t, gguf_value_types> gguf_value_bytes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

template <typename T>
T gguf_value_as(std::span<const std::byte> bytes) {
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
}

}  // namespace hetlora
