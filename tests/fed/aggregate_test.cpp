// The accumulator's refusals leave it as it was; the initial adapter follows its law.
#include "hetlora/fed/aggregate.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "fed_fixtures.hpp"
#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

using namespace testing_fed;

std::vector<double> sums_of(const UploadAccumulator& accumulator) {
    std::vector<double> values;
    for (std::size_t i = 0; i < accumulator.sums().size(); ++i) values.push_back(accumulator.sums().exact().value(i));
    return values;
}

TEST(UploadAccumulator, a_bad_client_is_named_and_leaves_no_trace) {
    const auto round = random_round(1, 2);
    UploadAccumulator accumulator(round.layout, {.rank_max = 8});
    const auto weights = round.weights(0);
    const auto& client = round.clients[0];
    accumulator.add({.client = 3, .factors = client.factors, .lora_rank = client.lora_rank_after, .weights = weights});
    const auto before = sums_of(accumulator);

    for (const double bad : {std::numeric_limits<double>::infinity(), std::nan(""), 1e30}) {
        auto factors = client.factors;
        factors.back() = bad;  // the last one: everything before it would already have been added
        try {
            accumulator.add(
                {.client = 17, .factors = factors, .lora_rank = client.lora_rank_after, .weights = weights});
            FAIL() << "no error for " << bad;
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), ExitCode::training);
            EXPECT_NE(std::string(error.what()).find("client 17"), std::string::npos) << error.what();
        }
        EXPECT_FALSE(all_finite(factors) && bad != 1e30);
    }
    auto bad_weights = weights;
    bad_weights[1] = std::nan("");
    EXPECT_THROW(
        accumulator.add(
            {.client = 17, .factors = client.factors, .lora_rank = client.lora_rank_after, .weights = bad_weights}),
        Error);
    EXPECT_EQ(sums_of(accumulator), before);
}

TEST(UploadAccumulator, begin_forgets_the_round) {
    const auto round = random_round(2, 1);
    UploadAccumulator accumulator(round.layout, {.rank_max = 8});
    const std::vector<double> zero_weights(3, 0.0);
    accumulator.add({.client = 0,
                     .factors = round.clients[0].factors,
                     .lora_rank = round.clients[0].lora_rank_after,
                     .weights = zero_weights});
    accumulator.begin();
    accumulator.settle(std::vector<std::int64_t>(24, 0));
    EXPECT_EQ(sums_of(accumulator), std::vector<double>(round.previous.size(), 0.0));
    EXPECT_EQ(accumulator.has_weight(), std::vector<std::int64_t>(24, 0));
}

TEST(InitialAdapter, follows_its_law) {
    const auto layout = small_layout();
    const auto adapter = initial_adapter(layout, {AdapterInit::kaiming_uniform, 3, 16, true});
    double largest = 0.0;
    for (std::size_t m = 0; m < 3; ++m) {
        const double bound = 1.0 / std::sqrt(static_cast<double>(layout.matrices[m].d_in));
        for (std::int64_t slot = 0; slot < 16; ++slot) {
            for (std::int64_t i = 0; i < layout.matrices[m].d_in; ++i) {
                const double value = element(layout, adapter, 16, m, 'A', slot, i);
                EXPECT_LE(std::abs(value), bound);
                EXPECT_EQ(value, static_cast<double>(static_cast<float>(value)));
                largest = std::max(largest, std::abs(value) / bound);
            }
            for (std::int64_t i = 0; i < layout.matrices[m].d_out; ++i)
                EXPECT_EQ(element(layout, adapter, 16, m, 'B', slot, i), 0.0);
        }
    }
    EXPECT_GT(largest, 0.95);
    EXPECT_NE(adapter, initial_adapter(layout, {AdapterInit::kaiming_uniform, 4, 16, true}));

    const AdapterLayout wide{{{"w", 0, "q_proj", 1, 20000}}};
    const auto gaussian = initial_adapter(wide, {AdapterInit::gaussian, 3, 4, false});
    double squares = 0.0;
    for (const double value : gaussian) squares += value * value;
    EXPECT_NEAR(std::sqrt(squares / 80000.0), 0.25, 0.005);
}

TEST(InitialAdapter, refilled_rows_differ_by_round_and_slot) {
    const AdapterInitLaw law{AdapterInit::kaiming_uniform, 3, 8, true};
    std::vector<double> a(11), b(11), c(11), again(11);
    refill_row(law, 1, 2, 5, a);
    refill_row(law, 2, 2, 5, b);
    refill_row(law, 1, 2, 6, c);
    refill_row(law, 1, 2, 5, again);
    EXPECT_NE(a, b);
    EXPECT_NE(a, c);
    EXPECT_EQ(a, again);
}

}  // namespace
}  // namespace hetlora
