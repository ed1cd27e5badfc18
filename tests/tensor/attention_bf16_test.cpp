// Attention in bfloat16, by the processor's products where it has them (else by the vector kernels).
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <vector>

#include "hetlora/tensor/matrix_unit.hpp"
#include "hetlora/tensor/ops.hpp"

namespace hetlora {
namespace {

/// q, k and v of grouped heads in flat rows, and what attention makes of them.
struct AttentionBf16 : ::testing::TestWithParam<std::int64_t> {
    static constexpr std::int64_t heads = 6, kv_heads = 2;
    std::int64_t head_size = GetParam(), Q = heads * head_size, KV = kv_heads * head_size;

    [[nodiscard]] at::Tensor part(const at::Tensor& x, int p) const {
        return p == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (p - 1) * KV, KV);
    }
    /// out, gradients of q, k and v, and lse, as float32.
    [[nodiscard]] std::vector<at::Tensor> run(const at::Tensor& qkv, const at::Tensor& d_out,
                                              const std::vector<AttentionSpan>& spans, bool causal) const {
        at::Tensor out = at::empty_like(d_out), d = at::empty_like(qkv), lse = at::empty({qkv.size(0), heads});
        ops::attention(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse, {}, causal);
        ops::attention_backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse, d_out,
                                {part(d, 0), part(d, 1), part(d, 2)}, {}, causal);
        return {out.to(at::kFloat), d.to(at::kFloat), lse};
    }
    [[nodiscard]] at::Tensor qkv(std::int64_t rows) const { return at::randn({rows, Q + 2 * KV}).to(at::kBFloat16); }
    [[nodiscard]] at::Tensor d_out(std::int64_t rows) const { return at::randn({rows, Q}).to(at::kBFloat16); }
};

/// bfloat16 rounds the probabilities, too, where the processor has products of bfloat16: a few parts in a thousand.
TEST_P(AttentionBf16, is_that_of_its_values_in_float32) {
    at::manual_seed(11);
    for (const bool causal : {true, false}) {
        const std::vector<AttentionSpan> spans{{0, 1}, {1, 33}, {34, 70}, {104, 32}};
        const at::Tensor x = qkv(136), dy = d_out(136);
        const auto half = run(x, dy, spans, causal);
        const auto single = run(x.to(at::kFloat), dy.to(at::kFloat), spans, causal);
        for (std::size_t i = 0; i < half.size(); ++i) {
            EXPECT_LT(((half[i] - single[i]).norm() / single[i].norm()).item<double>(), i == 2 ? 1e-5 : 6e-3)
                << "result " << i;
        }
    }
}

/// The rows before hold a NaN, which stays where it is; what is left of it in a thread's scratch reaches nobody.
TEST_P(AttentionBf16, a_sequence_knows_nothing_of_its_neighbours) {
    at::manual_seed(12);
    const at::Tensor x = qkv(115), dy = d_out(115);
    const auto alone = run(x.narrow(0, 45, 70).contiguous(), dy.narrow(0, 45, 70).contiguous(), {{0, 70}}, true);
    x.narrow(0, 0, 45).fill_(std::numeric_limits<float>::quiet_NaN());
    const auto together = run(x, dy, {{0, 45}, {45, 70}}, true);
    for (std::size_t i = 0; i < alone.size(); ++i) {
        EXPECT_TRUE(at::equal(together[i].narrow(0, 45, 70), alone[i])) << "result " << i;
        EXPECT_TRUE(together[i].narrow(0, 0, 45).isnan().all().item<bool>());
    }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, AttentionBf16, ::testing::Values(6, 8, 16, 24, 40, 64));

TEST(MatrixUnit, is_there_where_the_processor_has_it) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool limited = std::getenv("ONEDNN_MAX_CPU_ISA") != nullptr;
    EXPECT_EQ(has_matrix_unit(), !limited && __builtin_cpu_supports("avx512bf16") != 0);
    allow_matrix_unit(false);
    EXPECT_FALSE(has_matrix_unit());
    allow_matrix_unit(true);
#else
    EXPECT_FALSE(has_matrix_unit());
#endif
}

}  // namespace
}  // namespace hetlora
