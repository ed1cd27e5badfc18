#include "hetlora/tensor/frozen_linear.hpp"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/ops.hpp"

namespace hetlora {
namespace {

/// What keeps MKL's results the same from call to call and from process to process; before its first call.
[[maybe_unused]] const bool repeatable_library = [] {
#if defined(__x86_64__)
    // On Intel processors MKL rounds a row by how many rows the call has, unless its strict reproducible mode is asked
    // for. It costs 5 % of a step of a model of width 64, nothing at width 512. (On other processors MKL keeps to one
    // way by itself, and the mode would take its slowest path.) A mode that the user set stays.
    __builtin_cpu_init();
    if (__builtin_cpu_is("intel")) setenv("MKL_CBWR", "AUTO,STRICT", /*overwrite=*/0);
#endif
    // Where two threads make the first call of its vector functions at once, one process in ten got results that are
    // 2e-5 off. So the first call is made here, by one thread: 16 elements are not divided.
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
        const at::Tensor x = at::ones({16}, at::TensorOptions().dtype(dtype));
        (void)at::exp(x);
        (void)at::log(x);
        (void)at::tanh(x);
    }
    return true;
}();

/// oneDNN's linear through the dispatcher: the library itself is not exported from LibTorch.
at::Tensor onednn_pack(const at::Tensor& weight_OI) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
                               .typed<at::Tensor(const at::Tensor&, std::optional<int64_t>)>();
    return op.call(weight_OI.contiguous(), std::nullopt);
}

at::Tensor onednn_multiply(const at::Tensor& x, const at::Tensor& packed) {
    using Scalars = c10::List<std::optional<at::Scalar>>;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
                               .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                                 std::string_view, Scalars, std::optional<std::string_view>)>();
    return op.call(x, packed, std::nullopt, "none", Scalars(), "");
}

bool onednn_available(at::ScalarType dtype, at::Device device) {
    if (!device.is_cpu() || (dtype != at::kFloat && dtype != at::kBFloat16)) return false;
    try {
        const at::Tensor probe = at::ones({32, 32}, at::TensorOptions().dtype(dtype));
        return onednn_multiply(probe, onednn_pack(probe)).size(0) == 32;
    } catch (const c10::Error&) {  // built without oneDNN, or a dtype that this processor has not
        return false;
    }
}

}  // namespace

std::string_view name_of(GemmPath path) {
    switch (path) {
        case GemmPath::onednn:
            return "onednn";
        case GemmPath::widened:
            return "widened";
        case GemmPath::tiles:
            return "tiles";
        case GemmPath::mkl:
            break;
    }
    return "mkl";
}

FrozenLinear::FrozenLinear(const at::Tensor& weight_OI, GemmPath path)
    : path_(path), inputs_(weight_OI.size(1)), outputs_(weight_OI.size(0)) {
    if (path == GemmPath::onednn) {
        packed_forward_ = onednn_pack(weight_OI);
        packed_backward_ = onednn_pack(weight_OI.t());
    } else if (path == GemmPath::tiles) {
        packed_forward_ = ops::pack_panels(weight_OI);
        packed_backward_ = ops::pack_panels(weight_OI.t());
    } else {
        dense_OI_ = path == GemmPath::widened ? weight_OI.to(at::kFloat) : weight_OI;
    }
}

at::Tensor FrozenLinear::multiply_rows(const at::Tensor& x, bool transposed, Arena& arena) const {
    if (path_ == GemmPath::onednn) return onednn_multiply(x, transposed ? packed_backward_ : packed_forward_);
    if (path_ == GemmPath::tiles) {
        at::Tensor y = arena.take({x.size(0), transposed ? inputs_ : outputs_}, x.scalar_type());
        ops::panel_product(x, transposed ? packed_backward_ : packed_forward_, {}, y);
        return y;
    }
    const at::Tensor weight = transposed ? dense_OI_ : dense_OI_.t();
    const std::int64_t columns = weight.size(1);
    if (path_ == GemmPath::mkl) {
        at::Tensor y = arena.take({x.size(0), columns}, x.scalar_type());
        at::mm_out(y, x, weight);
        return y;
    }
    at::Tensor y = arena.take({x.size(0), columns}, at::kBFloat16);
    const std::int64_t mark = arena.mark();
    at::Tensor x32 = arena.take(x.sizes(), at::kFloat);
    at::Tensor y32 = arena.take(y.sizes(), at::kFloat);
    x32.copy_(x);
    at::mm_out(y32, x32, weight);
    y.copy_(y32);
    arena.release(mark);
    return y;
}

at::Tensor FrozenLinear::multiply(const at::Tensor& x, bool transposed, Arena& arena) const {
    const std::int64_t rows = x.size(0);
    if (rows % gemm_row_block == 0 || path_ == GemmPath::tiles) return multiply_rows(x, transposed, arena);
    const std::int64_t all = (rows + gemm_row_block - 1) / gemm_row_block * gemm_row_block;
    at::Tensor padded = arena.take({all, x.size(1)}, x.scalar_type());
    padded.narrow(0, 0, rows).copy_(x);
    padded.narrow(0, rows, all - rows).zero_();
    return multiply_rows(padded, transposed, arena).narrow(0, 0, rows);
}

