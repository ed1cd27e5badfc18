#include "hetlora/fed/base_average.hpp"

namespace hetlora {

double total_weight(std::span<const ClientReport> reports) {
    double total = 0.0;
    for (const ClientReport& report : reports) {
        if (!report.dropped) total += report.weights.front();
    }
    return total;
}

void add_mean_change(std::span<const double> sums, double total, bool round_to_fp32, std::span<double> weights) {
    if (total == 0.0) return;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        const double value = weights[i] + sums[i] / total;
        weights[i] = round_to_fp32 ? static_cast<float>(value) : value;
    }
}

}  // namespace hetlora
