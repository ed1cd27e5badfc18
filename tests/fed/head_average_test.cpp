#include "hetlora/fed/head_average.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hetlora/fed/dense_sum.hpp"

namespace hetlora {
namespace {

ClientReport report_of(double n_samples, bool dropped = false) {
    ClientReport report;
    report.n_samples = n_samples;
    report.dropped = dropped;
    return report;
}

TEST(HeadAverage, weighs_by_samples_in_any_order_to_the_bit) {
    const std::vector<double> first{0.1, -2.0, 3e-9};
    const std::vector<double> second{0.7, 1.0, -1.0 / 3.0};
    const std::vector<double> third{1e-3, 0.5, 40.0};
    const std::vector<ClientReport> reports{report_of(3), report_of(7), report_of(5)};
    DenseSum forward(ReductionKind::exact, 3);
    forward.add(first, 3);
    forward.add(second, 7);
    forward.add(third, 5);
    DenseSum backward(ReductionKind::exact, 3);
    backward.add(third, 5);
    backward.add(second, 7);
    backward.add(first, 3);
    std::vector<double> sums;
    for (std::size_t i = 0; i < 3; ++i) {
        sums.push_back(forward.sums().exact().value(i));
        EXPECT_EQ(sums[i], backward.sums().exact().value(i));
    }
    const std::vector<double> mean = average_head(sums, reports, first, /*round_to_fp32=*/false);
    for (std::size_t i = 0; i < 3; ++i)
        EXPECT_NEAR(mean[i], (3 * first[i] + 7 * second[i] + 5 * third[i]) / 15.0, 1e-15);
    for (const double value : average_head(sums, reports, first, /*round_to_fp32=*/true))
        EXPECT_EQ(value, static_cast<double>(static_cast<float>(value)));
}

TEST(HeadAverage, dropped_clients_count_for_nothing) {
    const std::vector<double> head{2.0};
    const std::vector<ClientReport> reports{report_of(4), report_of(100, /*dropped=*/true)};
    EXPECT_EQ(average_head(std::vector<double>{4 * 6.0}, reports, head, false).front(), 6.0);
    const std::vector<ClientReport> nobody{report_of(4, true)};
    EXPECT_EQ(average_head(std::vector<double>{0.0}, nobody, head, false), head);
}

TEST(HeadAverage, a_diverged_head_does_not_fit) {
    EXPECT_TRUE(DenseSum::fits(std::vector<double>{1.0, -4000.0}, 1000));
    EXPECT_FALSE(DenseSum::fits(std::vector<double>{1.0, -5000.0}, 1000));
    EXPECT_FALSE(DenseSum::fits(std::vector<double>{std::numeric_limits<double>::infinity()}, 1));
    EXPECT_FALSE(DenseSum::fits(std::vector<double>{std::nan("")}, 1));
}

}  // namespace
}  // namespace hetlora
