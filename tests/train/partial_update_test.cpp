// Updates of adapters that train in part, and FedProx's term: both paths against loops over elements, closed forms and
// finite differences.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/train/client_update.hpp"
#include "train_fixtures.hpp"

namespace hetlora {
namespace {

using testing_train::by_hand;
using testing_train::hashed_factors;
using testing_train::hashed_mask;
using testing_train::odd_layout;
using testing_train::set_gradient;
using testing_train::trains_by_element;
using testing_train::ValueByHand;

using Update = std::function<void(AdapterGroup&, OptimizerState&, std::span<const ClientStep>, const LocalOptions&)>;

/// The CPU's loops and ATen's ops.
const Update both_paths[] = {
    [](AdapterGroup& group, OptimizerState& state, std::span<const ClientStep> clients, const LocalOptions& options) {
        update_clients(group, state, odd_layout(), clients, options);
    },
    [](AdapterGroup& group, OptimizerState& state, std::span<const ClientStep> clients, const LocalOptions& options) {
        update_clients_aten(group, state, odd_layout(), clients, options);
    }};

/// A client of a group of width 8, and what of it trains.
struct PartialClient {
    std::int64_t lora_rank = 0;
    std::int64_t tail_start = 0;
    TrainedFactors factors = TrainedFactors::both;
    std::vector<std::uint8_t> slots = {};

    [[nodiscard]] std::vector<bool> trains() const {
        return trains_by_element(odd_layout(), lora_rank, factors, slots);
    }
};

/// Everything, one factor each, slots of both factors, slots of one, nothing.
std::vector<PartialClient> mixed_clients() {
    return {
        {.lora_rank = 5, .tail_start = 3},
        {.lora_rank = 3, .tail_start = 2, .factors = TrainedFactors::a_only},
        {.lora_rank = 8, .tail_start = 5, .factors = TrainedFactors::b_only},
        {.lora_rank = 7, .tail_start = 4, .slots = hashed_mask(odd_layout(), 1, 7)},
        {.lora_rank = 6, .tail_start = 3, .factors = TrainedFactors::b_only, .slots = hashed_mask(odd_layout(), 2, 6)},
        {.lora_rank = 4, .tail_start = 4, .slots = std::vector<std::uint8_t>(8, 0)}};
}

/// A group of these clients with hashed adapters and what training them in part needs.
struct PartialGroup {
    std::vector<PartialClient> clients;
    std::vector<std::vector<double>> received;
    AdapterGroup group;
    OptimizerState state;

    PartialGroup(std::vector<PartialClient> who, at::ScalarType dtype, const LocalOptions& options)
        : clients(std::move(who)),
          group(odd_layout(), std::ssize(clients), 8, true, at::TensorOptions().dtype(dtype)),
          state(group, options.optimizer) {
        for (std::size_t c = 0; c < clients.size(); ++c) {
            const PartialClient& client = clients[c];
            group.set(static_cast<std::int64_t>(c), hashed_factors(odd_layout(), static_cast<int>(c), client.lora_rank),
                      client.lora_rank);
            received.push_back(group.get(static_cast<std::int64_t>(c), client.lora_rank));
            state.trained.push_back(
                trained_elements(group, odd_layout(),
                                 {.lora_rank = client.lora_rank, .factors = client.factors, .slots = client.slots}));
        }
        state.received_CP = group.theta_CP.clone();
    }
    [[nodiscard]] std::vector<double> theta(std::size_t c) const {
        return group.get(static_cast<std::int64_t>(c), clients[c].lora_rank);
    }
    /// One update of all clients from these gradients.
    void step(std::int64_t t, const std::vector<std::vector<double>>& gradients, const LocalOptions& options,
              const Update& update) {
        std::vector<ClientStep> steps;
        for (std::size_t c = 0; c < clients.size(); ++c) {
            set_gradient(group, odd_layout(), static_cast<std::int64_t>(c), gradients[c], clients[c].lora_rank);
            steps.push_back({.lora_rank = clients[c].lora_rank, .tail_start = clients[c].tail_start, .step = t});
        }
        update(group, state, steps, options);
    }
    /// Hashed gradients of step t; every third client's are large.
    [[nodiscard]] std::vector<std::vector<double>> gradients(std::int64_t t) const {
        std::vector<std::vector<double>> all;
        for (std::size_t c = 0; c < clients.size(); ++c) {
            all.push_back(hashed_factors(odd_layout(), static_cast<int>(20 * t) + static_cast<int>(c),
                                         clients[c].lora_rank, c % 3 == 0 ? 30.0 : 0.2));
        }
        return all;
    }
};

/// One client's update from the equations, element by element of the canonical form.
struct PartByHand {
    PartialClient client;
    std::vector<double> received;
    std::vector<ValueByHand> values = by_hand(received);

