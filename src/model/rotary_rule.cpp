// See hetlora/model/rotary_rule.hpp.
#include "hetlora/model/rotary_rule.hpp"

#include <cmath>
#include <numbers>

namespace hetlora {
namespace {

template <typename T>
T scaled_frequency(T frequency, const RotaryRule& rule) {
    const T factor = static_cast<T>(rule.factor);
    switch (rule.kind) {
        case RotaryKind::plain:
            return frequency;
        case RotaryKind::linear:
            return frequency / factor;
        case RotaryKind::llama3:
            break;
    }
    const T positions = static_cast<T>(rule.original_positions);
    const T wavelength = static_cast<T>(2.0 * std::numbers::pi) / frequency;
    if (wavelength > static_cast<T>(rule.original_positions / rule.low_frequency)) return frequency / factor;
    if (wavelength < static_cast<T>(rule.original_positions / rule.high_frequency)) return frequency;
    const T smooth = (positions / wavelength - static_cast<T>(rule.low_frequency)) /
                     static_cast<T>(rule.high_frequency - rule.low_frequency);
    return (T{1} - smooth) * frequency / factor + smooth * frequency;
}

template <typename T>
std::vector<double> frequencies(std::int64_t head_size, double theta, const RotaryRule& rule) {
    std::vector<double> inverse;
    for (std::int64_t i = 0; i < head_size / 2; ++i) {
        const T exponent = static_cast<T>(static_cast<double>(2 * i) / static_cast<double>(head_size));
        const T frequency = T{1} / std::pow(static_cast<T>(theta), exponent);
        inverse.push_back(static_cast<double>(scaled_frequency(frequency, rule)));
    }
    return inverse;
}

}  // namespace

std::string_view name_of(RotaryKind kind) {
    return kind == RotaryKind::llama3 ? "llama3" : kind == RotaryKind::linear ? "linear" : "default";
}

const std::vector<RotaryKind>& rotary_kinds() {
    static const std::vector<RotaryKind> kinds{RotaryKind::plain, RotaryKind::linear, RotaryKind::llama3};
    return kinds;
}

std::vector<double> rotary_frequencies(std::int64_t head_size, double theta, const RotaryRule& rule, bool single) {
    return single ? frequencies<float>(head_size, theta, rule) : frequencies<double>(head_size, theta, rule);
}

}  // namespace hetlora
