// See hetlora/store/checkpoint.hpp.
#include "hetlora/store/checkpoint.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* state_name = "state.safetensors";
constexpr const char* manifest_name = "manifest.json";
constexpr const char* sums_name = "SHA256SUMS";
constexpr std::string_view checkpoint_prefix = "round_";

template <typename T>
void add_tensors(std::vector<TensorData>& tensors, const std::map<std::string, std::vector<T>>& values,
                 const char* dtype) {
    for (const auto& [name, vector] : values) {
        tensors.push_back({.name = name,
                           .dtype = dtype,
                           .shape = {static_cast<std::int64_t>(vector.size())},
                           .bytes = std::as_bytes(std::span(vector))});
    }
}

template <typename T>
std::vector<T> values_of(const SafetensorsFile& file, const std::string& name) {
    const auto bytes = file.bytes(name);
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
}

/// The round in a folder's name; nothing for any other name.
std::optional<std::int64_t> round_in(const std::string& name) {
    if (!name.starts_with(checkpoint_prefix)) return std::nullopt;
    const std::string digits = name.substr(checkpoint_prefix.size());
    if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
    return parse_integer(digits);
}

[[nodiscard]] Error damaged(const fs::path& folder, std::string_view what) {
    return input_error("the checkpoint '{}' is damaged: {}; remove this folder to go on from an older one",
                       folder.string(), what);
}

/// Every line of SHA256SUMS is right, and both files are in it.
void verify_sums(const fs::path& folder) {
    std::string sums;
    try {
        sums = read_text_file(folder / sums_name);
    } catch (const Error&) {
        throw damaged(folder, fmt::format("it has no readable {}", sums_name));
    }
    std::size_t verified = 0;
    for (const auto& line : split(sums, '\n')) {
        if (line.empty()) continue;
        const auto gap = line.find("  ");
        const std::string name = gap == std::string::npos ? "" : line.substr(gap + 2);
        if (name != state_name && name != manifest_name)
            throw damaged(folder, fmt::format("bad line in {}", sums_name));
        std::string actual;
        try {
            actual = sha256_file(folder / name);
        } catch (const Error&) {
            throw damaged(folder, fmt::format("{} is missing or unreadable", name));
        }
        if (actual != line.substr(0, gap)) throw damaged(folder, fmt::format("{} is not what was written", name));
        ++verified;
    }
    if (verified != 2) throw damaged(folder, fmt::format("{} is not complete", sums_name));
}

}  // namespace

fs::path checkpoint_folder(const fs::path& checkpoints, std::int64_t round) {
    return checkpoints / fmt::format("{}{:06}", checkpoint_prefix, round);
}

std::vector<std::int64_t> checkpoint_rounds(const fs::path& checkpoints) {
    std::vector<std::int64_t> rounds;
    std::error_code error;
    for (fs::directory_iterator entry(checkpoints, error), end; !error && entry != end; entry.increment(error)) {
        if (const auto round = round_in(entry->path().filename().string())) rounds.push_back(*round);
    }
    std::ranges::sort(rounds);
    return rounds;
}