    void add_tail(std::vector<double>& g, double lambda) const {
        const AdapterLayout layout = odd_layout();
        const auto tail = [&](std::int64_t offset, std::int64_t width) {
            std::vector<std::size_t> elements;
            for (std::int64_t i = client.tail_start * width; i < client.lora_rank * width; ++i)
                elements.push_back(static_cast<std::size_t>(offset + i));
            return elements;
        };
        const auto norm = [&](const std::vector<std::size_t>& elements) {
            double sum = 0.0;
            for (const std::size_t i : elements) sum += values[i].theta * values[i].theta;
            return std::sqrt(sum);
        };
        for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
            const auto a = tail(layout.offset_a(m, client.lora_rank), layout.matrices[m].d_in);
            const auto b = tail(layout.offset_b(m, client.lora_rank), layout.matrices[m].d_out);
            for (const std::size_t i : a) g[i] += lambda * norm(b) / norm(a) * values[i].theta;
            for (const std::size_t i : b) g[i] += lambda * norm(a) / norm(b) * values[i].theta;
        }
    }
    void step(std::vector<double> g, int t, const LocalOptions& o) {
        const auto trains = client.trains();
        add_tail(g, o.tail_lambda);
        double sum = 0.0;
        for (std::size_t i = 0; i < g.size(); ++i) {
            g[i] += o.prox_mu * (values[i].theta - received[i]);
            if (trains[i]) sum += g[i] * g[i];
        }
        const double factor = std::min(1.0, o.clip_norm / (std::sqrt(sum) + 1e-6));
        for (std::size_t i = 0; i < g.size(); ++i) {
            if (trains[i]) values[i].step(factor * g[i], t, o);
        }
    }
};

/// Everything at once: decay, clipping, tail regulariser, proximal term.
LocalOptions busy(OptimizerKind optimizer) {
    LocalOptions options;
    options.optimizer = optimizer;
    options.learning_rate = 0.02;
    options.weight_decay = 0.3;
    options.clip_norm = 1.5;
    options.tail_lambda = 0.2;
    options.prox_mu = 0.7;
    options.epsilon = 1e-3;
    return options;
}

TEST(TrainedElements, are_those_that_every_element_tells) {
    const AdapterLayout layout = odd_layout();
    for (int number = 0; number < 20; ++number) {
        for (const auto factors : {TrainedFactors::both, TrainedFactors::a_only, TrainedFactors::b_only}) {
            const std::int64_t lora_rank = 1 + number % 8;
            const auto mask = number % 5 == 0 ? std::vector<std::uint8_t>{} : hashed_mask(layout, number, lora_rank);
            AdapterGroup group(layout, 1, 8, false, at::TensorOptions().dtype(at::kDouble));
            const TrainedElements trained =
                trained_elements(group, layout, {.lora_rank = lora_rank, .factors = factors, .slots = mask});
            const auto trains = trains_by_element(layout, lora_rank, factors, mask);
            EXPECT_EQ(trained.all, std::ranges::find(trains, false) == trains.end());
            if (trained.all) continue;
            std::int64_t last = -1;
            for (const auto& [begin, end] : trained.ranges) {
                EXPECT_LT(last, begin);
                EXPECT_LT(begin, end);
                last = end;
                group.theta_CP[0].slice(0, begin, end).fill_(1.0);
            }
            const auto marked = group.get(0, lora_rank);
            for (std::size_t i = 0; i < marked.size(); ++i) EXPECT_EQ(marked[i] == 1.0, trains[i]) << i;
            // Nothing outside of the adapter: padded slots and gaps between factors.
            EXPECT_EQ(group.theta_CP.sum().item<double>(), std::ranges::count(trains, true));
        }
    }
}

TEST(TrainedElements, a_mask_of_another_size_is_refused) {
    const AdapterGroup group(odd_layout(), 1, 8, false, at::TensorOptions().dtype(at::kFloat));
    const std::vector<std::uint8_t> mask(7, 1);
    EXPECT_THROW((void)trained_elements(group, odd_layout(), {.lora_rank = 4, .slots = mask}), Error);
}

TEST(PartialUpdate, equals_the_loop_over_elements) {
    for (const OptimizerKind optimizer : {OptimizerKind::adamw, OptimizerKind::sgd}) {
        const LocalOptions options = busy(optimizer);
        for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-13}, {at::kFloat, 3e-6}}) {
            for (const Update& update : both_paths) {
                PartialGroup partial(mixed_clients(), dtype, options);
                std::vector<PartByHand> hand;
                for (std::size_t c = 0; c < partial.clients.size(); ++c)
                    hand.push_back({.client = partial.clients[c], .received = partial.received[c]});
                for (int t = 1; t <= 6; ++t) {
                    const auto gradients = partial.gradients(t);
                    partial.step(t, gradients, options, update);
                    for (std::size_t c = 0; c < hand.size(); ++c) hand[c].step(gradients[c], t, options);
                }
                for (std::size_t c = 0; c < hand.size(); ++c) {
                    const auto theta = partial.theta(c);
                    for (std::size_t i = 0; i < theta.size(); ++i)
                        ASSERT_NEAR(theta[i], hand[c].values[i].theta, tolerance) << "client " << c << ", value " << i;
                }
            }
        }
    }
}

