// The CPU kernels, at every vector level that this processor has, against the compositions of ATen's ops.
#include "hetlora/tensor/ops.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "hetlora/base/error.hpp"
namespace hetlora {
namespace {

struct Case {
    VectorLevel level;
    at::ScalarType dtype;
};

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>() / std::max(1e-30, b.abs().max().item<double>());
}

class Ops : public ::testing::TestWithParam<Case> {
protected:
    void SetUp() override {
        if (GetParam().level > best_vector_level())
            GTEST_SKIP() << "this processor has no " << to_string(GetParam().level);
        set_vector_level(GetParam().level);
        at::manual_seed(1);
    }
    void TearDown() override { set_vector_level(best_vector_level()); }
    [[nodiscard]] at::Tensor random(at::IntArrayRef shape) const {
        return at::randn(shape, at::TensorOptions().dtype(at::kDouble)).to(GetParam().dtype);
    }
    [[nodiscard]] double tolerance() const { return GetParam().dtype == at::kDouble ? 1e-12 : 2e-6; }
};

TEST_P(Ops, rms_norm_and_its_gradient) {
    const at::Tensor x = random({37, 68});
    const at::Tensor w = random({68});
    const at::Tensor dy = random({37, 68});
    at::Tensor y = at::empty_like(x), y_expected = at::empty_like(x);
    at::Tensor rstd = at::empty({37}, x.options()), rstd_expected = at::empty({37}, x.options());
    at::Tensor dx = random({37, 68}), dx_expected = dx.clone();

    ops::rms_norm(x, w, 1e-5, y, rstd);
    aten::rms_norm(x, w, 1e-5, y_expected, rstd_expected);
    ops::rms_norm_backward(dy, x, w, rstd, dx);
    aten::rms_norm_backward(dy, x, w, rstd_expected, dx_expected);

    EXPECT_LT(largest_difference(y, y_expected), tolerance());
    EXPECT_LT(largest_difference(rstd, rstd_expected), tolerance());
    EXPECT_LT(largest_difference(dx, dx_expected), tolerance());
}

TEST_P(Ops, layer_norm_and_its_gradient) {
    const at::Tensor x = random({37, 68}) + 3;
    const at::Tensor w = random({68}), b = random({68});
    const at::Tensor dy = random({37, 68});
    at::Tensor y = at::empty_like(x), y_expected = at::empty_like(x);
    at::Tensor rstd = at::empty({37}, x.options()), rstd_expected = at::empty({37}, x.options());
    at::Tensor dx = random({37, 68}), dx_expected = dx.clone();
    const at::Tensor leaf = x.clone().requires_grad_(true);
    const at::Tensor by_library = at::layer_norm(leaf, {68}, w, b, 1e-5);
    by_library.backward(dy);
    const at::Tensor dx_library = dx + leaf.grad();

    ops::layer_norm(x, w, b, 1e-5, y, rstd);
    aten::layer_norm(x, w, b, 1e-5, y_expected, rstd_expected);
    ops::layer_norm_backward(dy, x, w, rstd, dx);
    aten::layer_norm_backward(dy, x, w, rstd_expected, dx_expected);

    EXPECT_LT(largest_difference(y, y_expected), tolerance());
    EXPECT_LT(largest_difference(y, by_library.detach()), tolerance());
    EXPECT_LT(largest_difference(rstd, rstd_expected), tolerance());
    EXPECT_LT(largest_difference(dx, dx_expected), tolerance());
    EXPECT_LT(largest_difference(dx, dx_library), tolerance());
}

TEST_P(Ops, activations_and_their_gradients) {
    // Far into both tails, where a small result must be small, not zero or large.
    const at::Tensor x = at::cat({random({19, 45}) * 3, at::linspace(-12, 12, 45).to(GetParam().dtype).unsqueeze(0)});
    const at::Tensor d_out = random({20, 45});
    for (const Activation activation : {Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        at::Tensor out = at::empty_like(x), out_expected = at::empty_like(x);
        at::Tensor d = at::empty_like(x), d_expected = at::empty_like(x);

        ops::activate(x, activation, out);
        aten::activate(x, activation, out_expected);
        ops::activate_backward(d_out, x, activation, d);
        aten::activate_backward(d_out, x, activation, d_expected);

        EXPECT_LT(largest_difference(out, out_expected), tolerance());
        EXPECT_LT(largest_difference(d, d_expected), tolerance());
        at::Tensor in_place = d_out.clone();
        ops::activate_backward(in_place, x, activation, in_place);
        EXPECT_TRUE(at::equal(in_place, d));
    }
}

TEST_P(Ops, rotary_and_its_transpose) {
    const auto table = ops::make_rotary_table(64, 10, 10000.0, at::TensorOptions().dtype(GetParam().dtype));
    const at::Tensor position = at::arange(23, at::kInt).add(5).to(at::kInt);
    const at::Tensor start = random({23, 50});
    at::Tensor x = start.clone(), expected = start.clone();

    ops::rotary(x.narrow(1, 0, 30), 3, 10, table, position, +1);
    aten::rotary(expected.narrow(1, 0, 30), 3, 10, table, position, +1);
    EXPECT_LT(largest_difference(x, expected), tolerance());
    EXPECT_TRUE(at::equal(x.narrow(1, 30, 20), start.narrow(1, 30, 20)));

    ops::rotary(x.narrow(1, 0, 30), 3, 10, table, position, -1);
    EXPECT_LT(largest_difference(x, start), tolerance());
}

TEST_P(Ops, swiglu_and_its_gradient) {
    const at::Tensor gate_up = random({19, 2 * 45}) * 4;
    const at::Tensor d_out = random({19, 45});
    at::Tensor out = at::empty({19, 45}, d_out.options()), out_expected = at::empty_like(out);
    at::Tensor d = at::empty_like(gate_up), d_expected = at::empty_like(gate_up);

    ops::swiglu(gate_up, out);
    aten::swiglu(gate_up, out_expected);
    ops::swiglu_backward(d_out, gate_up, d);
    aten::swiglu_backward(d_out, gate_up, d_expected);

    EXPECT_LT(largest_difference(out, out_expected), tolerance());
    EXPECT_LT(largest_difference(d, d_expected), tolerance());
}

TEST_P(Ops, swiglu_survives_extreme_gates) {
    const at::Tensor gate_up =
        at::tensor({-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0}).to(GetParam().dtype).view({1, 8});
    at::Tensor out = at::empty({1, 4}, gate_up.options());

    ops::swiglu(gate_up, out);

    EXPECT_NEAR(out[0][0].item<double>(), 0.0, 1e-30);
    EXPECT_NEAR(out[0][1].item<double>(), 0.0, 1e-30);
    EXPECT_NEAR(out[0][2].item<double>(), 100.0, 1e-4);
    EXPECT_NEAR(out[0][3].item<double>(), 1e4, 1e-2);
}

TEST_P(Ops, attention_and_its_gradient_over_ragged_sequences_and_grouped_heads) {
    const std::int64_t heads = 6, kv_heads = 2;
    for (const std::int64_t head_size : {6, 16, 20}) {
        const std::vector<AttentionSpan> spans{{0, 1}, {1, 33}, {34, 70}, {104, 32}};
        const std::int64_t rows = 136, Q = heads * head_size, KV = kv_heads * head_size;
        const at::Tensor qkv = random({rows, Q + 2 * KV});
        const auto part = [&](const at::Tensor& x, int p) {
            return p == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (p - 1) * KV, KV);
        };
        at::Tensor out = at::empty({rows, Q}, qkv.options()), out_expected = at::empty_like(out);
        at::Tensor lse = at::empty({rows, heads}, qkv.options()), lse_expected = at::empty_like(lse);
        const at::Tensor d_out = random({rows, Q});
        at::Tensor d = at::full_like(qkv, 7), d_expected = at::full_like(qkv, 8);

        ops::attention(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse);
        aten::attention(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out_expected, lse_expected);
        ops::attention_backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse, d_out,
                                {part(d, 0), part(d, 1), part(d, 2)});
        aten::attention_backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out_expected,
                                 lse_expected, d_out, {part(d_expected, 0), part(d_expected, 1), part(d_expected, 2)});

