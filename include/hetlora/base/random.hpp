// Randomness without shared streams: every draw is a hash of (seed, purpose, coordinates), so that its value
// does not depend on who draws it, in which order, or on how many MPI ranks there are.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>

namespace hetlora {

/// What a random number is for. Two purposes never share numbers, even at the same coordinates.
enum class Purpose : std::uint64_t {
    adapter_init = 1,
    lora_rank = 2,
    sampling = 3,
    partition = 4,
    data_order = 5,
    dropout = 6,
    evaluation_subset = 7,
    generation = 8,
    refill = 9,
    pretrain_init = 10,
    pretrain_order = 11,
    test = 12,
    slot_choice = 13,
    fresh_adapter = 14,
    plugin = 15,
    class_head = 16,
};

/// The finaliser of SplitMix64: a bijection of 64 bits with full avalanche.
[[nodiscard]] constexpr std::uint64_t mix64(std::uint64_t x) noexcept {
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

/// 64 well-mixed bits for (seed, purpose, coordinates...). The order of coordinates matters.
template <std::integral... Coordinates>
[[nodiscard]] constexpr std::uint64_t hash_seed(std::uint64_t seed, Purpose purpose,
                                                Coordinates... coordinates) noexcept {
    std::uint64_t state = mix64(seed ^ 0x6865746C6F7261ULL);
    state = mix64(state ^ static_cast<std::uint64_t>(purpose));
    ((state = mix64(state ^ static_cast<std::uint64_t>(coordinates))), ...);
    return state;
}

/// Uniform in [0, 1) from 64 hashed bits (53 of them are used).
[[nodiscard]] constexpr double uniform01(std::uint64_t bits) noexcept {
    return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

/// Standard normal from 64 hashed bits (Box-Muller on two derived uniforms).
[[nodiscard]] inline double standard_normal(std::uint64_t bits) noexcept {
    const double u = 1.0 - uniform01(bits);  // in (0, 1]: the logarithm is finite
    const double v = uniform01(mix64(bits));
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace hetlora
