#include "hetlora/base/file_io.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace hetlora {
namespace {

// A POSIX file descriptor that closes itself.
class Descriptor {
public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    [[nodiscard]] bool ok() const { return fd_ >= 0; }
    [[nodiscard]] int get() const { return fd_; }
    // Network file systems report a failed write only here.
    [[nodiscard]] bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

private:
    int fd_;
};

Error file_error(ExitCode code, std::string_view what, const std::filesystem::path& path, int number,
                 std::string_view mend) {
    return {code, fmt::format("cannot {} {}: {}; {}", what, path.string(), std::strerror(number), mend)};
}

constexpr std::string_view mend_read = "check the path and its permissions";
constexpr std::string_view mend_write = "check that the folder exists, is writable and has free space";

void sync_path(const std::filesystem::path& path, int flags) {
    const Descriptor file(::open(path.c_str(), flags | O_CLOEXEC));
    // Some network file systems refuse fsync on folders: nothing more can be done there, and nothing is broken.
    if (!file.ok() || (::fsync(file.get()) != 0 && errno != EINVAL && errno != EROFS)) {
        throw file_error(ExitCode::environment, "sync", path, errno, mend_write);
    }
}

void write_all(const Descriptor& file, std::span<const std::byte> content, const std::filesystem::path& path) {
    while (!content.empty()) {
        const auto n_written = ::write(file.get(), content.data(), content.size());
        if (n_written < 0 && errno == EINTR) continue;
        if (n_written < 0) throw file_error(ExitCode::environment, "write", path, errno, mend_write);
        content = content.subspan(static_cast<std::size_t>(n_written));
    }
}

}  // namespace

std::string read_text_file(const std::filesystem::path& path, ExitCode code) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.ok()) throw file_error(code, "open", path, errno, mend_read);
    std::string content;
    std::size_t n_filled = 0;
    while (true) {
        content.resize(n_filled + (std::size_t{1} << 16));
        const auto n_read = ::read(file.get(), content.data() + n_filled, content.size() - n_filled);
        if (n_read < 0 && errno == EINTR) continue;
        if (n_read < 0) throw file_error(code, "read", path, errno, mend_read);
        if (n_read == 0) break;
        n_filled += static_cast<std::size_t>(n_read);
    }
    content.resize(n_filled);
    return content;
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> content) {
    const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
    std::filesystem::path temporary;
    int fd = -1;
    // O_EXCL: a leftover of a killed process (or another host's same process id) is never written into.
    for (int attempt = 0; attempt < 100 && fd < 0; ++attempt) {
        temporary = folder / fmt::format(".{}.{}.{}.tmp", path.filename().string(), ::getpid(), attempt);
        fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    Descriptor file(fd);
    if (!file.ok()) throw file_error(ExitCode::environment, "write", path, errno, mend_write);
    try {
        write_all(file, content, path);
        if (::fsync(file.get()) != 0 || !file.close()) {
            throw file_error(ExitCode::environment, "write", path, errno, mend_write);
        }
        if (::rename(temporary.c_str(), path.c_str()) != 0) {
            throw file_error(ExitCode::environment, "replace", path, errno, mend_write);
        }
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    sync_folder(folder);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
    write_file_atomically(path, std::as_bytes(std::span(content.data(), content.size())));
}

void sync_folder(const std::filesystem::path& folder) {
    sync_path(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
}

void sync_file(const std::filesystem::path& path) { sync_path(path, O_RDONLY); }

void create_folder(const std::filesystem::path& folder) {
    std::error_code failure;
    std::filesystem::create_directories(folder, failure);
    if (failure) throw file_error(ExitCode::environment, "create folder", folder, failure.value(), mend_write);
}

std::string expand_variables(std::string_view text) {
    std::string expanded;
    for (std::string_view rest = text; !rest.empty();) {
        const auto start = rest.find("${");
        expanded += rest.substr(0, start);
        if (start == std::string_view::npos) break;
        rest.remove_prefix(start + 2);
        const auto end = rest.find('}');
        if (end == std::string_view::npos) throw usage_error("\"${{\" without \"}}\" in {}; write ${{NAME}}", text);
        const std::string name(rest.substr(0, end));
        const char* value = std::getenv(name.c_str());
        if (value == nullptr) {
            throw usage_error("environment variable {} is not set, but {} needs it; export it or write the value", name,
                              text);
        }
        expanded += value;
        rest.remove_prefix(end + 1);
    }
    return expanded;
}

std::filesystem::path expand_path(std::string_view text) {
    const std::string expanded = expand_variables(text);
    if (!expanded.starts_with('~')) return expanded;
    if (expanded.size() > 1 && expanded[1] != '/') {
        throw usage_error("{}: only \"~\" and \"~/\" are expanded; write that user's home folder out", text);
    }
    const char* home = std::getenv("HOME");
    if (home == nullptr) throw usage_error("{}: \"~\" needs the environment variable HOME, which is not set", text);
    return std::string(home) + expanded.substr(1);
}

std::filesystem::path absolute_path(const std::filesystem::path& path) {
    if (path.empty()) return path;
    auto clean = std::filesystem::absolute(path).lexically_normal();
    return clean.has_filename() || clean == clean.root_path() ? clean : clean.parent_path();
}

}  // namespace hetlora
