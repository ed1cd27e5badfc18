// Logits and LoRA gradients against `transformers` and `peft` on the same weights. The Python side writes its numbers
// to a file (tests/python/oracle_logits.py); models: a random one made here, the two small pretrained ones of the
// shared data and SmolLM2-135M-Instruct where their files are there. What is missing is skipped loudly.
#include "oracle_tools.hpp"

namespace hetlora {
namespace {

using namespace testing_oracle;

/// Runs the Python side and compares logits (of base + adapter), loss and gradients.
void compare_with_oracle(const OracleCase& options) {
    const fs::path out = fs::temp_directory_path() / fmt::format("hetlora_oracle_{}.safetensors", getpid());
    const std::string command = fmt::format(
        "'{}' '{}/tests/python/oracle_logits.py' '{}' '{}' --dtype {} --lora-rank 5 --targets {} --b-std {} --lengths "
        "7,33,18",
        python(), source_dir(), options.model, out.string(), options.dtype, options.targets, options.b_std);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    compare_with_file(options, out);
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
