#include "hetlora/fed/trace_exchange.hpp"

#include <algorithm>
#include <cstring>

#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

/// Byte string between processes of one run: not a file format.
class Writer {
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

class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
    [[nodiscard]] bool at_end() const { return bytes_.empty(); }
    template <typename T>
    T get() {
        T value;
        copy(&value, sizeof(T));
        return value;
    }
    template <typename T>
    std::vector<T> get_all() {
        std::vector<T> values(static_cast<std::size_t>(get<std::ptrdiff_t>()));
        copy(values.data(), values.size() * sizeof(T));
        return values;
    }

private:
    void copy(void* to, std::size_t count) {
        if (count > bytes_.size()) throw bug_error("gather_trace: {} bytes wanted, {} left", count, bytes_.size());
        if (count > 0) std::memcpy(to, bytes_.data(), count);
        bytes_ = bytes_.subspan(count);
    }
    std::span<const std::byte> bytes_;
};

}  // namespace

std::vector<TracedClient> gather_trace(Transport& transport, std::span<const TracedClient> mine) {
    Writer writer;
    for (const TracedClient& client : mine) {
        writer.put(client.cohort_index);
        writer.put_all(client.sent);
        writer.put(std::ssize(client.steps));
        for (const StepRecord& step : client.steps) {
            writer.put(step.loss);
            writer.put(step.n_loss_tokens);
            writer.put_all(step.windows);
        }
    }
    std::vector<TracedClient> all;
    for (const auto& bytes : transport.gather(writer.bytes())) {
        Reader reader(bytes);
        while (!reader.at_end()) {
            TracedClient client;
            client.cohort_index = reader.get<std::int64_t>();
            client.sent = reader.get_all<double>();
            const auto n_steps = reader.get<std::ptrdiff_t>();
            for (std::ptrdiff_t s = 0; s < n_steps; ++s) {
                StepRecord step;
                step.loss = reader.get<double>();
                step.n_loss_tokens = reader.get<std::int64_t>();
                step.windows = reader.get_all<WindowRef>();
                client.steps.push_back(std::move(step));
            }
            all.push_back(std::move(client));
        }
    }
    std::ranges::sort(all, {}, &TracedClient::cohort_index);
    return all;
}

}  // namespace hetlora
