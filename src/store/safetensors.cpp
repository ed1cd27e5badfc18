// Opening and checking safetensors files and checkpoint folders (the format is described in safetensors.hpp).
#include "hetlora/store/safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Lengths, offsets and elements are used as they lie in the file.
static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr std::size_t length_bytes = 8;                // the header's length, in front of the header
constexpr std::size_t max_header_bytes = 100'000'000;  // the limit of the format's reference implementation

Error broken(const fs::path& path, const std::string& what) {
    return input_error("{} - file {} - copy, download or convert it again", what, path.string());
}

/// Parses JSON and refuses a key that occurs twice in one object (a parser would silently keep the last).
json parse_json(const char* begin, const char* end, const fs::path& path, const char* what) {
    std::vector<std::set<std::string>> keys;
    std::optional<std::string> duplicate;
    const json::parser_callback_t watch_keys = [&](int, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::object_start) {
            keys.emplace_back();
        } else if (event == json::parse_event_t::object_end) {
            keys.pop_back();
        } else if (event == json::parse_event_t::key) {
            auto key = value.get<std::string>();
            if (!keys.back().insert(key).second && !duplicate) duplicate = std::move(key);
        }
        return true;
    };
    try {
        json parsed = json::parse(begin, end, watch_keys);
        if (duplicate) throw broken(path, fmt::format("{} names \"{}\" twice", what, *duplicate));
        if (!parsed.is_object()) throw broken(path, fmt::format("{} is JSON, but not an object", what));
        return parsed;
    } catch (const json::exception& error) {
        throw broken(path, fmt::format("{} is not valid JSON ({})", what, error.what()));
    }
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

/// Bytes of a tensor, or nothing where the product does not fit into 63 bits.
std::optional<std::size_t> tensor_bytes(const std::string& dtype, const std::vector<std::int64_t>& shape) {
    // Zeros first: [2^62, 2^62, 0] has no elements, whatever the order of multiplication.
    if (std::ranges::find(shape, 0) != shape.end()) return 0;
    auto product = static_cast<std::int64_t>(dtype_bytes(dtype));
    for (const std::int64_t extent : shape) {
        if (extent < 0 || __builtin_mul_overflow(product, extent, &product)) return std::nullopt;
    }
    return static_cast<std::size_t>(product);
}

/// One entry of the header, checked on its own (not yet against its neighbours).
TensorInfo parse_tensor(const std::string& name, const json& entry, std::size_t data_bytes, const fs::path& path) {
    const auto wrong = [&](const std::string& what) {
        return broken(path, fmt::format("tensor \"{}\": {}", name, what));
    };
    if (!entry.is_object()) throw wrong("its header entry is not an object");
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
        if (!entry.contains(key)) throw wrong(fmt::format("its header entry has no \"{}\"", key));
    }
    TensorInfo info{.name = name, .dtype = {}, .shape = {}, .begin = 0, .end = 0};

    if (!entry["dtype"].is_string()) throw wrong("its \"dtype\" is not a string");
    info.dtype = entry["dtype"].get<std::string>();
    if (dtype_bytes(info.dtype) == 0) throw wrong(fmt::format("unknown dtype \"{}\"", info.dtype));

    if (!entry["shape"].is_array()) throw wrong("its \"shape\" is not a list");
    for (const json& extent : entry["shape"]) {
        if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) {
            throw wrong(fmt::format("its shape has the extent {}", extent.dump()));
        }
        info.shape.push_back(extent.get<std::int64_t>());
    }

    const json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
        throw wrong("its \"data_offsets\" are not two non-negative integers");
    }
    info.begin = offsets[0].get<std::size_t>();
    info.end = offsets[1].get<std::size_t>();
    if (info.begin > info.end || info.end > data_bytes) {
        throw wrong(fmt::format("its bytes [{}, {}) lie outside the {} bytes of data (a truncated file?)", info.begin,
                                info.end, data_bytes));
    }
    const auto expected = tensor_bytes(info.dtype, info.shape);
    if (!expected || *expected != info.end - info.begin) {
        throw wrong(fmt::format("shape {} of {} needs {} bytes, the file gives it {}", shape_text(info.shape),
                                info.dtype, expected ? std::to_string(*expected) : "more than 2^63",
                                info.end - info.begin));
    }
    return info;
}

