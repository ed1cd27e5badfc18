// See hetlora/base/stored_hash.hpp.
#include "hetlora/base/stored_hash.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"
#include "hetlora/base/sha256.hpp"

namespace hetlora {
namespace {

constexpr std::size_t hash_digits = 64;

/// The second line: what tells a file from its earlier self. Empty if it cannot be looked at.
std::string stamp_line(const std::filesystem::path& path, std::int64_t smallest) {
    struct stat found {};
    if (::stat(path.c_str(), &found) != 0 || found.st_size < smallest) return {};
    const auto nanoseconds = std::int64_t{found.st_mtim.tv_sec} * 1'000'000'000 + found.st_mtim.tv_nsec;
    return fmt::format("# size {} mtime_ns {}\n", found.st_size, nanoseconds);
}

/// The hash in FILE.sha256, or "" unless its second line is `stamp`.
std::string believed(const std::filesystem::path& beside, const std::string& stamp) {
    try {
        if (!std::filesystem::exists(beside)) return {};
        const std::string text = read_text_file(beside);
        const auto end = text.find('\n');
        if (end == std::string::npos || text.substr(end + 1) != stamp) return {};
        const std::string hash = text.substr(0, hash_digits);
        const bool hex = hash.find_first_not_of("0123456789abcdef") == std::string::npos;
        return hash.size() == hash_digits && hex ? hash : std::string();
    } catch (const Error&) {  // it only saves time
        return {};
    }
}

/// Whether there is a FILE.sha256 that somebody else wrote: it may hold what the file should be, so it stays.
bool is_foreign(const std::filesystem::path& beside) {
    try {
        return std::filesystem::exists(beside) && read_text_file(beside).find("\n# size ") == std::string::npos;
    } catch (const Error&) {
        return true;
    }
}

}  // namespace

std::string stored_sha256(const std::filesystem::path& path, std::int64_t smallest) {
    const std::string stamp = stamp_line(path, smallest);
    if (stamp.empty()) return sha256_file(path);
    std::filesystem::path beside = path;
    beside += ".sha256";
    if (std::string hash = believed(beside, stamp); !hash.empty()) return hash;
    std::string hash = sha256_file(path);
    if (stamp_line(path, smallest) != stamp || is_foreign(beside)) return hash;  // or it changed meanwhile
    try {
        write_file_atomically(beside, fmt::format("{}  {}\n{}", hash, path.filename().string(), stamp));
    } catch (const Error&) {  // a folder that cannot be written: the next start hashes again
    }
    return hash;
}

}  // namespace hetlora
