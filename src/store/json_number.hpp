// Numbers that may not have been measured, as progress.jsonl and status.json write them (private to store).
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>

#include "hetlora/store/progress.hpp"

namespace hetlora {

/// JSON has no NaN: what was not measured is null.
inline nlohmann::ordered_json number_or_null(double value) {
    return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}
inline double number_or_unmeasured(const nlohmann::ordered_json& value) {
    return value.is_null() ? not_measured : value.get<double>();
}

}  // namespace hetlora
