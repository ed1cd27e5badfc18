#include "hetlora/fed/head_average.hpp"

#include <algorithm>
#include <cmath>

namespace hetlora {

bool HeadSum::fits(std::span<const double> head, double n_samples) {
    return std::ranges::all_of(head,
                               [&](double value) { return std::abs(n_samples * value) < ExactSum::largest_term; });
}

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
