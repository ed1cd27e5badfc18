#include "hetlora/app/private_files.hpp"

#include <algorithm>
#include <cstring>
#include <system_error>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"
#include "hetlora/base/text.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

constexpr const char* tensor_name = "b";
constexpr const char* checksum_name = "sha256";
constexpr std::string_view prefix = "round_";

fs::path folder_of(const fs::path& folder, std::int64_t client) { return folder / fmt::format("client_{:06}", client); }

fs::path file_of(const fs::path& folder, std::int64_t client, std::int64_t round) {
    return folder_of(folder, client) / fmt::format("{}{:06}.safetensors", prefix, round);
}

template <typename T>
std::vector<double> values_of(std::span<const std::byte> bytes) {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return {values.begin(), values.end()};
}

std::string checksum_of(std::span<const std::byte> bytes) {
    return sha256_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace

std::vector<double> PrivateFiles::load(std::int64_t client, std::int64_t round) {
    const fs::path path = file_of(folder_, client, round);
    const SafetensorsFile file(path);
    const auto bytes = file.bytes(tensor_name);
    const auto checksum = file.metadata().find(checksum_name);
    if (checksum == file.metadata().end() || checksum->second != checksum_of(bytes)) {
        throw input_error(
            "'{}' is damaged: the values that client {} kept for itself do not have their checksum - bring the file "
            "back "
            "from a copy, or start anew in another folder",
            path.string(), client);
    }
    return file.info(tensor_name).dtype == "F64" ? values_of<double>(bytes) : values_of<float>(bytes);
}

void PrivateFiles::store(std::int64_t client, std::int64_t round, std::span<const double> values) {
    create_folder(folder_of(folder_, client));
    const std::vector<float> rounded(fp32_ ? values.begin() : values.end(), values.end());
    const auto bytes = fp32_ ? std::as_bytes(std::span(rounded)) : std::as_bytes(values);
    const std::vector<TensorData> tensors{
        {.name = tensor_name, .dtype = fp32_ ? "F32" : "F64", .shape = {std::ssize(values)}, .bytes = bytes}};
    write_safetensors(file_of(folder_, client, round), tensors, {{checksum_name, checksum_of(bytes)}});
}

void PrivateFiles::forget_before(const RoundPlan& plan, std::int64_t oldest_checkpoint) const {
    for (const PlannedClient& planned : plan.cohort) {
        std::vector<std::int64_t> rounds;
        std::error_code error;
        for (fs::directory_iterator entry(folder_of(folder_, planned.client), error), end; !error && entry != end;
             entry.increment(error)) {
            const std::string stem = entry->path().stem().string();
            if (!stem.starts_with(prefix)) continue;
            if (const auto round = parse_integer(stem.substr(prefix.size()))) rounds.push_back(*round);
        }
        std::ranges::sort(rounds);
        const auto first_later = std::ranges::upper_bound(rounds, oldest_checkpoint);
        if (first_later == rounds.begin()) continue;
        for (auto old = rounds.begin(); old != first_later - 1; ++old) {
            fs::remove(file_of(folder_, planned.client, *old), error);  // one that stays costs space, nothing else
        }
    }
}

}  // namespace hetlora