void write_checkpoint(const fs::path& checkpoints, const Checkpoint& checkpoint, std::int64_t keep) {
    create_folder(checkpoints);
    const fs::path goal = checkpoint_folder(checkpoints, checkpoint.round);
    const fs::path temporary = goal.string() + fmt::format(".tmp{}", ::getpid());
    std::error_code error;
    fs::remove_all(temporary, error);
    create_folder(temporary);
    try {
        std::vector<TensorData> tensors;
        add_tensors(tensors, checkpoint.numbers, "F64");
        add_tensors(tensors, checkpoint.integers, "I64");
        add_tensors(tensors, checkpoint.floats, "F32");
        write_safetensors(temporary / state_name, tensors);
        Json manifest;
        manifest["schema_name"] = checkpoint_schema_name;
        manifest["schema_version"] = checkpoint_schema_version;
        manifest["run_id"] = checkpoint.run_id;
        manifest["round"] = checkpoint.round;
        manifest["creator_version"] = checkpoint.creator_version;
        manifest["texts"] = checkpoint.texts;
        write_file_atomically(temporary / manifest_name,
                              manifest.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
        write_file_atomically(temporary / sums_name,
                              fmt::format("{}  {}\n{}  {}\n", sha256_file(temporary / state_name), state_name,
                                          sha256_file(temporary / manifest_name), manifest_name));
        fs::remove_all(goal, error);
        fs::rename(temporary, goal, error);
        if (error) {
            throw environment_error("cannot name the checkpoint '{}': {}; check the folder's permissions",
                                    goal.string(), error.message());
        }
        sync_folder(checkpoints);
    } catch (...) {
        fs::remove_all(temporary, error);
        throw;
    }
    const auto rounds = checkpoint_rounds(checkpoints);
    const auto n_old = std::ssize(rounds) - std::max<std::int64_t>(1, keep);
    for (std::int64_t i = 0; i < n_old; ++i) {
        // One that cannot be removed costs space, nothing else.
        if (const auto round = rounds[static_cast<std::size_t>(i)]; round != checkpoint.round)
            fs::remove_all(checkpoint_folder(checkpoints, round), error);
    }
}

Checkpoint read_checkpoint(const fs::path& folder) {
    verify_sums(folder);
    try {
        const Json manifest = Json::parse(read_text_file(folder / manifest_name));
        if (manifest.at("schema_name") != checkpoint_schema_name) {
            throw damaged(folder, "its manifest is of something else");
        }
        Checkpoint checkpoint;
        checkpoint.creator_version = manifest.at("creator_version").get<std::string>();
        if (const int version = manifest.at("schema_version").get<int>(); version != checkpoint_schema_version) {
            throw input_error(
                "the checkpoint '{}' has format version {}, this program reads {}; resume with the hetlora that wrote "
                "it ({})",
                folder.string(), version, checkpoint_schema_version, checkpoint.creator_version);
        }
        checkpoint.run_id = manifest.at("run_id").get<std::string>();
        checkpoint.round = manifest.at("round").get<std::int64_t>();
        checkpoint.texts = manifest.at("texts").get<std::map<std::string, std::string>>();
        const SafetensorsFile state(folder / state_name);
        for (const auto& [name, info] : state.tensors()) {
            if (info.dtype == "F64") checkpoint.numbers[name] = values_of<double>(state, name);
            if (info.dtype == "F32") checkpoint.floats[name] = values_of<float>(state, name);
            if (info.dtype == "I64") checkpoint.integers[name] = values_of<std::int64_t>(state, name);
        }
        return checkpoint;
    } catch (const nlohmann::json::exception& error) {
        throw damaged(folder, error.what());
    }
}

FoundCheckpoint newest_checkpoint(const fs::path& checkpoints) {
    FoundCheckpoint found;
    const auto rounds = checkpoint_rounds(checkpoints);
    for (auto round = rounds.rbegin(); round != rounds.rend(); ++round) {
        const fs::path folder = checkpoint_folder(checkpoints, *round);
        try {
            verify_sums(folder);
        } catch (const Error& error) {
            found.damaged.emplace_back(error.what());
            continue;
        }
        found.checkpoint = read_checkpoint(folder);
        return found;
    }
    return found;
}

void remove_unfinished_checkpoints(const fs::path& checkpoints) {
    std::error_code error;
    std::vector<fs::path> leftovers;
    for (fs::directory_iterator entry(checkpoints, error), end; !error && entry != end; entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        if (name.starts_with(checkpoint_prefix) && name.find(".tmp") != std::string::npos)
            leftovers.push_back(entry->path());
    }
    for (const auto& path : leftovers) fs::remove_all(path, error);
}

}  // namespace hetlora
