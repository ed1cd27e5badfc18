// The ATen forms in every pairing of dtypes that the engine uses, and what a GPU needs of them: no row of a padded grid
// may reach another sequence.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hetlora/tensor/ops.hpp"

namespace hetlora {
namespace {

at::Tensor random(at::IntArrayRef shape, at::ScalarType dtype) {
    return at::randn(shape, at::TensorOptions().dtype(at::kDouble)).to(dtype);
}

double difference_in_double(const at::Tensor& a, const at::Tensor& b) {
    const at::Tensor expected = b.to(at::kDouble);
    return (a.to(at::kDouble) - expected).abs().max().item<double>() / expected.abs().max().item<double>();
}

/// One rounding to bfloat16 may fall on either side.
constexpr double one_rounding = 1.0 / 128;

TEST(AtenBfloat16, computes_in_float_and_rounds_once) {
    at::manual_seed(3);
    const at::Tensor x = random({37, 64}, at::kFloat), w = random({64}, at::kFloat);
    at::Tensor y = at::empty({37, 64}, at::kBFloat16), expected = at::empty_like(y), rstd = at::empty({37});
    aten::rms_norm(x, w, 1e-5, y, rstd);
    ops::rms_norm(x, w, 1e-5, expected, rstd);
    EXPECT_LT(difference_in_double(y, expected), one_rounding);
    EXPECT_EQ((y != expected).sum().item<std::int64_t>() > 37 * 64 / 50, false);

    const at::Tensor dy = random({37, 64}, at::kBFloat16);
    at::Tensor dx = random({37, 64}, at::kFloat), dx_expected = dx.clone();
    aten::rms_norm_backward(dy, x, w, rstd, dx);
    ops::rms_norm_backward(dy, x, w, rstd, dx_expected);
    EXPECT_LT(difference_in_double(dx, dx_expected), 2e-6);

    const at::Tensor gate_up = random({19, 90}, at::kBFloat16) * 3, d_out = random({19, 45}, at::kBFloat16);
    at::Tensor out = at::empty_like(d_out), out_expected = at::empty_like(d_out);
    at::Tensor d = at::empty_like(gate_up), d_expected = at::empty_like(gate_up);
    aten::swiglu(gate_up, out);
    ops::swiglu(gate_up, out_expected);
    aten::swiglu_backward(d_out, gate_up, d);
    ops::swiglu_backward(d_out, gate_up, d_expected);
    EXPECT_LT(difference_in_double(out, out_expected), one_rounding);
    EXPECT_LT(difference_in_double(d, d_expected), one_rounding);

    const auto table = ops::make_rotary_table(64, 10, 10000.0, at::TensorOptions().dtype(at::kFloat));
    const at::Tensor position = at::arange(23, at::kInt);
    at::Tensor turned = random({23, 30}, at::kBFloat16), turned_expected = turned.clone();
    aten::rotary(turned, 3, 10, table, position, -1);
    ops::rotary(turned_expected, 3, 10, table, position, -1);
    EXPECT_LT(difference_in_double(turned, turned_expected), one_rounding);

    at::Tensor sum = at::empty_like(x), sum_expected = at::empty_like(x);
    at::add_out(sum, x, dy);
    ops::add(x, dy, sum_expected);
    EXPECT_TRUE(at::equal(sum, sum_expected));
}

TEST(AtenBfloat16, cross_entropy) {
    at::manual_seed(4);
    const at::Tensor logits = random({21, 131}, at::kBFloat16) * 5;
    const at::Tensor target = at::randint(131, {21}, at::TensorOptions().dtype(at::kLong));
    const at::Tensor scale = random({21}, at::kFloat).abs();
    at::Tensor own = logits.clone(), expected = logits.clone();
    at::Tensor loss = at::empty({21}, at::kDouble), loss_expected = at::empty({21}, at::kDouble);
    at::Tensor correct = at::empty({21}, at::kByte), correct_expected = at::empty({21}, at::kByte);
    aten::cross_entropy(own, target, scale, loss, correct, true);
    ops::cross_entropy(expected, target, scale, loss_expected, correct_expected, true);
    EXPECT_LT(difference_in_double(own, expected), one_rounding);
    EXPECT_LT(difference_in_double(loss, loss_expected), 2e-6);
    EXPECT_TRUE(at::equal(correct, correct_expected));
}

/// Queries, keys and values side by side, as the engine holds them.
struct Attention {
    std::int64_t heads = 6, kv_heads = 2, head_size = 16;
    std::vector<AttentionSpan> spans;
    at::Tensor qkv_NX, out, lse, d_out, d_qkv;

