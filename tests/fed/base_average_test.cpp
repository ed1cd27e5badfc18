#include "hetlora/fed/base_average.hpp"

#include <gtest/gtest.h>

#include "hetlora/fed/dense_sum.hpp"

namespace hetlora {
namespace {

ClientReport report_with(double weight, bool dropped = false) {
    ClientReport report;
    report.weights = {weight, weight};
    report.dropped = dropped;
    return report;
}

TEST(BaseAverage, weights_move_by_the_weighted_mean_of_the_changes) {
    const std::vector<ClientReport> reports{report_with(3), report_with(100, /*dropped=*/true), report_with(1)};
    DenseSum sums(ReductionKind::exact, 2);
    sums.add(std::vector<double>{0.5, -1.0}, 3);
    sums.add(std::vector<double>{0.1, 1.0}, 1);
    std::vector<double> weights{10.0, 20.0};
    add_mean_change(std::vector<double>{sums.sums().exact().value(0), sums.sums().exact().value(1)},
                    total_weight(reports), /*round_to_fp32=*/false, weights);
    EXPECT_NEAR(weights[0], 10.0 + 1.6 / 4.0, 1e-15);
    EXPECT_NEAR(weights[1], 20.0 - 2.0 / 4.0, 1e-15);
}

TEST(BaseAverage, one_client_gets_its_own_weights_back_in_fp32) {
    const std::vector<ClientReport> reports{report_with(7)};
    for (const float before : {1.0F, 0.1F, -3.3e-5F, 1234.5F}) {
        for (const float after : {1.0000001F, 0.3F, -3.31e-5F, 1e-4F, -7e4F}) {
            std::vector<double> weights{before};
            const std::vector<double> sums{7.0 * (static_cast<double>(after) - static_cast<double>(before))};
            add_mean_change(sums, total_weight(reports), /*round_to_fp32=*/true, weights);
            EXPECT_EQ(weights.front(), static_cast<double>(after)) << before << " to " << after;
        }
    }
}

TEST(BaseAverage, nothing_moves_where_all_are_dropped) {
    const std::vector<ClientReport> reports{report_with(3, true)};
    std::vector<double> weights{0.1};
    add_mean_change(std::vector<double>{0.0}, total_weight(reports), /*round_to_fp32=*/true, weights);
    EXPECT_EQ(weights.front(), 0.1);
}

}  // namespace
}  // namespace hetlora
