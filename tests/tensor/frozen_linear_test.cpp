// Every path of the frozen matrices against float64, and the independence of a row from the others.
#include "hetlora/tensor/frozen_linear.hpp"

#include <gtest/gtest.h>

#include <array>

namespace hetlora {
namespace {

struct Path {
    GemmPath path;
    at::ScalarType dtype;
    double tolerance;
};

const std::vector<Path>& paths() {
    static const std::vector<Path> all{{GemmPath::mkl, at::kFloat, 2e-6},       {GemmPath::mkl, at::kDouble, 1e-14},
                                       {GemmPath::onednn, at::kFloat, 2e-6},    {GemmPath::tiles, at::kFloat, 2e-6},
                                       {GemmPath::tiles, at::kDouble, 1e-14},   {GemmPath::mkl, at::kBFloat16, 1e-2},
                                       {GemmPath::widened, at::kBFloat16, 1e-2}};
    return all;
}

double relative_error(const at::Tensor& a, const at::Tensor& b) {
    return ((a.to(at::kDouble) - b).norm() / b.norm()).item<double>();
}

TEST(FrozenLinear, both_directions_equal_float64) {
    at::manual_seed(2);
    for (const auto& [path, dtype, tolerance] : paths()) {
        const at::Tensor weight = at::randn({96, 80}).to(dtype);
        const at::Tensor x = at::randn({50, 80}).to(dtype);
        const at::Tensor dy = at::randn({50, 96}).to(dtype);
        const at::Tensor residual = at::randn({50, 96}).to(dtype == at::kDouble ? at::kDouble : at::kFloat);
        const FrozenLinear linear(weight, path);
        Arena arena(dtype, at::kCPU);
        const at::Tensor w = weight.to(at::kDouble);
        const at::Tensor y = at::mm(x.to(at::kDouble), w.t());
        EXPECT_LT(relative_error(linear.forward(x, arena), y), tolerance) << name_of(path);
        EXPECT_LT(relative_error(linear.backward(dy, arena), at::mm(dy.to(at::kDouble), w)), tolerance);
        const at::Tensor sum = linear.forward_add(x, residual, arena);
        EXPECT_EQ(sum.scalar_type(), residual.scalar_type());
        EXPECT_LT(relative_error(sum, y + residual.to(at::kDouble)), tolerance);
    }
}

TEST(FrozenLinear, a_row_does_not_depend_on_the_number_of_rows) {
    at::manual_seed(3);
    for (const auto& [path, dtype, tolerance] : paths()) {
        if (path == GemmPath::mkl && dtype == at::kBFloat16) continue;  // LibTorch's own loop, used by tests only
        const FrozenLinear linear(at::randn({64, 48}).to(dtype), path);
        const at::Tensor x = at::randn({200, 48}).to(dtype);
        Arena arena(dtype, at::kCPU);
        const at::Tensor all = linear.forward(x, arena).clone();
        for (const std::int64_t rows : {1, 2, 3, 4, 7, 15, 16, 17, 33, 100}) {
            for (const std::int64_t first : {0, 5, 100}) {
                const at::Tensor some = linear.forward(x.narrow(0, first, rows), arena);
                EXPECT_TRUE(at::equal(some, all.narrow(0, first, rows)))
                    << name_of(path) << ' ' << rows << " rows from " << first;
            }
        }
    }
}

TEST(FrozenLinear, the_measured_choice_is_one_that_runs) {
    const std::array<GemmShape, 2> shapes{GemmShape{64, 96}, GemmShape{96, 64}};
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
        const auto measured = measure_gemm(shapes, dtype, at::kCPU);
        ASSERT_FALSE(measured.empty());
        for (const auto& m : measured) EXPECT_GT(m.flops_per_s, 0.0);
        const FrozenLinear linear(at::ones({32, 16}, at::TensorOptions().dtype(dtype)), fastest_gemm(measured));
        Arena arena(dtype, at::kCPU);
        EXPECT_EQ(linear.forward(at::ones({2, 16}, at::TensorOptions().dtype(dtype)), arena)[1][31].item<double>(),
                  16.0);
    }
}

TEST(FrozenLinear, packing_must_win_by_eight_per_cent) {
    const std::vector<GemmMeasurement> close{{GemmPath::mkl, 1.0, 1.0}, {GemmPath::tiles, 0.95, 1.0}};
    const std::vector<GemmMeasurement> clear{{GemmPath::mkl, 1.0, 1.0}, {GemmPath::tiles, 0.9, 1.0}};
    const std::vector<GemmMeasurement> both{
        {GemmPath::mkl, 1.0, 1.0}, {GemmPath::tiles, 0.9, 1.0}, {GemmPath::onednn, 0.85, 1.0}};
    EXPECT_EQ(fastest_gemm(close), GemmPath::mkl);
    EXPECT_EQ(fastest_gemm(clear), GemmPath::tiles);
    EXPECT_EQ(fastest_gemm(both), GemmPath::tiles);
}

}  // namespace
}  // namespace hetlora
