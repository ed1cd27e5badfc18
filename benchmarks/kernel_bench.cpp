// kernel_bench
// Speed of the CPU kernels alone, one thread, at every vector level that this processor has, at the shapes of the
// workloads T, S and M (docs/performance.md). Prints a Markdown table of medians. What to look for: a level that is
// slower than the one below it, a lora_rank that falls out of line, bytes a second far below the memory's. Not a test:
//     cmake --build build --target kernel_bench && build/benchmarks/kernel_bench
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
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

std::vector<float> random_values(std::int64_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal(0.0F, 0.5F);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(generator);
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

/// A pack's rows through the activation of the feed-forward.
Pair time_swiglu(const Shape& shape) {
    const auto gate_up = random_values(shape.rows * 2 * shape.intermediate);
    auto d_gate_up = gate_up;
    auto out = random_values(shape.rows * shape.intermediate);
    const auto& kernel = kernels<float>();
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
Pair time_attention(const Shape& shape) {
    const AttentionShape attention{.heads = shape.heads,
                                   .kv_heads = shape.kv_heads,
                                   .head_size = shape.head_size,
                                   .q_stride = shape.qkv_width(),
                                   .kv_stride = shape.qkv_width(),
                                   .out_stride = shape.heads * shape.head_size,
                                   .scale = 0.25,
                                   .causal = true};
    const auto qkv = random_values(shape.client_rows * shape.qkv_width());
    auto d_qkv = qkv;
    auto out = random_values(shape.client_rows * attention.out_stride);
    const auto d_out = out;
    auto lse = random_values(shape.client_rows * shape.heads);
    std::vector<float> scratch(static_cast<std::size_t>(attention_scratch_size(shape.length, shape.head_size)));
    const float* q = qkv.data();
    const float* k = q + shape.heads * shape.head_size;
    const float* v = k + shape.kv_heads * shape.head_size;
    float* dq = d_qkv.data();
    float* dk = dq + shape.heads * shape.head_size;
    float* dv = dk + shape.kv_heads * shape.head_size;
    const auto every = [&](auto call) {
        for (std::int64_t row = 0; row < shape.client_rows; row += shape.length)
            for (std::int64_t head = 0; head < shape.kv_heads; ++head) call(AttentionSpan{row, shape.length}, head);
    };
    const auto& kernel = kernels<float>();
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
        row(shape, fmt::format("SwiGLU, {} rows", shape.rows), time_swiglu(shape), 0.0);
        for (const std::int64_t width : {4, 8, 16, 32}) {
            row(shape, fmt::format("LoRA of q, {} slots", width), time_lora(shape, width),
                2.0 * static_cast<double>(shape.client_rows * width * (shape.hidden + shape.heads * shape.head_size)));
        }
        const double pairs = 0.5 * static_cast<double>(shape.client_rows * (shape.length + 1));
        row(shape, "attention", time_attention(shape),
            4.0 * pairs * static_cast<double>(shape.heads * shape.head_size));
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
