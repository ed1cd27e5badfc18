// Logits and LoRA gradients against `transformers` and `peft` on the same weights. The Python side writes its numbers
// to a file (tests/python/oracle_logits.py); models: a random one made here, the two small pretrained ones of the
// shared data and SmolLM2-135M-Instruct where their files are there. What is missing is skipped loudly.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "hetlora/base/error.hpp"
#include "hetlora/model/batch.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name, const std::string& fallback) {
    const char* value = std::getenv(name);
    return value == nullptr ? fallback : value;
}

std::string source_dir() { return environment("HETLORA_SOURCE_DIR", "."); }
std::string python() { return environment("HETLORA_PYTHON", source_dir() + "/.venv/bin/python"); }

at::Tensor tensor_of(const SafetensorsFile& file, const std::string& name) {
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

double relative(const at::Tensor& a, const at::Tensor& b) {
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

/// Runs the Python side and compares logits (of base + adapter), loss and gradients.
void compare_with_oracle(const OracleCase& options) {
    const fs::path out = fs::temp_directory_path() / fmt::format("hetlora_oracle_{}.safetensors", getpid());
    const std::string command = fmt::format(
        "'{}' '{}/tests/python/oracle_logits.py' '{}' '{}' --dtype {} --lora-rank 5 --targets {} --b-std {} --lengths "
        "7,33,18",
        python(), source_dir(), options.model, out.string(), options.dtype, options.targets, options.b_std);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    const SafetensorsFile oracle(out);
    const LlamaWeights weights =
        load_weights(options.model, options.dtype == "float64" ? at::kDouble : at::kFloat, at::kCPU);
    std::vector<std::string> targets;
    for (std::size_t begin = 0; begin <= options.targets.size();) {
        const std::size_t end = std::min(options.targets.find(',', begin), options.targets.size());
        targets.push_back(options.targets.substr(begin, end - begin));
        begin = end + 1;
    }
    const AdapterLayout layout = make_adapter_layout(weights.config, targets);
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
    fs::remove(out);
}

/// A pretrained model that only some machines have.
void compare_if_there(const std::string& name, const std::string& targets, double b_std = 0.1) {
    const std::string folder = environment("HETLORA_TEST_MODELS", source_dir() + "/build/test-models") + "/" + name;
    if (!fs::exists(folder + "/config.json"))
        GTEST_SKIP() << "SKIPPED, NOT TESTED: no " << folder << " (make test converts it where its source is there)";
    compare_with_oracle({.model = folder, .targets = targets, .b_std = b_std});
}

class Oracle : public ::testing::Test {
protected:
    static std::string micro_model() {
        static const std::string folder = [] {
            const fs::path dir = fs::temp_directory_path() / fmt::format("hetlora_micro_{}", getpid());
            const std::string command =
                fmt::format("'{}' '{}/tests/python/micro.py' '{}' > /dev/null", python(), source_dir(), dir.string());
            if (std::system(command.c_str()) != 0) throw bug_error("cannot make the micro model: {}", command);
            return dir.string() + "/model";
        }();
        return folder;
    }
};

TEST_F(Oracle, micro_model_in_fp32_all_matrices) { compare_with_oracle({.model = micro_model()}); }
TEST_F(Oracle, micro_model_in_fp32_query_and_value) {
    compare_with_oracle({.model = micro_model(), .targets = "q_proj,v_proj"});
}
TEST_F(Oracle, micro_model_in_fp64) {
    compare_with_oracle({.model = micro_model(), .dtype = "float64", .gradient_tolerance = 1e-10});
}
TEST_F(Oracle, stories260k) { compare_if_there("stories260k", "all-linear"); }
TEST_F(Oracle, babyllama361) { compare_if_there("babyllama361", "all-linear"); }
TEST_F(Oracle, smollm2_135m_instruct) { compare_if_there("smollm2", "q_proj,v_proj", 0.01); }

}  // namespace
}  // namespace hetlora
