#include "hetlora/fed/head_average.hpp"

namespace hetlora {

std::vector<double> average_head(std::span<const double> sums, std::span<const ClientReport> reports,
                                 std::span<const double> previous, bool round_to_fp32) {
    double samples = 0.0;
    for (const ClientReport& report : reports) {
        if (!report.dropped) samples += report.n_samples;
    }
    std::vector<double> head(previous.begin(), previous.end());
    if (samples == 0.0) return head;
    for (std::size_t i = 0; i < head.size(); ++i) {
        const double mean = sums[i] / samples;
        head[i] = round_to_fp32 ? static_cast<float>(mean) : mean;
    }
    return head;
}

}  // namespace hetlora
