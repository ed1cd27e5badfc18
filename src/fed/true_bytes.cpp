#include "hetlora/fed/true_bytes.hpp"

#include <fmt/format.h>

namespace hetlora {
namespace {

/// "P(x)", or only the part of it that travels; of alternate ones "odd rounds | even rounds".
std::string part(const Policies& policies, std::string_view slots, bool down) {
    if (policies.shared_factors == SharedFactors::a) return fmt::format("{} d_in", slots);
    switch (policies.trainable) {
        case Trainable::b:
            return fmt::format("{} d_out", slots);
        case Trainable::alternate:
            // Down comes what the round before has changed: the other one.
            return fmt::format("{} {} | {} {}", slots, down ? "d_in" : "d_out", slots, down ? "d_out" : "d_in");
        case Trainable::base:
            return "W";
        case Trainable::both:
            break;
    }
    return fmt::format("P({})", slots);
}

}  // namespace

std::string symbols_up(const Policies& policies) {
    std::string text = part(policies, "r_k", false);
    if (policies.slot_select == SlotSelect::importance) text += " + r_k";
    if (policies.slot_select == SlotSelect::scored) text += " + mask";
    if (policies.client_weight == ClientWeight::sparsity) text += " + 1";
    return text;
}

std::string symbols_down(const Policies& policies) {
    if (policies.merge == Merge::stack) {
        return policies.base_update == BaseUpdate::truncated ? "P(p), p <= sum_j r_j" : "P(sum_j r_j)";
    }
    std::string text = part(policies, policies.receive == Receive::all ? "R" : "r_k", true);
    if (policies.base_update == BaseUpdate::residual) text += " + P(sum_j r_j)";
    return text;
}

std::int64_t values_per_slot(const AdapterLayout& layout, const Factors& factors) {
    std::int64_t values = 0;
    for (const AdaptedMatrix& matrix : layout.matrices) {
        values += (factors.a ? matrix.d_in : 0) + (factors.b ? matrix.d_out : 0);
    }
    return values;
}

std::int64_t true_bytes_up(const Strategy& strategy, const AdapterLayout& layout, const TrafficOf& client) {
    const std::int64_t slot = values_per_slot(layout, sent_factors(strategy, client.round)) * client.value_bytes;
    std::int64_t bytes = client.lora_rank_after * slot;
    if (strategy.slot_select == SlotSelect::importance) bytes += 4 * client.lora_rank_after;
    if (strategy.slot_select == SlotSelect::scored) {
        // Which pairs were chosen differs by client: lora_rank slots of a matrix on the mean, and one bit per pair.
        bytes += (std::ssize(layout.matrices) * strategy.rank_max + 7) / 8;
    }
    if (strategy.client_weight == ClientWeight::sparsity) bytes += client.value_bytes;
    return bytes;
}

std::int64_t true_bytes_down(const Strategy& strategy, const AdapterLayout& layout, const TrafficOf& client) {
    if (strategy.restarts()) return 0;
    // A factor that never changes is known from the seed; with alternate ones only the last trained one is new.
    Factors sent = sent_factors(strategy, client.round);
    if (strategy.trainable == Trainable::alternate) sent = {.a = sent.b, .b = sent.a};
    const std::int64_t slots = strategy.receive == Receive::all ? strategy.rank_max : client.lora_rank_before;
    std::int64_t bytes = slots * values_per_slot(layout, sent) * client.value_bytes;
    if (strategy.slot_select == SlotSelect::importance && strategy.receive == Receive::selected) {
        bytes += 4 * client.lora_rank_before;
    }
    return bytes;
}

}  // namespace hetlora
