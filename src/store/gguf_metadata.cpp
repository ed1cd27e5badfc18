// Values of a GGUF file's metadata by key, and what is taken for such a file (see hetlora/store/gguf.hpp).
#include <fmt/format.h>

#include <array>
#include <fstream>

#include "gguf_values.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/store/gguf.hpp"

namespace hetlora {

std::vector<std::string> GgufFile::keys() const {
    std::vector<std::string> all;
    for (const auto& [key, value] : values_) all.push_back(key);
    return all;
}

const GgufFile::Value* GgufFile::value(std::string_view key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
}

std::optional<std::int64_t> GgufFile::integer(std::string_view key) const {
    const Value* value = this->value(key);
    if (value == nullptr) return {};
    switch (value->type) {
        case gguf_u8:
        case gguf_bool:
            return gguf_value_as<std::uint8_t>(value->bytes);
        case gguf_i8:
            return gguf_value_as<std::int8_t>(value->bytes);
        case gguf_u16:
            return gguf_value_as<std::uint16_t>(value->bytes);
        case gguf_i16:
            return gguf_value_as<std::int16_t>(value->bytes);
        case gguf_u32:
            return gguf_value_as<std::uint32_t>(value->bytes);
        case gguf_i32:
            return gguf_value_as<std::int32_t>(value->bytes);
        case gguf_i64:
            return gguf_value_as<std::int64_t>(value->bytes);
        case gguf_u64:
            if (const auto number = gguf_value_as<std::uint64_t>(value->bytes); number <= std::uint64_t{INT64_MAX}) {
                return static_cast<std::int64_t>(number);
            }
            break;
        default:
            break;
    }
    throw input_error("{} is not one whole number below 2^63 - file {} - such models are not read", key,
                      path_.string());
}

std::optional<double> GgufFile::number(std::string_view key) const {
    const Value* value = this->value(key);
    if (value == nullptr) return {};
    if (value->type == gguf_f32) return gguf_value_as<float>(value->bytes);
    if (value->type == gguf_f64) return gguf_value_as<double>(value->bytes);
    throw input_error("{} is not one floating-point number - file {} - such models are not read", key, path_.string());
}

std::optional<std::string> GgufFile::text(std::string_view key) const {
    const Value* value = this->value(key);
    if (value == nullptr) return {};
    if (value->type != gguf_text) {
        throw input_error("{} is not a text - file {} - such models are not read", key, path_.string());
    }
    return std::string(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

std::optional<std::int64_t> GgufFile::length(std::string_view key) const {
    const Value* value = this->value(key);
    if (value == nullptr) return {};
    if (value->type != gguf_array) {
        throw input_error("{} is not an array - file {} - such models are not read", key, path_.string());
    }
    return static_cast<std::int64_t>(value->count);
}

bool is_gguf_file(const std::filesystem::path& path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) return false;
    if (path.extension() == ".gguf") return true;
    std::array<char, 4> begin{};
    std::ifstream(path, std::ios::binary).read(begin.data(), begin.size());
    return std::string_view(begin.data(), begin.size()) == "GGUF";
}

std::string gguf_convert_command(const std::filesystem::path& path) {
    return fmt::format("`hetlora convert gguf {} --to DIR`", path.string());
}

}  // namespace hetlora
