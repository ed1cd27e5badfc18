// Writing safetensors files (the format is described in safetensors.hpp), all at once or not at all.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "hetlora/base/error.hpp"
#include "hetlora/store/safetensors.hpp"

namespace hetlora {
namespace {

namespace fs = std::filesystem;

Error refused(const char* what, const fs::path& path) {
    return environment_error("cannot {} ({}) - file {} - check free space, quota and permissions", what,
                             std::strerror(errno), path.string());
}

/// A temporary file beside its goal, removed unless it was committed.
class TemporaryFile {
public:
    explicit TemporaryFile(const fs::path& goal)
        : goal_(goal), path_(goal.string() + fmt::format(".tmp.{}", ::getpid())) {
        descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (descriptor_ < 0) throw refused("create the file", path_);
    }
    ~TemporaryFile() {
        if (descriptor_ >= 0) ::close(descriptor_);
        if (!committed_) ::unlink(path_.c_str());
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    void write(const void* data, std::size_t bytes) {
        const auto* next = static_cast<const char*>(data);
        while (bytes > 0) {
            const ssize_t written = ::write(descriptor_, next, bytes);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) throw refused("write", path_);
            next += written;
            bytes -= static_cast<std::size_t>(written);
        }
    }

    /// After this the goal holds the new content, also if the machine stops.
    void commit() {
        if (::fsync(descriptor_) != 0) throw refused("write to disk", path_);
        const int closed = ::close(descriptor_);
        descriptor_ = -1;
        if (closed != 0) throw refused("close", path_);
        if (::rename(path_.c_str(), goal_.c_str()) != 0) throw refused("rename to its final name", path_);
        committed_ = true;
        const fs::path folder = goal_.has_parent_path() ? goal_.parent_path() : fs::path(".");
        const int folder_descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder_descriptor < 0) return;
        ::fsync(folder_descriptor);  // some file systems cannot do this for folders; the rename has happened
        ::close(folder_descriptor);
    }

private:
    fs::path goal_;
    fs::path path_;
    int descriptor_ = -1;
    bool committed_ = false;
};

void check_tensor(const TensorData& tensor, std::set<std::string>& seen) {
    if (tensor.name == "__metadata__" || !seen.insert(tensor.name).second) {
        throw bug_error("tensor name \"{}\" is taken - write_safetensors - give every tensor its own name",
                        tensor.name);
    }
    auto expected = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
    if (expected == 0)
        throw bug_error("unknown dtype \"{}\" of tensor \"{}\" - write_safetensors - use e.g. F32", tensor.dtype,
                        tensor.name);
    for (const std::int64_t extent : tensor.shape) {
        if (extent < 0 || __builtin_mul_overflow(expected, extent, &expected)) {
            throw bug_error("extent {} of tensor \"{}\" - write_safetensors - shapes are non-negative and fit 63 bits",
                            extent, tensor.name);
        }
    }
    if (static_cast<std::size_t>(expected) != tensor.bytes.size()) {
        throw bug_error(
            "tensor \"{}\" has {} bytes, its shape [{}] of {} needs {} - write_safetensors - pass the whole tensor",
            tensor.name, tensor.bytes.size(), fmt::join(tensor.shape, ", "), tensor.dtype, expected);
    }
}

}  // namespace

void write_safetensors(const fs::path& path, std::span<const TensorData> tensors,
                       const std::map<std::string, std::string>& metadata) {
    std::set<std::string> seen;
    std::vector<const TensorData*> order;
    for (const TensorData& tensor : tensors) {
        check_tensor(tensor, seen);
        order.push_back(&tensor);
    }
    // Widest elements first, as the reference implementation does: then every tensor is aligned without gaps.
    std::ranges::sort(order, [](const TensorData* a, const TensorData* b) {
        const auto bytes_a = dtype_bytes(a->dtype);
        const auto bytes_b = dtype_bytes(b->dtype);
        return bytes_a != bytes_b ? bytes_a > bytes_b : a->name < b->name;
    });

    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::size_t offset = 0;
    for (const TensorData* tensor : order) {
        header[tensor->name] = {{"dtype", tensor->dtype},
                                {"shape", tensor->shape},
                                {"data_offsets", std::vector<std::size_t>{offset, offset + tensor->bytes.size()}}};
        offset += tensor->bytes.size();
    }
    std::string text;
    try {
        text = header.dump();
    } catch (const nlohmann::json::exception& error) {
        throw bug_error("a name or the metadata is not UTF-8 ({}) - write_safetensors({}) - give it as UTF-8",
                        error.what(), path.string());
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');

    const std::uint64_t header_bytes = text.size();
    TemporaryFile file(path);
    file.write(&header_bytes, sizeof header_bytes);
    file.write(text.data(), text.size());
    for (const TensorData* tensor : order) file.write(tensor->bytes.data(), tensor->bytes.size());
    file.commit();
}

}  // namespace hetlora