/// Refuses gaps, overlaps and bytes after the last tensor.
void check_layout(const std::map<std::string, TensorInfo, std::less<>>& tensors, std::size_t data_bytes,
                  const fs::path& path) {
    std::vector<const TensorInfo*> by_offset;
    by_offset.reserve(tensors.size());
    for (const auto& [name, info] : tensors) by_offset.push_back(&info);
    std::ranges::sort(by_offset, [](const TensorInfo* a, const TensorInfo* b) {
        return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
    });
    std::size_t expected = 0;
    for (const TensorInfo* info : by_offset) {
        if (info->begin != expected) {
            throw broken(path,
                         fmt::format("tensor \"{}\" starts at byte {} of the data instead of {} ({})", info->name,
                                     info->begin, expected, info->begin < expected ? "it overlaps another" : "a gap"));
        }
        expected = info->end;
    }
    if (expected != data_bytes) {
        throw broken(path, fmt::format("the tensors end at byte {} of {} bytes of data", expected, data_bytes));
    }
}

}  // namespace

std::size_t dtype_bytes(std::string_view dtype) noexcept {
    struct Entry {
        std::string_view name;
        std::size_t bytes;
    };
    static constexpr std::array<Entry, 17> known{{{"BOOL", 1},
                                                  {"U8", 1},
                                                  {"I8", 1},
                                                  {"F8_E4M3", 1},
                                                  {"F8_E5M2", 1},
                                                  {"F8_E8M0", 1},
                                                  {"U16", 2},
                                                  {"I16", 2},
                                                  {"F16", 2},
                                                  {"BF16", 2},
                                                  {"U32", 4},
                                                  {"I32", 4},
                                                  {"F32", 4},
                                                  {"U64", 8},
                                                  {"I64", 8},
                                                  {"F64", 8},
                                                  {"C64", 8}}};
    for (const Entry& entry : known) {
        if (entry.name == dtype) return entry.bytes;
    }
    return 0;
}

MappedFile::MappedFile(const fs::path& path) {
    const auto refuse = [&](const char* what) {
        return input_error("cannot {} ({}) - file {} - check the path and its permissions", what, std::strerror(errno),
                           path.string());
    };
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw refuse("open the file");
    struct stat status {};
    const bool known = ::fstat(descriptor, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
        ::close(descriptor);
        throw input_error("this is not a regular file - {} - give the file itself", path.string());
    }
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ > 0) {  // mmap refuses empty files
        void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
        if (address == MAP_FAILED) {
            const Error error = refuse("map the file into memory");
            ::close(descriptor);
            throw error;
        }
        data_ = static_cast<const std::byte*>(address);
    }
    ::close(descriptor);  // the mapping keeps the file
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

SafetensorsFile::SafetensorsFile(const fs::path& path) : path_(path), file_(path) {
    const auto all = file_.bytes();
    if (all.size() < length_bytes) {
        throw broken(path, fmt::format("{} bytes are too few for a safetensors file", all.size()));
    }
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, all.data(), length_bytes);
    if (header_bytes > max_header_bytes || header_bytes > all.size() - length_bytes) {
        throw broken(
            path,
            fmt::format(
                "not a safetensors file, or a truncated one: it claims a header of {} bytes and has {} bytes in all",
                header_bytes, all.size()));
    }
    data_begin_ = length_bytes + header_bytes;
    const std::size_t data_bytes = all.size() - data_begin_;

    const char* text = reinterpret_cast<const char*>(all.data()) + length_bytes;
    const json header = parse_json(text, text + header_bytes, path, "the safetensors header");
    for (const auto& [name, entry] : header.items()) {
        if (name != "__metadata__") {
            tensors_.emplace(name, parse_tensor(name, entry, data_bytes, path));
            continue;
        }
        if (!entry.is_object()) throw broken(path, "\"__metadata__\" is not an object");
        for (const auto& [key, value] : entry.items()) {
            if (!value.is_string())
                throw broken(path, fmt::format("\"__metadata__\": the value of \"{}\" is not a string", key));
            metadata_.emplace(key, value.get<std::string>());
        }
    }
    check_layout(tensors_, data_bytes, path);
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> result;
    result.reserve(tensors_.size());
    for (const auto& [name, info] : tensors_) result.push_back(name);
    return result;
}

const TensorInfo& SafetensorsFile::info(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
        throw input_error("there is no tensor \"{}\" among {} - file {} - is this the right model?", name,
                          tensors_.size(), path_.string());
    }
    return found->second;
}

