// See hetlora/sweep/content_hashes.hpp.
#include "hetlora/sweep/content_hashes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <vector>

#include "hetlora/base/file_io.hpp"
#include "hetlora/store/corpus_file.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora::sweep {
namespace {

namespace fs = std::filesystem;

/// "path|size|nanoseconds", or "" if the file cannot be looked at.
std::string stamp(const fs::path& file) {
    std::error_code error;
    const auto size = fs::file_size(file, error);
    if (error) return {};
    const auto time = fs::last_write_time(file, error);
    if (error) return {};
    return fmt::format("{}|{}|{}", file.string(), size, time.time_since_epoch().count());
}

std::string stamp_of_base(const fs::path& folder) {
    std::vector<std::string> stamps;
    std::error_code error;
    if (fs::is_regular_file(folder, error)) return stamp(folder);  // a GGUF file
    for (const auto& entry : fs::directory_iterator(folder, error)) {
        const auto name = entry.path().filename().string();
        if (name.starts_with("model") || name == "config.json") stamps.push_back(stamp(entry.path()));
    }
    std::ranges::sort(stamps);
    std::string all;
    for (const auto& one : stamps) all += (all.empty() ? "" : ";") + one;
    return all;
}

}  // namespace

ContentHashes::ContentHashes(fs::path cache) : cache_(std::move(cache)) {
    try {
        if (!fs::exists(cache_)) return;
        hash_of_ = nlohmann::json::parse(read_text_file(cache_)).get<std::map<std::string, std::string>>();
    } catch (const std::exception&) {  // it only saves time
        hash_of_.clear();
    }
}

std::string ContentHashes::of_base(const fs::path& folder) {
    if (const auto found = known_.find(folder.string()); found != known_.end()) return found->second;
    const auto key = stamp_of_base(folder);
    if (const auto found = hash_of_.find(key); found != hash_of_.end() && !key.empty()) {
        return known_[folder.string()] = found->second;
    }
    changed_ = true;
    return known_[folder.string()] = hash_of_[key] = base_identity_sha256(folder);
}

std::string ContentHashes::of_data(const fs::path& file) {
    if (const auto found = known_.find(file.string()); found != known_.end()) return found->second;
    const auto key = stamp(file);
    if (const auto found = hash_of_.find(key); found != hash_of_.end() && !key.empty()) {
        return known_[file.string()] = found->second;
    }
    changed_ = true;
    return known_[file.string()] = hash_of_[key] = CorpusFile(file).sha256();
}

void ContentHashes::save() const noexcept {
    try {
        if (!changed_) return;
        if (!fs::exists(cache_.parent_path())) return;  // a look must not make folders
        write_file_atomically(cache_, nlohmann::json(hash_of_).dump(1) + "\n");
    } catch (const std::exception&) {  // it only saves time
    }
}

}  // namespace hetlora::sweep