    Attention(std::vector<AttentionSpan> layout, at::ScalarType dtype) : spans(std::move(layout)) {
        const std::int64_t rows = spans.back().row0 + spans.back().length;
        const std::int64_t Q = heads * head_size;
        qkv_NX = random({rows, Q + 2 * kv_heads * head_size}, dtype);
        d_out = random({rows, Q}, dtype);
        out = at::empty({rows, Q}, dtype);
        lse = at::empty({rows, heads}, dtype == at::kBFloat16 ? at::kFloat : dtype);
        d_qkv = at::zeros_like(qkv_NX);
    }
    [[nodiscard]] at::Tensor part(const at::Tensor& x, int which) const {
        const std::int64_t Q = heads * head_size, KV = kv_heads * head_size;
        return which == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (which - 1) * KV, KV);
    }
    void run_aten() {
        const at::Tensor place = aten::span_places(spans, at::kCPU);
        aten::attention(part(qkv_NX, 0), part(qkv_NX, 1), part(qkv_NX, 2), heads, kv_heads, spans, out, lse, place);
        aten::attention_backward(part(qkv_NX, 0), part(qkv_NX, 1), part(qkv_NX, 2), heads, kv_heads, spans, out, lse,
                                 d_out, {part(d_qkv, 0), part(d_qkv, 1), part(d_qkv, 2)}, place);
    }
    void run_kernels() {
        ops::attention(part(qkv_NX, 0), part(qkv_NX, 1), part(qkv_NX, 2), heads, kv_heads, spans, out, lse);
        ops::attention_backward(part(qkv_NX, 0), part(qkv_NX, 1), part(qkv_NX, 2), heads, kv_heads, spans, out, lse,
                                d_out, {part(d_qkv, 0), part(d_qkv, 1), part(d_qkv, 2)});
    }
};

TEST(AtenAttention, all_sequences_at_once_give_the_kernels_numbers) {
    const std::vector<std::vector<AttentionSpan>> layouts{
        {{0, 1}, {1, 33}, {34, 70}, {104, 32}},  // ragged
        {{0, 40}, {40, 40}, {80, 40}},           // equally long
        {{0, 64}},                               // one
    };
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
        const double tolerance = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 5e-6 : 2e-2;
        for (const auto& spans : layouts) {
            at::manual_seed(5);
            Attention aten(spans, dtype);
            Attention kernels = aten;
            kernels.out = at::empty_like(aten.out);
            kernels.lse = at::empty_like(aten.lse);
            kernels.d_qkv = at::zeros_like(aten.d_qkv);
            aten.run_aten();
            kernels.run_kernels();
            EXPECT_LT(difference_in_double(aten.out, kernels.out), tolerance);
            EXPECT_LT(difference_in_double(aten.lse, kernels.lse), dtype == at::kBFloat16 ? 1e-5 : tolerance);
            EXPECT_LT(difference_in_double(aten.d_qkv, kernels.d_qkv), 5 * tolerance);
        }
    }
}

TEST(AtenAttention, a_nan_stays_in_its_sequence) {
    at::manual_seed(6);
    Attention attention({{0, 9}, {9, 21}, {30, 4}}, at::kFloat);
    attention.qkv_NX.narrow(0, 9, 21).fill_(std::numeric_limits<double>::quiet_NaN());
    attention.d_out.narrow(0, 9, 21).fill_(std::numeric_limits<double>::quiet_NaN());
    attention.run_aten();
    for (const at::Tensor& x : {attention.out, attention.d_qkv}) {
        EXPECT_TRUE(x.narrow(0, 0, 9).isfinite().all().item<bool>());
        EXPECT_TRUE(x.narrow(0, 30, 4).isfinite().all().item<bool>());
        EXPECT_TRUE(x.narrow(0, 9, 21).isnan().all().item<bool>());
    }
}

TEST(AtenAttention, places_are_made_for_ragged_spans_only) {
    EXPECT_FALSE(aten::span_places({{0, 5}, {5, 5}}, at::kCPU).defined());
    EXPECT_TRUE(at::equal(aten::span_places({{3, 2}, {5, 3}}, at::kCPU), at::tensor({0, 1, 3, 4, 5}, at::kLong)));
    EXPECT_ANY_THROW((void)aten::span_places({{0, 2}, {3, 3}}, at::kCPU));
}

}  // namespace
}  // namespace hetlora
