// Reads the keys of a config.json and collects what is wrong with them, so that all of it is said at once (private to
// model).
#pragma once

#include <fmt/ranges.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/model/config.hpp"

namespace hetlora {

using nlohmann::json;

class ConfigReader {
public:
    ConfigReader(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

    std::int64_t positive(const std::string& key, std::int64_t fallback = 0) {
        if (!present(key)) {
            if (fallback > 0) return fallback;
            complain("`{}` is missing", key);
            return 1;
        }
        const json& value = object_.at(key);
        if (!value.is_number_integer() || value.get<std::int64_t>() <= 0 || value.get<std::int64_t>() > (1LL << 32)) {
            complain("`{}` = {} is not a positive whole number", key, value.dump());
            return 1;
        }
        return value.get<std::int64_t>();
    }
    double number(const std::string& key, double fallback) {
        if (!present(key)) return fallback;
        if (!object_.at(key).is_number() || !(object_.at(key).get<double>() > 0)) {
            complain("`{}` = {} is not a positive number", key, object_.at(key).dump());
            return fallback;
        }
        return object_.at(key).get<double>();
    }
    bool flag(const std::string& key, bool fallback) {
        if (!present(key)) return fallback;
        if (!object_.at(key).is_boolean()) {
            complain("`{}` = {} is neither true nor false", key, object_.at(key).dump());
            return fallback;
        }
        return object_.at(key).get<bool>();
    }
    [[nodiscard]] bool present(const std::string& key) const {
        return object_.contains(key) && !object_.at(key).is_null();
    }
    [[nodiscard]] const json& at(const std::string& key) const { return object_.at(key); }

    template <typename... Args>
    void complain(fmt::format_string<Args...> text, Args&&... args) {
        problems_.push_back(fmt::format(text, std::forward<Args>(args)...));
    }
    void finish() const {
        if (problems_.empty()) return;
        throw input_error(
            "{}: this model cannot be used:\n  - {}\nsupported are {}, with full attention and the rotary rules "
            "default, linear and llama3 (docs/models.md): choose such a model in `model.path`",
            path_, fmt::join(problems_, "\n  - "), supported_families());
    }

private:
    const json& object_;
    std::string path_;
    std::vector<std::string> problems_;
};

/// The model that a config.json's object describes. @param path for messages @throws see read_model_config
[[nodiscard]] ModelConfig parse_model_config(const json& object, const std::string& path);

}  // namespace hetlora