        EXPECT_LT(largest_difference(out, out_expected), tolerance());
        EXPECT_LT(largest_difference(lse, lse_expected), tolerance());
        EXPECT_LT(largest_difference(d, d_expected), 5 * tolerance());
    }
}

TEST_P(Ops, full_attention_and_its_gradient_over_ragged_sequences_and_grouped_heads) {
    const std::int64_t heads = 6, kv_heads = 2;
    for (const std::int64_t head_size : {6, 16, 20}) {
        const std::vector<AttentionSpan> spans{{0, 1}, {1, 33}, {34, 70}, {104, 32}};
        const std::int64_t rows = 136, Q = heads * head_size, KV = kv_heads * head_size;
        const at::Tensor qkv = random({rows, Q + 2 * KV});
        const auto part = [&](const at::Tensor& x, int p) {
            return p == 0 ? x.narrow(1, 0, Q) : x.narrow(1, Q + (p - 1) * KV, KV);
        };
        at::Tensor out = at::empty({rows, Q}, qkv.options()), out_expected = at::empty_like(out);
        at::Tensor lse = at::empty({rows, heads}, qkv.options()), lse_expected = at::empty_like(lse);
        const at::Tensor d_out = random({rows, Q});
        at::Tensor d = at::full_like(qkv, 7), d_expected = at::full_like(qkv, 8);

        ops::attention(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse, {}, false);
        aten::attention(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out_expected, lse_expected,
                        {}, false);
        ops::attention_backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out, lse, d_out,
                                {part(d, 0), part(d, 1), part(d, 2)}, {}, false);
        aten::attention_backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), heads, kv_heads, spans, out_expected,
                                 lse_expected, d_out, {part(d_expected, 0), part(d_expected, 1), part(d_expected, 2)},
                                 {}, false);

        EXPECT_LT(largest_difference(out, out_expected), tolerance());
        EXPECT_LT(largest_difference(lse, lse_expected), tolerance());
        EXPECT_LT(largest_difference(d, d_expected), 5 * tolerance());

        // The third sequence, written out: heads 0 to 2 share the first key/value head.
        const auto dense = [&](const at::Tensor& x) {
            return x.narrow(0, 34, 70).narrow(1, 0, head_size).detach().clone().requires_grad_(true);
        };
        const at::Tensor q = dense(part(qkv, 0)), k = dense(part(qkv, 1)), v = dense(part(qkv, 2));
        const at::Tensor p = at::softmax(at::matmul(q, k.t()) / std::sqrt(static_cast<double>(head_size)), 1);
        const at::Tensor written_out = at::matmul(p, v);
        EXPECT_LT(largest_difference(dense(out).detach(), written_out.detach()), tolerance());
        written_out.backward(dense(d_out).detach());
        EXPECT_LT(largest_difference(dense(part(d, 0)).detach(), q.grad()), 5 * tolerance());
    }
}

