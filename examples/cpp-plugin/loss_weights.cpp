// Clients that fit worst count most: a client's weight is the loss of its last local step (in the spirit of agnostic
// and q-fair federated learning, where the worst-served clients pull hardest).
#include <hetlora/plugin/method.hpp>

class LossWeights final : public hetlora::plugin::Method {
public:
    [[nodiscard]] hetlora::plugin::Parts parts() const override { return {.weight = true}; }

    at::Tensor weight(const hetlora::plugin::WeightContext& context) override { return context.loss_last_C; }
};

HETLORA_PLUGIN(LossWeights)
