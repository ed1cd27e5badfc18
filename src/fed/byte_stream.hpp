// Byte strings between processes of one run (same machine type): not a file format. Private to fed.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "hetlora/base/error.hpp"

namespace hetlora {

class ByteWriter {
public:
    template <typename T>
    void put(const T& value) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&value);
        bytes_.insert(bytes_.end(), bytes, bytes + sizeof(T));
    }
    template <typename T>
    void put_all(const std::vector<T>& values) {
        put(std::ssize(values));
        const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
        bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
    }
    [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

private:
    std::vector<std::byte> bytes_;
};

class ByteReader {
public:
    explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
    [[nodiscard]] bool at_end() const { return bytes_.empty(); }
    template <typename T>
    T get() {
        T value;
        copy(&value, sizeof(T));
        return value;
    }
    template <typename T>
    std::vector<T> get_all() {
        const auto n = get<std::ptrdiff_t>();
        if (n < 0 || static_cast<std::size_t>(n) > bytes_.size() / sizeof(T)) {
            throw bug_error("a message says {} values, but {} bytes are left", n, bytes_.size());
        }
        std::vector<T> values(static_cast<std::size_t>(n));
        copy(values.data(), values.size() * sizeof(T));
        return values;
    }

private:
    void copy(void* to, std::size_t count) {
        if (count > bytes_.size()) throw bug_error("a message ends {} bytes too early", count - bytes_.size());
        if (count > 0) std::memcpy(to, bytes_.data(), count);
        bytes_ = bytes_.subspan(count);
    }
    std::span<const std::byte> bytes_;
};

}  // namespace hetlora