void drop_pages(std::span<const std::byte> mapped) noexcept {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<std::uintptr_t>(mapped.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(mapped.data() + mapped.size()) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::span<const std::byte> SafetensorsFile::bytes(std::string_view name) const {
    const TensorInfo& tensor = info(name);
    return file_.bytes().subspan(data_begin_ + tensor.begin, tensor.end - tensor.begin);
}

CheckpointFolder::CheckpointFolder(const fs::path& folder) : folder_(folder) {
    const fs::path single = folder / "model.safetensors";
    const fs::path index_path = folder / "model.safetensors.index.json";
    if (fs::exists(single)) {
        files_.emplace_back(single);
        for (const auto& [name, info] : files_.front().tensors()) shard_of_.emplace(name, 0);
        return;
    }
    if (!fs::exists(index_path)) {
        throw input_error("there is neither model.safetensors nor model.safetensors.index.json - folder {} - {}",
                          folder.string(),
                          fs::is_directory(folder) ? "convert the checkpoint with `hetlora convert`"
                                                   : "this is no folder: check the path of the model");
    }

    const MappedFile index_file(index_path);
    const char* text = reinterpret_cast<const char*>(index_file.bytes().data());
    const json index = parse_json(text, text + index_file.bytes().size(), index_path, "the index of shards");
    if (!index.contains("weight_map") || !index["weight_map"].is_object() || index["weight_map"].empty()) {
        throw broken(index_path, "the index of shards has no \"weight_map\" with tensors in it");
    }
    std::map<std::string, std::size_t> file_index;
    for (const auto& [name, shard_name] : index["weight_map"].items()) {
        // Only plain names: an index must not reach outside its folder.
        const std::string file = shard_name.is_string() ? shard_name.get<std::string>() : std::string{};
        if (file.empty() || file != fs::path(file).filename() || file == "." || file == "..") {
            throw broken(index_path,
                         fmt::format("tensor \"{}\" has {} for the file name of its shard", name, shard_name.dump()));
        }
        file_index.emplace(file, 0);
    }
    for (auto& [file, position] : file_index) {
        position = files_.size();
        files_.emplace_back(folder / file);
    }
    for (const auto& [name, shard_name] : index["weight_map"].items()) {
        const auto file = shard_name.get<std::string>();
        const std::size_t position = file_index.at(file);
        if (!files_[position].contains(name)) {
            throw broken(index_path,
                         fmt::format("the index says that tensor \"{}\" is in {}, but it is not", name, file));
        }
        shard_of_.emplace(name, position);
    }
    for (const SafetensorsFile& file : files_) {
        for (const auto& [name, info] : file.tensors()) {
            const auto found = shard_of_.find(name);
            if (found == shard_of_.end() || &files_[found->second] != &file) {
                throw broken(file.path(),
                             fmt::format("the shard holds tensor \"{}\", which the index {}", name,
                                         found == shard_of_.end() ? "does not list" : "places in another shard"));
            }
        }
    }
}

std::vector<std::string> CheckpointFolder::names() const {
    std::vector<std::string> result;
    result.reserve(shard_of_.size());
    for (const auto& [name, position] : shard_of_) result.push_back(name);
    return result;
}

const SafetensorsFile& CheckpointFolder::shard(std::string_view name) const {
    const auto found = shard_of_.find(name);
    if (found == shard_of_.end()) {
        throw input_error("there is no tensor \"{}\" among {} - folder {} - is this the right model?", name,
                          shard_of_.size(), folder_.string());
    }
    return files_[found->second];
}

const TensorInfo& CheckpointFolder::info(std::string_view name) const { return shard(name).info(name); }

std::span<const std::byte> CheckpointFolder::bytes(std::string_view name) const { return shard(name).bytes(name); }

std::string CheckpointFolder::sha256() const {
    Sha256 hash;
    constexpr std::size_t block = std::size_t{16} << 20;
    for (const SafetensorsFile& file : files_) {
        auto left = file.file_bytes();
        while (!left.empty()) {
            const auto part = left.first(std::min(block, left.size()));
            hash.update(part);
            drop_pages(part);
            left = left.subspan(part.size());
        }
    }
    return hash.hex();
}

std::string base_identity_sha256(const std::filesystem::path& folder) {
    if (fs::is_regular_file(folder)) return sha256_file(folder);
    const auto path = folder / "config.json";
    try {
        auto config = nlohmann::json::parse(read_text_file(path));  // sorts by name
        for (const char* name : {"transformers_version", "_name_or_path", "torch_dtype", "dtype"}) config.erase(name);
        return sha256_hex(CheckpointFolder(folder).sha256() + config.dump(-1, ' ', true));
    } catch (const nlohmann::json::exception& error) {
        throw input_error("{}: not valid JSON: {}; download or convert the model again", path.string(), error.what());
    }
}

}  // namespace hetlora