TEST_P(Ops, attention_of_a_sequence_does_not_depend_on_its_neighbours) {
    const at::Tensor qkv = random({60, 3 * 16});
    const auto run = [&](const at::Tensor& rows, const std::vector<AttentionSpan>& spans) {
        at::Tensor out = at::empty({rows.size(0), 16}, rows.options());
        ops::attention(rows.narrow(1, 0, 16), rows.narrow(1, 16, 16), rows.narrow(1, 32, 16), 2, 2, spans, out, {});
        return out;
    };
    const at::Tensor together = run(qkv, {{0, 25}, {25, 35}});
    const at::Tensor alone = run(qkv.narrow(0, 25, 35).contiguous(), {{0, 35}});
    EXPECT_TRUE(at::equal(together.narrow(0, 25, 35), alone));
}

/// Several stretches of inputs, a part of a panel, rows beyond the tiles, a part of a wider tensor.
TEST_P(Ops, panel_product_equals_float64_on_any_number_of_threads) {
    const auto in_full = [](const at::Tensor& x) { return x.to(at::kDouble); };
    const int threads_before = at::get_num_threads();
    for (const std::int64_t inputs : {7, 96, 1700}) {
        for (const std::int64_t outputs : {5, 32, 70, 700}) {
            const at::Tensor w = random({outputs, inputs});
            const at::Tensor x = random({300, inputs + 3}).narrow(1, 1, inputs).narrow(0, 0, 277);
            const at::Tensor addend = random({277, outputs});
            const at::Tensor expected = at::mm(in_full(x), in_full(w).t());
            const at::Tensor panels = ops::pack_panels(w);
            at::Tensor y = at::empty({277, outputs}, w.options());
            at::Tensor on_two_threads = at::empty_like(y);
            at::Tensor sum = addend.clone();
            at::set_num_threads(1);
            ops::panel_product(x, panels, {}, y);
            ops::panel_product(x, panels, sum, sum);
            at::set_num_threads(2);
            ops::panel_product(x, panels, {}, on_two_threads);
            at::set_num_threads(threads_before);

            const double error = 4 * tolerance() * std::sqrt(static_cast<double>(inputs));
            EXPECT_LT((in_full(y) - expected).abs().max().item<double>(), error);
            EXPECT_LT((in_full(sum) - expected - in_full(addend)).abs().max().item<double>(), error);
            EXPECT_TRUE(at::equal(on_two_threads, y));
            at::Tensor some = at::empty({5, outputs}, w.options());
            ops::panel_product(x.narrow(0, 111, 5), panels, {}, some);
            EXPECT_TRUE(at::equal(some, y.narrow(0, 111, 5)));
        }
    }
}

