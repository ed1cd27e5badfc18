// The SHA-256 of a large file, kept beside it: hashing 10 GB at every start would take most of a minute.
//
// FILE.sha256 is what `sha256sum FILE` prints, and a line "# size BYTES mtime_ns NANOSECONDS". It is believed only
// while the file has that size and time of change; else the file is hashed again and FILE.sha256 replaced, where that
// can be written; one that is not ours (without the second line) is left alone. `sha256sum -c FILE.sha256` checks the
// whole file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace hetlora {

/// Files below this size are hashed every time, and nothing is written beside them.
inline constexpr std::int64_t smallest_stored_hash = std::int64_t{64} << 20;

/// SHA-256 (64 hex digits) of a file's content, from FILE.sha256 where that is still true.
/// @throws Error(input) if the file cannot be opened or read
[[nodiscard]] std::string stored_sha256(const std::filesystem::path& path,
                                        std::int64_t smallest = smallest_stored_hash);

}  // namespace hetlora