at::Tensor FrozenLinear::forward(const at::Tensor& x_NI, Arena& arena) const { return multiply(x_NI, false, arena); }

at::Tensor FrozenLinear::backward(const at::Tensor& dy_NO, Arena& arena) const { return multiply(dy_NO, true, arena); }

at::Tensor FrozenLinear::forward_add(const at::Tensor& x_NI, const at::Tensor& residual_NO, Arena& arena) const {
    at::Tensor out = arena.take(residual_NO.sizes(), residual_NO.scalar_type());
    if (path_ == GemmPath::tiles) {
        ops::panel_product(x_NI, packed_forward_, residual_NO, out);
        return out;
    }
    const std::int64_t mark = arena.mark();
    ops::add(residual_NO, multiply(x_NI, false, arena), out);
    arena.release(mark);
    return out;
}

std::int64_t FrozenLinear::bytes() const {
    const auto size = [](const at::Tensor& t) {
        return t.defined() ? t.numel() * static_cast<std::int64_t>(t.element_size()) : 0;
    };
    return size(dense_OI_) + size(packed_forward_) + size(packed_backward_);
}

bool has_bf16_hardware() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") || __builtin_cpu_supports("amx-bf16");
#else
    return onednn_available(at::kBFloat16, at::kCPU);
#endif
}

std::vector<GemmMeasurement> measure_gemm(std::span<const GemmShape> shapes, at::ScalarType dtype, at::Device device) {
    std::vector<GemmPath> paths;
    if (dtype == at::kBFloat16 && device.is_cpu()) {
        paths.push_back(GemmPath::widened);
        if (onednn_available(dtype, device)) paths.push_back(GemmPath::onednn);
    } else {
        paths.push_back(GemmPath::mkl);
        if (device.is_cpu() && dtype == at::kFloat) paths.push_back(GemmPath::tiles);
        if (onednn_available(dtype, device)) paths.push_back(GemmPath::onednn);
    }
    // Few rows for wide models: 4 GFLOP a pass at most, but so many that the products are as in a pack.
    double flops_per_row = 0.0;
    for (const auto& shape : shapes)
        flops_per_row += 4.0 * static_cast<double>(shape.inputs) * static_cast<double>(shape.outputs);
    const std::int64_t rows = std::clamp<std::int64_t>(static_cast<std::int64_t>(4e9 / flops_per_row), 64, 512);
    const auto options = at::TensorOptions().dtype(dtype).device(device);
    std::vector<std::vector<FrozenLinear>> linear(paths.size());
    std::vector<at::Tensor> input;
    std::vector<at::Tensor> gradient;
    for (const auto& shape : shapes) {
        const at::Tensor weight = at::ones({shape.outputs, shape.inputs}, options);
        for (std::size_t p = 0; p < paths.size(); ++p) linear[p].emplace_back(weight, paths[p]);
        input.push_back(at::ones({rows, shape.inputs}, options));
        gradient.push_back(at::ones({rows, shape.outputs}, options));
    }
    // Passes over small matrices take a millisecond: many of them, so that a moment of noise does not decide.
    constexpr int least_repeats = 4;
    constexpr int most_repeats = 40;
    constexpr double budget_s = 0.5;
    std::vector<std::vector<double>> seconds(paths.size());
    Arena arena(dtype, device);
    const auto began = std::chrono::steady_clock::now();
    const auto has_time = [began] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count() < budget_s;
    };
    for (int repeat = -1; repeat < least_repeats || (repeat < most_repeats && has_time()); ++repeat) {
        // The first pass warms up; the paths take turns.
        for (std::size_t p = 0; p < paths.size(); ++p) {
            const auto start = std::chrono::steady_clock::now();
            for (std::size_t s = 0; s < shapes.size(); ++s) {
                arena.reset();
                (void)linear[p][s].forward(input[s], arena);
                (void)linear[p][s].backward(gradient[s], arena);
            }
            const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
            if (repeat >= 0) seconds[p].push_back(elapsed.count());
        }
    }
    std::vector<GemmMeasurement> measured;
    for (std::size_t p = 0; p < paths.size(); ++p) {
        const double fastest = *std::ranges::min_element(seconds[p]);  // other processes only ever add time
        measured.push_back(
            {.path = paths[p], .seconds = fastest, .flops_per_s = flops_per_row * static_cast<double>(rows) / fastest});
    }
    return measured;
}

GemmPath fastest_gemm(std::span<const GemmMeasurement> measured) {
    const GemmMeasurement* best = measured.data();
    for (const auto& candidate : measured) {
        if (candidate.seconds < 0.92 * best->seconds) best = &candidate;
    }
    return best->path;
}

}  // namespace hetlora