TEST_P(Ops, cross_entropy_and_its_gradient) {
    const at::Tensor logits = random({21, 131}) * 5;
    const at::Tensor target = at::randint(131, {21}, at::TensorOptions().dtype(at::kLong));
    const at::Tensor scale = random({21}).abs();
    at::Tensor own = logits.clone(), expected = logits.clone();
    at::Tensor loss = at::empty({21}, at::kDouble), loss_expected = at::empty({21}, at::kDouble);
    at::Tensor correct = at::empty({21}, at::kByte), correct_expected = at::empty({21}, at::kByte);

    ops::cross_entropy(own, target, scale, loss, correct, true);
    aten::cross_entropy(expected, target, scale, loss_expected, correct_expected, true);

    EXPECT_LT(largest_difference(own, expected), tolerance());
    EXPECT_LT((loss - loss_expected).abs().max().item<double>(), 20 * tolerance());
    EXPECT_TRUE(at::equal(correct, correct_expected));
    at::Tensor untouched = logits.clone();
    ops::cross_entropy(untouched, target, {}, loss_expected, {}, false);
    EXPECT_TRUE(at::equal(untouched, logits));
}

TEST_P(Ops, cross_entropy_keeps_the_small_terms_of_a_large_vocabulary) {
    at::Tensor logits = at::full({1, 50000}, -16.0, at::TensorOptions().dtype(GetParam().dtype));
    logits[0][0] = 0.0;
    at::Tensor loss = at::empty({1}, at::kDouble);
    ops::cross_entropy(logits, at::zeros({1}, at::kLong), {}, loss, {}, false);
    EXPECT_NEAR(loss.item<double>(), std::log1p(49999.0 * std::exp(-16.0)), 2e-6);
}

