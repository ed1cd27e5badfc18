// kernel_bench
// Speed of the CPU kernels alone, one thread, at every vector level that this processor has, at the shapes of the
// workloads T, S and M (docs/performance.md). Prints a Markdown table of medians. What to look for: a level that is
// slower than the one below it, a lora_rank that falls out of line, bytes a second far below the memory's. Not a test:
//     cmake --build build --target kernel_bench && build/benchmarks/kernel_bench
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "hetlora/tensor/kernels.hpp"

namespace hetlora {
namespace {

/// Rows of a pack, sizes of the model, tokens a sequence.
struct Shape {
    const char* name;
    std::int64_t rows, intermediate, hidden, heads, kv_heads, head_size;
    std::int64_t length = 64;
    std::int64_t client_rows = 128;

    [[nodiscard]] std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_size; }
};
constexpr Shape shapes[] = {
    {"T", 2048, 192, 64, 4, 4, 16}, {"S", 2048, 1408, 512, 8, 8, 64}, {"M", 1024, 1536, 576, 9, 3, 64}};

template <typename S = float>
std::vector<S> random_values(std::int64_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal(0.0F, 0.5F);
    std::vector<S> values(static_cast<std::size_t>(count));
    for (S& value : values) {
        const float drawn = normal(generator);
        if constexpr (std::is_same_v<S, Bfloat16>) {
            value.bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(drawn) >> 16U);
        } else {
            value = drawn;
        }
    }
    return values;
}

