#include "hetlora/fed/trace_exchange.hpp"

#include <algorithm>

#include "byte_stream.hpp"

namespace hetlora {
std::vector<TracedClient> gather_trace(Transport& transport, std::span<const TracedClient> mine) {
    ByteWriter writer;
    for (const TracedClient& client : mine) {
        writer.put(client.cohort_index);
        writer.put_all(client.received);
        writer.put_all(client.sent);
        writer.put_all(client.slots);
        writer.put_all(client.head);
        writer.put(std::ssize(client.steps));
        for (const StepRecord& step : client.steps) {
            writer.put(step.loss);
            writer.put(step.n_loss_tokens);
            writer.put_all(step.windows);
        }
    }
    std::vector<TracedClient> all;
    for (const auto& bytes : transport.gather(writer.bytes())) {
        ByteReader reader(bytes);
        while (!reader.at_end()) {
            TracedClient client;
            client.cohort_index = reader.get<std::int64_t>();
            client.received = reader.get_all<double>();
            client.sent = reader.get_all<double>();
            client.slots = reader.get_all<std::int64_t>();
            client.head = reader.get_all<double>();
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
