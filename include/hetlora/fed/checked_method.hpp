// A plugin's functions with their results looked at: wrong shapes or types, NaN and exceptions become one clear Error
// that names the plugin and the function.
#pragma once

#include <string>

#include "hetlora/plugin/method.hpp"

namespace hetlora {

/// Calls another method and checks what it gives. What it returns is on the CPU and of the types named in Method
/// (select: bool, weight and merge: float64); a penalty stays as it is.
class CheckedMethod final : public plugin::Method {
public:
    /// @param inner must outlive this
    /// @param name of the plugin, for messages
    CheckedMethod(plugin::Method& inner, std::string name) : inner_(inner), name_(std::move(name)) {}

    /// @throws Error (input) if the plugin throws or provides nothing
    [[nodiscard]] plugin::Parts parts() const override;
    /// @throws Error (input) if the plugin throws
    void start(const plugin::RunFacts& facts) override;
    /// @throws Error (training) in these four: the plugin threw, or its result cannot be used
    at::Tensor select(const plugin::SelectContext& context) override;
    at::Tensor weight(const plugin::WeightContext& context) override;
    std::vector<plugin::Factors> merge(const plugin::MergeContext& context) override;
    at::Tensor penalty(const plugin::PenaltyContext& context) override;

private:
    plugin::Method& inner_;
    std::string name_;
};

}  // namespace hetlora