TEST(PartialUpdate, frozen_elements_keep_their_bits) {
    for (const OptimizerKind optimizer : {OptimizerKind::adamw, OptimizerKind::sgd}) {
        const LocalOptions options = busy(optimizer);
        for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
            for (const Update& update : both_paths) {
                PartialGroup partial(mixed_clients(), dtype, options);
                for (int t = 1; t <= 8; ++t) {
                    auto gradients = partial.gradients(t);
                    for (std::size_t c = 0; c < gradients.size(); ++c) {  // a frozen element's gradient is never read
                        const auto trains = partial.clients[c].trains();
                        for (std::size_t i = 0; i < trains.size(); ++i)
                            if (!trains[i]) gradients[c][i] = std::numeric_limits<double>::quiet_NaN();
                    }
                    partial.step(t, gradients, options, update);
                }
                for (std::size_t c = 0; c < partial.clients.size(); ++c) {
                    const auto trains = partial.clients[c].trains();
                    const auto theta = partial.theta(c);
                    const auto left =
                        partial.group.get_gradient(static_cast<std::int64_t>(c), partial.clients[c].lora_rank);
                    for (std::size_t i = 0; i < theta.size(); ++i) {
                        EXPECT_EQ(theta[i] == partial.received[c][i], !trains[i]) << "client " << c << ", value " << i;
                        if (!trains[i]) {
                            EXPECT_EQ(left[i], 0.0);
                        }
                    }
                    if (optimizer != OptimizerKind::adamw) continue;
                    for (const at::Tensor& moments : {partial.state.moment1_CP, partial.state.moment2_CP}) {
                        EXPECT_EQ(moments[static_cast<std::int64_t>(c)].count_nonzero().item<std::int64_t>(),
                                  std::ranges::count(trains, true));
                    }
                }
                // Padded slots and gaps stay 0, whatever trains beside them.
                std::int64_t values = 0;
                for (const auto& client : partial.clients) values += odd_layout().parameters(client.lora_rank);
                EXPECT_EQ(partial.group.theta_CP.count_nonzero().item<std::int64_t>(), values);
            }
        }
    }
}

