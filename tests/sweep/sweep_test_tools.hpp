// Shorthands of the sweep tests.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/store/safetensors.hpp"
#include "hetlora/sweep/planned_run.hpp"
#include "hetlora/sweep/sweep_file.hpp"
#include "make_corpus.hpp"

namespace hetlora::sweep::test {

using hetlora::test::TemporaryFolder;

/// The error's text; "" if there is none. Expects this exit code.
inline std::string problem(const std::function<void()>& action, ExitCode code = ExitCode::usage) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), code) << error.what();
        return error.what();
    }
    return {};
}

inline void expect_words(const std::string& text, const std::vector<std::string>& words) {
    for (const auto& word : words) EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
}

/// A base config with a model folder and a data file that can be hashed (but not trained), in a temporary folder.
class World {
public:
    World() {
        const std::vector<float> weights(4, 1.0F);
        create_folder(folder / "model");
        create_folder(folder / "out");
        std::ofstream(folder / "model" / "config.json") << "{}";
        write_safetensors(folder / "model" / "model.safetensors",
                          std::vector<TensorData>{{"w", "F32", {4}, std::as_bytes(std::span(weights))}});
        hetlora::test::write_corpus(folder / "data.h5", hetlora::test::synthetic_corpus({}));
        std::ofstream(folder / "base.ini")
            << "[experiment]\nrounds = 5\n[model]\npath = " << (folder / "model").string()
            << "\n[data]\npath = " << (folder / "data.h5").string() << "\n[lora]\nrank_min = 2\nrank_max = 8\n";
    }

    /// A sweep file's text with [sweep] in front.
    [[nodiscard]] std::string text(const std::string& rest, const std::string& more_options = "") const {
        return "[sweep]\nbase = " + (folder / "base.ini").string() + "\noutput = " + (folder / "out").string() + "\n" +
               more_options + rest;
    }
    [[nodiscard]] SweepFile read(const std::string& rest, const std::vector<std::string>& words = {},
                                 const std::string& more_options = "") const {
        return read_sweep_text(text(rest, more_options), "s.ini", words);
    }
    [[nodiscard]] SweepPlan plan(const std::string& rest, const std::vector<std::string>& words = {}) const {
        return make_plan(read(rest, words));
    }

    TemporaryFolder folder;
};

}  // namespace hetlora::sweep::test