/// Median seconds of a call.
template <typename Call>
double seconds_of(Call call) {
    std::vector<double> seconds;
    for (int i = 0; i < 21; ++i) {
        const auto start = std::chrono::steady_clock::now();
        call();
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::ranges::sort(seconds);
    return seconds[seconds.size() / 2];
}

struct Pair {
    double forward_s, backward_s;
};

/// A client's rows through RMSNorm.
template <typename S>
Pair time_norm(const Shape& shape) {
    const auto x = random_values(shape.client_rows * shape.hidden);
    const auto weight = random_values(shape.hidden);
    auto rstd = random_values(shape.client_rows);
    auto dx = x;
    auto y = random_values<S>(shape.client_rows * shape.hidden);
    const auto& kernel = kernels<S>();
    return {seconds_of([&] {
                kernel.rms_norm(x.data(), weight.data(), y.data(), rstd.data(), shape.client_rows, shape.hidden, 1e-5);
            }),
            seconds_of([&] {
                kernel.rms_norm_backward(y.data(), x.data(), weight.data(), rstd.data(), dx.data(), shape.client_rows,
                                         shape.hidden);
            })};
}

/// A client's queries turned forwards and back.
template <typename S>
Pair time_rotary(const Shape& shape) {
    auto x = random_values<S>(shape.client_rows * shape.qkv_width());
    std::vector<float> cosine(static_cast<std::size_t>(shape.length * shape.head_size / 2));
    std::vector<float> sine = cosine;
    for (std::size_t i = 0; i < cosine.size(); ++i) {
        cosine[i] = std::cos(static_cast<float>(i));
        sine[i] = std::sin(static_cast<float>(i));
    }
    std::vector<std::int32_t> position(static_cast<std::size_t>(shape.client_rows));
    for (std::size_t row = 0; row < position.size(); ++row)
        position[row] = static_cast<std::int32_t>(row) % static_cast<std::int32_t>(shape.length);
    const auto turn = [&](int direction) {
        return seconds_of([&] {
            kernels<S>().rotary(x.data(), shape.qkv_width(), cosine.data(), sine.data(), position.data(),
                                shape.client_rows, shape.heads, shape.head_size, direction);
        });
    };
    return {turn(+1), turn(-1)};
}

/// A pack's rows through the activation of the feed-forward.
template <typename S>
Pair time_swiglu(const Shape& shape) {
    const auto gate_up = random_values<S>(shape.rows * 2 * shape.intermediate);
    auto d_gate_up = gate_up;
    auto out = random_values<S>(shape.rows * shape.intermediate);
    const auto& kernel = kernels<S>();
    return {seconds_of([&] { kernel.swiglu(gate_up.data(), out.data(), shape.rows, shape.intermediate); }),
            seconds_of([&] {
                kernel.swiglu_backward(out.data(), gate_up.data(), d_gate_up.data(), shape.rows, shape.intermediate);
            })};
}

/// One client's terms of q_proj, whose output lies in rows of q, k and v.
Pair time_lora(const Shape& shape, std::int64_t width) {
    const LoraShape lora{.rows = shape.client_rows,
                         .inputs = shape.hidden,
                         .outputs = shape.heads * shape.head_size,
                         .width = width,
                         .x_stride = shape.hidden,
                         .y_stride = shape.qkv_width(),
                         .dx_stride = shape.hidden,
                         .scale = 2.0};
    const auto x = random_values(lora.rows * lora.x_stride);
    auto y = random_values(lora.rows * lora.y_stride);
    const auto a = random_values(width * lora.inputs);
    const auto bt = random_values(width * lora.outputs);
    auto z = random_values(lora.rows * width);
    auto da = a, dbt = bt, dx = x;
    std::vector<float> scratch(static_cast<std::size_t>(lora_scratch_size(lora)));
    const auto& kernel = kernels<float>();
    return {seconds_of(
                [&] { kernel.lora_forward(x.data(), a.data(), bt.data(), z.data(), y.data(), lora, scratch.data()); }),
            seconds_of([&] {
                kernel.lora_backward(x.data(), y.data(), z.data(), a.data(), bt.data(), da.data(), dbt.data(),
                                     dx.data(), lora, scratch.data());
            })};
}

/// All sequences and heads of one client, causal.
template <typename S>
Pair time_attention(const Shape& shape) {
    const AttentionShape attention{.heads = shape.heads,
                                   .kv_heads = shape.kv_heads,
                                   .head_size = shape.head_size,
                                   .q_stride = shape.qkv_width(),
                                   .kv_stride = shape.qkv_width(),
                                   .out_stride = shape.heads * shape.head_size,
                                   .scale = 0.25,
                                   .causal = true};
    const auto qkv = random_values<S>(shape.client_rows * shape.qkv_width());
    auto d_qkv = qkv;
    auto out = random_values<S>(shape.client_rows * attention.out_stride);
    const auto d_out = out;
    auto lse = random_values(shape.client_rows * shape.heads);
    std::vector<float> scratch(static_cast<std::size_t>(attention_scratch_size(shape.length, shape.head_size)));
    const S* q = qkv.data();
    const S* k = q + shape.heads * shape.head_size;
    const S* v = k + shape.kv_heads * shape.head_size;
    S* dq = d_qkv.data();
    S* dk = dq + shape.heads * shape.head_size;
    S* dv = dk + shape.kv_heads * shape.head_size;
    const auto every = [&](auto call) {
        for (std::int64_t row = 0; row < shape.client_rows; row += shape.length)
            for (std::int64_t head = 0; head < shape.kv_heads; ++head) call(AttentionSpan{row, shape.length}, head);
    };
    const auto& kernel = kernels<S>();
    const double forward = seconds_of([&] {
        every([&](AttentionSpan span, std::int64_t head) {
            kernel.attention(q, k, v, out.data(), lse.data(), attention, span, head, scratch.data());
        });
    });
    const double backward = seconds_of([&] {
        every([&](AttentionSpan span, std::int64_t head) {
            kernel.attention_backward(q, k, v, lse.data(), d_out.data(), dq, dk, dv, attention, span, head,
                                      scratch.data());
        });
    });
    return {forward, backward};
}

void print_level(VectorLevel level) {
    set_vector_level(level);
    const auto row = [level](const Shape& shape, const std::string& kernel, Pair time, double forward_flops) {
        const auto rate = [](double flops, double seconds) {
            return flops > 0.0 ? fmt::format("{:.0f}", flops / seconds / 1e9) : std::string("-");
        };
        fmt::print("| {} | {} | {} | {:.1f} | {:.1f} | {} | {} |\n", to_string(level), shape.name, kernel,
                   1e6 * time.forward_s, 1e6 * time.backward_s, rate(forward_flops, time.forward_s),
                   rate(2.0 * forward_flops, time.backward_s));
    };
    for (const Shape& shape : shapes) {
        row(shape, "RMSNorm", time_norm<float>(shape), 0.0);
        row(shape, "RMSNorm, bf16", time_norm<Bfloat16>(shape), 0.0);
        row(shape, "rotary of q", time_rotary<float>(shape), 0.0);
        row(shape, "rotary of q, bf16", time_rotary<Bfloat16>(shape), 0.0);
        row(shape, fmt::format("SwiGLU, {} rows", shape.rows), time_swiglu<float>(shape), 0.0);
        row(shape, fmt::format("SwiGLU, {} rows, bf16", shape.rows), time_swiglu<Bfloat16>(shape), 0.0);
        for (const std::int64_t width : {4, 8, 16, 32}) {
            row(shape, fmt::format("LoRA of q, {} slots", width), time_lora(shape, width),
                2.0 * static_cast<double>(shape.client_rows * width * (shape.hidden + shape.heads * shape.head_size)));
        }
        const double pairs = 0.5 * static_cast<double>(shape.client_rows * (shape.length + 1));
        const double flops = 4.0 * pairs * static_cast<double>(shape.heads * shape.head_size);
        row(shape, "attention", time_attention<float>(shape), flops);
        row(shape, "attention, bf16", time_attention<Bfloat16>(shape), flops);
    }
}

}  // namespace
}  // namespace hetlora

int main() {
    using hetlora::VectorLevel;
    fmt::print("| level | shape | kernel | forward, us | backward, us | forward, GFLOP/s | backward, GFLOP/s |\n");
    fmt::print("|---|---|---|---|---|---|---|\n");
    for (const auto level : {VectorLevel::baseline, VectorLevel::avx2, VectorLevel::avx512}) {
        if (level <= hetlora::best_vector_level()) hetlora::print_level(level);
    }
    return 0;
}
