// Compares the engine with numbers that the Python side wrote (tests/python/oracle_logits.py): logits, loss and
// gradients of every adapted matrix.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "hetlora/base/error.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora::testing_oracle {

namespace fs = std::filesystem;

inline std::string environment(const char* name, const std::string& fallback) {
    const char* value = std::getenv(name);
    return value == nullptr ? fallback : value;
}

inline std::string source_dir() { return environment("HETLORA_SOURCE_DIR", "."); }
inline std::string python() { return environment("HETLORA_PYTHON", source_dir() + "/.venv/bin/python"); }

inline at::Tensor tensor_of(const SafetensorsFile& file, const std::string& name) {
    const TensorInfo& info = file.info(name);
    const at::ScalarType type = info.dtype == "F32"   ? at::kFloat
                                : info.dtype == "F64" ? at::kDouble
                                : info.dtype == "I32" ? at::kInt
                                : info.dtype == "U8"  ? at::kByte
                                                      : at::kLong;
    at::Tensor tensor = at::empty(info.shape, at::TensorOptions().dtype(type));
    const auto bytes = file.bytes(name);
    std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
    return tensor;
}

inline double relative(const at::Tensor& a, const at::Tensor& b) {
    const double norm = b.to(at::kDouble).norm().item<double>();
    return (a.to(at::kDouble) - b.to(at::kDouble)).norm().item<double>() / std::max(norm, 1e-300);
}

struct OracleCase {
    std::string model;
    std::string dtype = "float32";
    std::string targets = "all-linear";
    double gradient_tolerance = 1e-4;
    double b_std = 0.1;  ///< size of the random B: a large one wrecks a deep model, and then no two fp32 programs agree
};

/// Compares logits (of base + adapter), loss and gradients with those in `out`.
inline void compare_with_file(const OracleCase& options, const fs::path& out) {
    const SafetensorsFile oracle(out);
    const LlamaWeights weights =
        load_weights(options.model, options.dtype == "float64" ? at::kDouble : at::kFloat, at::kCPU);
    const AdapterLayout layout = make_adapter_layout(weights.config, split(options.targets, ','));
    Engine engine(weights, layout);
    std::vector<double> factors;
    for (const auto& matrix : layout.matrices) {
        for (const bool is_a : {true, false}) {
            const at::Tensor raw = tensor_of(oracle, (is_a ? "A/" : "B/") + matrix.name).to(at::kDouble);
            const at::Tensor values = (is_a ? raw : raw.t()).contiguous();
            factors.insert(factors.end(), values.const_data_ptr<double>(),
                           values.const_data_ptr<double>() + values.numel());
        }
    }
    AdapterGroup group(layout, 1, lora_width(5), true, weights.options());
    group.set(0, factors, 5);

    std::vector<std::vector<std::int32_t>> inputs;
    std::vector<std::vector<std::int32_t>> targets_of;
    double largest = 0.0;
    double difference = 0.0;
    for (int s = 0; oracle.contains(fmt::format("tokens_{}", s)); ++s) {
        const at::Tensor tokens = tensor_of(oracle, fmt::format("tokens_{}", s));
        const at::Tensor mask = tensor_of(oracle, fmt::format("mask_{}", s));
        const std::int64_t n = tokens.numel();
        const std::int32_t* t = tokens.const_data_ptr<std::int32_t>();
        const std::vector<std::int32_t> whole(t, t + n);
        const std::vector<std::int32_t> every(static_cast<std::size_t>(n), 0);
        BatchClient client{
            .group = &group, .client_in_group = 0, .scale = 2.0, .dropout_seed = 0, .sequences = {{whole, every}}};
        const at::Tensor logits = engine.logits(make_batch(weights, std::vector{client}));
        const at::Tensor expected = tensor_of(oracle, fmt::format("logits_{}", s));
        largest = std::max(largest, expected.abs().max().item<double>());
        difference = std::max(difference, (logits - expected).abs().max().item<double>());
        inputs.emplace_back(t, t + n - 1);
        auto& target = targets_of.emplace_back();
        for (std::int64_t i = 1; i < n; ++i) target.push_back(mask[i].item<int>() == 1 ? t[i] : -1);
    }
    EXPECT_LT(difference, 1e-4 * largest) << "logits";

    BatchClient client{.group = &group, .client_in_group = 0, .scale = 2.0, .dropout_seed = 0, .sequences = {}};
    for (std::size_t s = 0; s < inputs.size(); ++s) client.sequences.push_back({inputs[s], targets_of[s]});
    const RowLosses losses = engine.train(make_batch(weights, std::vector{client}));
    double sum = 0.0;
    for (const double loss : losses.loss_L) sum += loss;
    EXPECT_NEAR(sum / static_cast<double>(losses.loss_L.size()), tensor_of(oracle, "loss").item<double>(), 1e-5);
    double worst = 0.0;
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const std::string& name = layout.matrices[m].name;
        const at::Tensor a = group.matrices[m].grad_a_CWD[0].narrow(0, 0, 5);
        const at::Tensor b = group.matrices[m].grad_bt_CWO[0].narrow(0, 0, 5).t();
        worst = std::max({worst, relative(a, tensor_of(oracle, "grad_A/" + name)),
                          relative(b, tensor_of(oracle, "grad_B/" + name))});
    }
    EXPECT_LT(worst, options.gradient_tolerance) << "gradients";
    fmt::print("  [oracle] {} {} {}: logits {:.2e} of the largest, gradients {:.2e} relative\n",
               fs::path(options.model).filename().string(), options.dtype, options.targets, difference / largest,
               worst);
}

}  // namespace hetlora::testing_oracle