TEST(PartialUpdate, a_client_has_its_bits_whoever_is_beside_it) {
    const LocalOptions options = busy(OptimizerKind::adamw);
    for (const Update& update : both_paths) {
        for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
            PartialGroup together(mixed_clients(), dtype, options);
            PartialGroup poisoned(mixed_clients(), dtype, options);
            poisoned.group.theta_CP[4].fill_(std::numeric_limits<double>::quiet_NaN());  // trained and frozen part
            for (int t = 1; t <= 4; ++t) {
                together.step(t, together.gradients(t), options, update);
                poisoned.step(t, poisoned.gradients(t), options, update);
            }
            EXPECT_TRUE(poisoned.group.theta_CP[4].isnan().any().item<bool>());
            for (const std::int64_t c : {0, 1, 2, 3, 5})
                EXPECT_TRUE(at::equal(poisoned.group.theta_CP[c], together.group.theta_CP[c])) << "client " << c;
            for (std::size_t c = 0; c < together.clients.size(); ++c) {
                PartialGroup alone({together.clients[c]}, dtype, options);
                alone.group.set(0, together.received[c], together.clients[c].lora_rank);
                alone.state.received_CP = alone.group.theta_CP.clone();
                for (int t = 1; t <= 4; ++t) alone.step(t, {together.gradients(t)[c]}, options, update);
                EXPECT_EQ(alone.theta(0), together.theta(c)) << "client " << c;
            }
        }
    }
}

TEST(PartialUpdate, a_mask_of_ones_has_the_bits_of_no_mask) {
    const LocalOptions options = busy(OptimizerKind::adamw);
    for (const Update& update : both_paths) {
        PartialGroup plain({{.lora_rank = 5, .tail_start = 3}}, at::kFloat, options);
        PartialGroup masked({{.lora_rank = 5, .tail_start = 3, .slots = std::vector<std::uint8_t>(10, 1)}}, at::kFloat,
                            options);
        for (int t = 1; t <= 4; ++t) {
            plain.step(t, plain.gradients(t), options, update);
            masked.step(t, plain.gradients(t), options, update);
        }
        EXPECT_TRUE(at::equal(plain.group.theta_CP, masked.group.theta_CP));
    }
}

TEST(ProximalTerm, has_the_closed_form_under_sgd) {
    // A constant gradient g and theta_{t+1} = theta_t - rate (g + mu (theta_t - theta_0)):
    // theta_t - theta_0 = -(g / mu) (1 - (1 - rate mu)^t).
    LocalOptions options;
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 0.1;
    options.prox_mu = 0.8;
    for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 2e-5}}) {
        for (const Update& update : both_paths) {
            PartialGroup partial(mixed_clients(), dtype, options);
            const auto g = partial.gradients(1);
            for (int t = 1; t <= 12; ++t) partial.step(t, g, options, update);
            const double reached = (1.0 - std::pow(1.0 - 0.1 * 0.8, 12)) / 0.8;
            for (std::size_t c = 0; c < partial.clients.size(); ++c) {
                const auto trains = partial.clients[c].trains();
                const auto theta = partial.theta(c);
                for (std::size_t i = 0; i < theta.size(); ++i) {
                    const double expected = partial.received[c][i] - (trains[i] ? reached * g[c][i] : 0.0);
                    ASSERT_NEAR(theta[i], expected, tolerance * std::max(1.0, std::abs(expected)));
                }
            }
        }
    }
}

TEST(ProximalTerm, gradient_equals_finite_differences) {
    LocalOptions options;
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 1.0;
    options.prox_mu = 1.7;
    const PartialClient client{.lora_rank = 5, .tail_start = 5};
    for (const Update& update : both_paths) {
        PartialGroup partial({client}, at::kDouble, options);
        std::vector<double> theta = hashed_factors(odd_layout(), 9, 5);  // has moved away from what was received
        partial.group.set(0, theta, 5);
        partial.step(1, {std::vector<double>(theta.size())}, options, update);
        const auto moved = partial.theta(0);
        const auto penalty = [&] {
            double sum = 0.0;
            for (std::size_t i = 0; i < theta.size(); ++i) sum += std::pow(theta[i] - partial.received[0][i], 2);
            return 0.5 * 1.7 * sum;
        };
        for (std::size_t i = 0; i < theta.size(); ++i) {
            const double kept = theta[i];
            const double h = 1e-5;
            theta[i] = kept + h;
            const double above = penalty();
            theta[i] = kept - h;
            const double below = penalty();
            theta[i] = kept;
            ASSERT_NEAR(kept - moved[i], (above - below) / (2.0 * h), 1e-9) << "value " << i;
        }
    }
}

}  // namespace
}  // namespace hetlora
