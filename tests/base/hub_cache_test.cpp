#include "hetlora/base/hub_cache.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>

namespace hetlora {
namespace {

namespace fs = std::filesystem;

/// Variables that lead to a cache, put back afterwards.
class HubCache : public ::testing::Test {
protected:
    void SetUp() override {
        root_ = fs::temp_directory_path() / fmt::format("hetlora_hub_{}", getpid());
        for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
            if (const char* value = std::getenv(name)) before_[name] = value;
            unsetenv(name);
        }
    }
    void TearDown() override {
        for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) unsetenv(name);
        for (const auto& [name, value] : before_) setenv(name.c_str(), value.c_str(), 1);
        fs::remove_all(root_);
    }
    /// As huggingface_hub lays it out. @return the snapshot
    static fs::path add_model(const fs::path& cache, const std::string& folder, const std::string& commit) {
        const fs::path model = cache / folder;
        fs::create_directories(model / "refs");
        fs::create_directories(model / "snapshots" / commit);
        std::ofstream(model / "refs" / "main") << commit;
        return model / "snapshots" / commit;
    }
    fs::path root_;
    std::map<std::string, std::string> before_;
};

TEST(HubId, has_two_words) {
    for (const char* id : {"Qwen/Qwen2.5-0.5B", "HuggingFaceTB/SmolLM2-135M", "a/b_c"})
        EXPECT_TRUE(is_hub_id(id)) << id;
    for (const char* text : {"", "name", "/a/b", "a/b/c", "./b", "../b", "a/", "/b", "~/b", "a b/c", "a--b/c"})
        EXPECT_FALSE(is_hub_id(text)) << text;
}

TEST_F(HubCache, follows_the_variables_in_their_order) {
    EXPECT_TRUE(hub_cache_folder().empty());
    setenv("HOME", "/home/x", 1);
    EXPECT_EQ(hub_cache_folder(), "/home/x/.cache/huggingface/hub");
    setenv("XDG_CACHE_HOME", "/cache", 1);
    EXPECT_EQ(hub_cache_folder(), "/cache/huggingface/hub");
    setenv("HF_HOME", "~/hf", 1);
    EXPECT_EQ(hub_cache_folder(), "/home/x/hf/hub");
    setenv("HF_HUB_CACHE", "/hub", 1);
    EXPECT_EQ(hub_cache_folder(), "/hub");
}

TEST_F(HubCache, finds_the_commit_of_main) {
    setenv("HF_HOME", root_.c_str(), 1);
    EXPECT_FALSE(hub_snapshot("org/name"));
    add_model(root_ / "hub", "models--org--name", "0123456789abcdef");
    const fs::path newer = add_model(root_ / "hub", "models--org--name", "fedcba9876543210");
    EXPECT_EQ(hub_snapshot("org/name"), newer);
    EXPECT_FALSE(hub_snapshot("org/other"));
    EXPECT_EQ(hub_model_of(newer)->hub_id, "org/name");
    EXPECT_EQ(hub_model_of(newer)->commit, "fedcba9876543210");
    EXPECT_EQ(model_label(newer), "org/name@fedcba9");
    EXPECT_EQ(model_label("/models/tiny"), "tiny");
    EXPECT_FALSE(hub_model_of("/models/tiny"));
    fs::remove_all(newer);  // main names a commit that is not there
    EXPECT_FALSE(hub_snapshot("org/name"));
}

TEST_F(HubCache, advice_names_the_command_and_only_for_ids) {
    setenv("HF_HOME", "/somewhere", 1);
    const std::string advice = hub_advice(fs::current_path() / "org" / "name");
    EXPECT_NE(advice.find("hf download org/name"), std::string::npos) << advice;
    EXPECT_NE(advice.find("/somewhere/hub"), std::string::npos) << advice;
    EXPECT_EQ(hub_advice("/org/name"), "");
    EXPECT_EQ(hub_advice(fs::current_path() / "name"), "");
}

}  // namespace
}  // namespace hetlora
