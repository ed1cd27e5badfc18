// What a plugin gives back is looked at before it is used.
#include "hetlora/fed/checked_method.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {
namespace {

/// A plugin whose functions are made of lambdas.
struct FakeMethod final : plugin::Method {
    [[nodiscard]] plugin::Parts parts() const override { return provided; }
    at::Tensor select(const plugin::SelectContext&) override { return tensor(); }
    at::Tensor weight(const plugin::WeightContext&) override { return tensor(); }
    std::vector<plugin::Factors> merge(const plugin::MergeContext&) override { return factors(); }
    at::Tensor penalty(const plugin::PenaltyContext&) override { return tensor(); }

    plugin::Parts provided{.weight = true};
    std::function<at::Tensor()> tensor;
    std::function<std::vector<plugin::Factors>()> factors;
};

/// Two clients of lora_rank 1 and 2, rank_max 3, one matrix of 4 x 5.
struct World {
    at::Tensor client_C = at::tensor({7, 9}, at::kLong);
    at::Tensor lora_rank_C = at::tensor({1, 2}, at::kLong);
    std::vector<plugin::Factors> global{{.a = at::zeros({3, 5}, at::kDouble), .b = at::zeros({4, 3}, at::kDouble)}};
    FakeMethod fake;
    CheckedMethod checked{fake, "my.so"};

    template <typename Context>
    [[nodiscard]] Context context() const {
        Context input;
        input.round = 4;
        input.client_C = client_C;
        return input;
    }
    at::Tensor select() {
        auto input = context<plugin::SelectContext>();
        input.lora_rank_C = lora_rank_C;
        input.global = global;
        return checked.select(input);
    }
    at::Tensor weight() { return checked.weight(context<plugin::WeightContext>()); }
    std::vector<plugin::Factors> merge() {
        auto input = context<plugin::MergeContext>();
        input.global = global;
        return checked.merge(input);
    }
    at::Tensor penalty() { return checked.penalty(context<plugin::PenaltyContext>()); }
};

/// The message of a refusal, which always names plugin, function and round.
template <typename Call>
std::string refusal(Call call, const std::string& function) {
    try {
        (void)call();
    } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_EQ(error.code(), ExitCode::training) << text;
        EXPECT_TRUE(text.starts_with("strategy.plugin my.so: " + function + " in round 4: ")) << text;
        return text;
    }
    ADD_FAILURE() << function << " was not refused";
    return "";
}

void expect_part(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(CheckedMethod, good_results_pass_through) {
    World w;
    w.fake.tensor = [] { return at::tensor({0.5F, 2.0F}).set_requires_grad(true); };
    EXPECT_EQ(w.weight().scalar_type(), at::kDouble);
    EXPECT_EQ(w.weight()[1].item<double>(), 2.0);
    EXPECT_EQ(w.penalty().scalar_type(), at::kFloat);
    w.fake.tensor = [] { return at::tensor({0, 0, 1, 1, 1, 0}).view({2, 3}).to(at::kBool); };
    EXPECT_TRUE(w.select()[0][2].item<bool>());
    w.fake.factors = [] { return std::vector<plugin::Factors>{{.a = at::ones({3, 5}), .b = at::ones({4, 3})}}; };
    EXPECT_EQ(w.merge().front().b.sum().item<double>(), 12.0);
}

TEST(CheckedMethod, wrong_shapes_are_refused) {
    World w;
    w.fake.tensor = [] { return at::ones({3}); };
    expect_part(refusal([&] { return w.weight(); }, "weight"), "shape [3] instead of [2]");
    expect_part(refusal([&] { return w.penalty(); }, "penalty"), "shape [3] instead of [2]");
    expect_part(refusal([&] { return w.select(); }, "select"), "shape [3] instead of [2, 3]");
    w.fake.tensor = [] { return at::Tensor(); };
    expect_part(refusal([&] { return w.weight(); }, "weight"), "no tensor");
    w.fake.factors = [] { return std::vector<plugin::Factors>{}; };
    expect_part(refusal([&] { return w.merge(); }, "merge"), "0 matrices instead of 1");
    w.fake.factors = [] { return std::vector<plugin::Factors>{{.a = at::ones({3, 5}), .b = at::ones({3, 4})}}; };
    expect_part(refusal([&] { return w.merge(); }, "merge"), "B of matrix 0 has shape [3, 4] instead of [4, 3]");
}

TEST(CheckedMethod, values_that_cannot_be_used_are_refused) {
    World w;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    w.fake.tensor = [&] { return at::tensor({1.0, nan}); };
    expect_part(refusal([&] { return w.weight(); }, "weight"), "NaN");
    expect_part(refusal([&] { return w.penalty(); }, "penalty"), "not finite");
    w.fake.tensor = [] { return at::tensor({1.0, -0.5}); };
    expect_part(refusal([&] { return w.weight(); }, "weight"), "client 9 has weight -0.5");
    w.fake.tensor = [] { return at::tensor({1, 2}); };
    expect_part(refusal([&] { return w.penalty(); }, "penalty"), "type Int");
    w.fake.tensor = [] { return at::ones({2, 3}); };
    expect_part(refusal([&] { return w.select(); }, "select"), "type Float instead of bool");
    w.fake.tensor = [] { return at::tensor({1, 1, 0, 1, 1, 0}).view({2, 3}).to(at::kBool); };
    expect_part(refusal([&] { return w.select(); }, "select"), "2 slots for client 7, whose lora_rank is 1");
    w.fake.factors = [&] { return std::vector<plugin::Factors>{{.a = at::full({3, 5}, nan), .b = at::ones({4, 3})}}; };
    expect_part(refusal([&] { return w.merge(); }, "merge"), "A of matrix 0 holds NaN");
}

TEST(CheckedMethod, a_penalty_without_a_gradient_is_refused_unless_it_is_zero) {
    World w;
    w.fake.tensor = [] { return at::tensor({0.0, 0.5}); };
    expect_part(refusal([&] { return w.penalty(); }, "penalty"), "no gradient");
    w.fake.tensor = [] { return at::zeros({2}); };
    EXPECT_FALSE(w.penalty().requires_grad());
}

TEST(CheckedMethod, exceptions_become_errors_that_name_the_function) {
    World w;
    w.fake.tensor = []() -> at::Tensor { throw std::runtime_error("no luck"); };
    expect_part(refusal([&] { return w.weight(); }, "weight"), "no luck");
    w.fake.tensor = []() -> at::Tensor { throw 3; };
    expect_part(refusal([&] { return w.select(); }, "select"), "no std::exception");
    w.fake.tensor = [] { return at::ones({2}).matmul(at::ones({3})); };  // LibTorch's own, without its C++ stack
    const std::string text = refusal([&] { return w.penalty(); }, "penalty");
    EXPECT_EQ(text.find("Exception raised from"), std::string::npos) << text;
}

TEST(CheckedMethod, a_plugin_without_any_part_is_refused) {
    World w;
    w.fake.provided = {};
    EXPECT_THROW((void)w.checked.parts(), Error);
}

}  // namespace
}  // namespace hetlora