/// A row of 68 is whole vectors and a rest, so both ways of storing a bfloat16 are used.
TEST_P(Ops, bfloat16_is_rounded_to_nearest_even) {
    if (GetParam().dtype != at::kFloat) GTEST_SKIP() << "computed in float32";
    at::Tensor x = random({64, 68}).mul_(at::pow(10.0, at::randint(-20, 18, {64, 68}))).contiguous();
    for (int i = 0; i < 4; ++i) {  // halfway between two bfloat16, the lower one even, odd, negative, and the largest
        const std::uint32_t bits[] = {0x3F808000U, 0x3F818000U, 0xBF818000U, 0x7F7F8000U};
        x[0][i] = std::bit_cast<float>(bits[i]);
    }
    x[1][0] = std::numeric_limits<float>::infinity();
    x[1][1] = -std::numeric_limits<float>::infinity();
    x[1][2] = std::numeric_limits<float>::quiet_NaN();
    x[1][3] = std::bit_cast<float>(0x7F800001U);  // a NaN whose upper half alone is infinity
    const std::vector<float> ones(68, 1.0F);
    for (std::int64_t row = 0; row < 64; ++row) {
        const at::Tensor narrow = at::empty({68}, at::kBFloat16);
        // The norm of ones is the weights themselves.
        kernels<Bfloat16>().rms_norm(ones.data(), x.const_data_ptr<float>() + 68 * row,
                                     static_cast<Bfloat16*>(narrow.data_ptr()), nullptr, 1, 68, 0.0);
        const at::Tensor expected = x[row].to(at::kBFloat16);
        EXPECT_TRUE(at::allclose(narrow, expected, 0.0, 0.0, /*equal_nan=*/true)) << row;
        EXPECT_TRUE(at::equal(at::isnan(narrow), at::isnan(x[row]))) << row;
    }
}

TEST_P(Ops, a_nan_stays_in_its_row) {
    at::Tensor logits = random({4, 40});
    logits[2][7] = std::numeric_limits<double>::quiet_NaN();
    at::Tensor clean = logits.clone();
    clean[2].fill_(0);
    const at::Tensor target = at::zeros({4}, at::kLong);
    const at::Tensor scale = at::ones({4}, logits.options());
    at::Tensor loss = at::empty({4}, at::kDouble), loss_clean = at::empty({4}, at::kDouble);

    ops::cross_entropy(logits, target, scale, loss, {}, true);
    ops::cross_entropy(clean, target, scale, loss_clean, {}, true);

    EXPECT_TRUE(std::isnan(loss[2].item<double>()));
    for (const std::int64_t row : {0, 1, 3}) {
        EXPECT_TRUE(at::equal(loss[row], loss_clean[row]));
        EXPECT_TRUE(at::equal(logits[row], clean[row]));
    }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
    return std::string(to_string(info.param.level)) + (info.param.dtype == at::kDouble ? "_fp64" : "_fp32");
}

INSTANTIATE_TEST_SUITE_P(Levels, Ops,
                         ::testing::Values(Case{VectorLevel::baseline, at::kFloat},
                                           Case{VectorLevel::baseline, at::kDouble},
                                           Case{VectorLevel::avx2, at::kFloat}, Case{VectorLevel::avx2, at::kDouble},
                                           Case{VectorLevel::avx512, at::kFloat},
                                           Case{VectorLevel::avx512, at::kDouble}),
                         case_name);

TEST(ParallelFor, uses_the_second_thread) {
    at::set_num_threads(2);
    std::atomic<int> helpers = 0;
    at::parallel_for(0, 2, 1, [&](std::int64_t, std::int64_t) { helpers += at::get_thread_num() == 1 ? 1 : 0; });
    at::set_num_threads(1);
    EXPECT_EQ(helpers, 1) << "at::parallel_for is serial: is OpenMP missing in the compile flags?";
}

TEST(Adamw, one_step_by_hand) {
    double theta = 1.0, moment1 = 0.0, moment2 = 0.0;
    const double gradient = 0.5;
    kernels<double>().adamw(&theta, &gradient, &moment1, &moment2, 1, 0.1, 0.01, 0.9, 0.999, 1e-8, 1);
    EXPECT_NEAR(theta, 1.0 * (1 - 0.1 * 0.01) - 0.1 * 0.5 / (0.5 + 1e-8), 1e-14);
    EXPECT_NEAR(moment1, 0.05, 1e-15);
    EXPECT_NEAR(moment2, 0.00025, 1e-15);
}

}  // namespace
}  // namespace hetlora
