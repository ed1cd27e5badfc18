// See hetlora/base/hub_cache.hpp.
#include "hetlora/base/hub_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <system_error>

#include "hetlora/base/file_io.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view model_prefix = "models--";

bool is_hub_word(std::string_view word) {
    if (word.empty() || word.front() == '.' || word.front() == '-') return false;
    return std::ranges::all_of(
        word, [](unsigned char c) { return c < 128 && (std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'); });
}

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? std::string() : std::string(value);
}

/// "~" is allowed in these variables, as the Python packages do.
fs::path folder_of(const std::string& text) {
    try {
        return absolute_path(expand_path(text));
    } catch (const Error&) {  // no HOME: then it is a name like any other
        return absolute_path(text);
    }
}

}  // namespace

bool is_hub_id(std::string_view text) {
    const auto slash = text.find('/');
    return slash != std::string_view::npos && is_hub_word(text.substr(0, slash)) &&
           is_hub_word(text.substr(slash + 1)) && text.find("--") == std::string_view::npos;
}

fs::path hub_cache_folder() {
    if (const auto cache = variable("HF_HUB_CACHE"); !cache.empty()) return folder_of(cache);
    if (const auto home = variable("HF_HOME"); !home.empty()) return folder_of(home) / "hub";
    if (const auto cache = variable("XDG_CACHE_HOME"); !cache.empty()) return folder_of(cache) / "huggingface" / "hub";
    if (const auto home = variable("HOME"); !home.empty()) return folder_of(home) / ".cache" / "huggingface" / "hub";
    return {};
}

std::optional<fs::path> hub_snapshot(std::string_view hub_id) {
    const fs::path cache = hub_cache_folder();
    if (!is_hub_id(hub_id) || cache.empty()) return {};
    std::string name(hub_id);
    name.replace(name.find('/'), 1, "--");
    const fs::path model = cache / (std::string(model_prefix) + name);
    std::error_code error;
    if (!fs::is_regular_file(model / "refs" / "main", error)) return {};
    const std::string commit(trim(read_text_file(model / "refs" / "main")));
    if (!is_hub_word(commit)) return {};
    const fs::path snapshot = model / "snapshots" / commit;
    if (!fs::is_directory(snapshot, error)) return {};
    return snapshot;
}

std::optional<HubModel> hub_model_of(const fs::path& folder) {
    const std::string name = folder.parent_path().parent_path().filename().string();
    if (folder.parent_path().filename() != "snapshots" || !name.starts_with(model_prefix)) return {};
    std::string hub_id = name.substr(model_prefix.size());
    const auto dashes = hub_id.find("--");
    if (dashes != std::string::npos) hub_id.replace(dashes, 2, "/");
    return HubModel{.hub_id = hub_id, .commit = folder.filename().string()};
}

std::string model_label(const fs::path& folder) {
    const auto model = hub_model_of(folder);
    return model ? fmt::format("{}@{}", model->hub_id, model->commit.substr(0, 7)) : folder.filename().string();
}

std::string base_model_name(const fs::path& folder) {
    const auto model = hub_model_of(folder);
    return model ? model->hub_id : folder.string();
}

std::string hub_advice(const fs::path& missing_folder) {
    std::error_code error;
    const fs::path here = fs::current_path(error);
    if (error || missing_folder.parent_path().parent_path() != here) return {};
    const std::string hub_id = missing_folder.lexically_relative(here).string();
    if (!is_hub_id(hub_id)) return {};
    return fmt::format(
        "; if `{0}` is meant as a model of the Hugging Face hub: it is not in the cache {1}, and a run never "
        "downloads; fetch it where there is a network (`hf download {0}`, with HF_HOME on a file system that the "
        "compute nodes see, or `hf download {0} --local-dir DIR`, DIR then being model.path)",
        hub_id, hub_cache_folder().string());
}

}  // namespace hetlora
