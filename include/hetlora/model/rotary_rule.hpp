// Rotary rules: how a model's inverse frequencies follow from theta, as `transformers` forms them.
//
//     default   f_i = theta^(-2i/E)
//     linear    f_i / factor
//     llama3    wavelength w_i = 2 pi / f_i, P = original_positions:
//               f_i           where w_i < P / high_frequency
//               f_i / factor  where w_i > P / low_frequency
//               between them (1 - m) f_i / factor + m f_i,  m = (P / w_i - low) / (high - low)
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace hetlora {

enum class RotaryKind : int { plain, linear, llama3 };

/// As config.json writes it: default, linear, llama3.
[[nodiscard]] std::string_view name_of(RotaryKind kind);
[[nodiscard]] const std::vector<RotaryKind>& rotary_kinds();

struct RotaryRule {
    RotaryKind kind = RotaryKind::plain;
    double factor = 1.0;               ///< linear, llama3
    double low_frequency = 1.0;        ///< llama3
    double high_frequency = 4.0;       ///< llama3
    double original_positions = 8192;  ///< llama3
    bool operator==(const RotaryRule&) const = default;
};

/// [E/2] inverse frequencies. @param single every operation in float32 (exact in the result), as for float32 tables
[[nodiscard]] std::vector<double> rotary_frequencies(std::int64_t head_size, double theta, const RotaryRule& rule,
                                                     bool single);

}  // namespace hetlora
